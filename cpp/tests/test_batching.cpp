#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <map>
#include <random>
#include <thread>
#include <vector>

#include "artifacts.h"
#include "mlpdeploy/session.h"

using namespace mlpdeploy;
using namespace std::chrono_literals;

namespace {

constexpr std::size_t row_values = 3 * 32 * 32;
const std::int64_t row_shape[] = {1, 3, 32, 32};

std::vector<float> image(int seed) {
  std::mt19937 generator(static_cast<unsigned>(seed));
  std::normal_distribution<float> normal;
  std::vector<float> values(row_values);
  for (float& value : values) value = normal(generator);
  return values;
}

TensorView view(const std::vector<float>& values) { return {"input", DType::float32, row_shape, 4, values.data()}; }

std::vector<float> logits(const std::vector<Tensor>& outputs) {
  const float* values = outputs.at(0).float32();
  return {values, values + outputs[0].count()};
}

LoadOptions two_threads() {
  LoadOptions options;
  options.threads = 2;
  return options;
}

BatchingOptions options_of(int max_batch, std::chrono::microseconds delay, std::size_t limit) {
  BatchingOptions options;
  options.max_batch = max_batch;
  options.max_delay = delay;
  options.queue_limit = limit;
  return options;
}

}  // namespace

TEST_CASE("10,000 requests from 16 threads with random cancellations: none lost, none answered twice, none mixed up") {
  const Session session = Session::load(artifact("asmlp"), two_threads());
  constexpr int kinds = 20, threads = 16, each = 625;
  std::vector<std::vector<float>> pictures, expected;
  for (int kind = 0; kind < kinds; ++kind) {
    pictures.push_back(image(kind));
    expected.push_back(logits(session.run({view(pictures.back())})));
  }
  BatchingSession batching(session, options_of(8, 500us, 32));
  std::atomic<int> answered{0}, cancelled{0}, wrong{0};
  std::vector<std::thread> senders;
  for (int thread = 0; thread < threads; ++thread) {
    senders.emplace_back([&, thread] {
      std::mt19937 generator(static_cast<unsigned>(thread));
      std::vector<std::pair<int, BatchingSession::Request>> open;
      const auto collect = [&] {
        for (auto& [kind, request] : open) {
          const bool took_back = generator() % 4 == 0 && request.cancel();
          try {
            wrong += logits(request.get()) != expected[static_cast<std::size_t>(kind)] || took_back;
            ++answered;
          } catch (const Error& error) {
            wrong += error.kind() != ErrorKind::cancelled || !took_back;
            ++cancelled;
          }
        }
        open.clear();
      };
      for (int i = 0; i < each; ++i) {
        const int kind = static_cast<int>(generator() % kinds);
        open.emplace_back(kind, batching.submit(view(pictures[static_cast<std::size_t>(kind)])));
        if (open.size() >= 1 + generator() % 6) collect();
      }
      collect();
    });
  }
  for (auto& sender : senders) sender.join();
  CHECK(wrong == 0);
  CHECK(answered + cancelled == threads * each);
  CHECK(cancelled > 0);
  MESSAGE(answered.load() << " answered, " << cancelled.load() << " cancelled");
}

TEST_CASE("requests that were accepted are answered at shutdown, later ones are refused") {
  const Session session = Session::load(artifact("fixed"), two_threads());
  const auto picture = image(1);
  const auto expected = logits(session.run({view(picture)}));
  BatchingSession batching(session, options_of(4, 10s, 100));
  std::vector<BatchingSession::Request> open;
  for (int i = 0; i < 10; ++i) open.push_back(batching.submit(view(picture)));
  batching.shutdown();
  for (auto& request : open) CHECK(logits(request.get()) == expected);
  CHECK_THROWS_AS(batching.submit(view(picture)), Error);
  CHECK_FALSE(open.front().cancel());
  batching.shutdown();
}

TEST_CASE("image sizes are not mixed in a batch") {
  const Session session = Session::load(artifact("features"), two_threads());
  BatchingSession batching(session, options_of(8, 20ms, 64));
  std::vector<float> pixels(3 * 64 * 64, 0.25F);
  std::vector<BatchingSession::Request> open;
  const std::int64_t shapes[2][4] = {{1, 3, 32, 64}, {1, 3, 64, 32}};
  for (int i = 0; i < 12; ++i) {
    open.push_back(batching.submit({"input", DType::float32, shapes[i % 2], 4, pixels.data()}));
  }
  for (int i = 0; i < 12; ++i) {
    const auto outputs = open[static_cast<std::size_t>(i)].get();
    const std::vector<std::int64_t> wanted =
        i % 2 ? std::vector<std::int64_t>{1, 21, 16, 8} : std::vector<std::int64_t>{1, 21, 8, 16};
    CHECK(outputs[0].shape == wanted);
  }
}

TEST_CASE("what does not fit is refused when it is submitted") {
  const Session session = Session::load(artifact("asmlp"), two_threads());
  CHECK_THROWS_AS(BatchingSession(session, options_of(0, 1us, 1)), Error);
  BatchingSession batching(session);
  const std::vector<float> pixels(2 * row_values);
  const std::int64_t two[] = {2, 3, 32, 32};
  CHECK_THROWS_AS(batching.submit({"input", DType::float32, two, 4, pixels.data()}), Error);
  CHECK_THROWS_AS(batching.submit({"inputs", DType::float32, row_shape, 4, pixels.data()}), Error);
}
