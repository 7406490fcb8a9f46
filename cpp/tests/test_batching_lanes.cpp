// The workers of a BatchingSession, whose runs the test holds, counts and fails: fakes/fake_onnxruntime.h.
#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "artifacts.h"
#include "fake_onnxruntime.h"
#include "mlpdeploy/session.h"

using namespace mlpdeploy;
using namespace std::chrono_literals;

namespace {

constexpr std::size_t row_values = 3 * 32 * 32, most_rows = 8;
constexpr const char *gpu = "cuda", *cpu = "cpu";

// Every run passes here before it computes.
class Runs {
  static constexpr auto all = static_cast<std::size_t>(-1);

 public:
  Runs() {
    fake_provider().at_run = [this](std::size_t rows) { return pass(rows); };
  }
  Runs(const Runs&) = delete;
  Runs& operator=(const Runs&) = delete;
  ~Runs() { fake_provider().at_run = nullptr; }

  // From now on runs wait, but for the first `passing` of all.
  void hold(std::size_t passing = 0) {
    const std::lock_guard<std::mutex> lock(mutex_);
    passing_ = passing;
    changed_.notify_all();
  }

  void release() { hold(all); }

  // Waits until so many runs have come.
  void wait_for(std::size_t count) {
    std::unique_lock<std::mutex> lock(mutex_);
    if (changed_.wait_for(lock, 20s, [&] { return rows_.size() >= count; })) return;
    passing_ = all;  // for those that wait for them, now that the test ends
    changed_.notify_all();
    FAIL(rows_.size() << " runs came, not " << count);
  }

  // The rows of the runs that came, in their order.
  std::vector<std::size_t> rows() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return rows_;
  }

  std::size_t count() { return rows().size(); }

  std::size_t of(std::size_t rows) {
    const auto came = this->rows();
    return static_cast<std::size_t>(std::count(came.begin(), came.end(), rows));
  }

  // Which runs fail, by their number from 0; set before they come.
  std::function<bool(std::size_t number)> fails = [](std::size_t) { return false; };

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::size_t> rows_;
  std::size_t passing_ = all;

  bool pass(std::size_t rows) {
    std::unique_lock<std::mutex> lock(mutex_);
    const std::size_t number = rows_.size();
    rows_.push_back(rows);
    changed_.notify_all();
    changed_.wait(lock, [&] { return number < passing_; });
    return !fails(number);
  }
};

// One thread on the CPU: a batch is one run there, too.
Session session_on(const char* device, const char* name = "asmlp") {
  LoadOptions options;
  options.device = device;
  options.threads = 1;
  return Session::load(artifact(name), options);
}

BatchingOptions options_of(int max_batch, std::chrono::microseconds delay = 10s, std::size_t limit = 64) {
  BatchingOptions options;
  options.max_batch = max_batch;
  options.max_delay = delay;
  options.queue_limit = limit;
  return options;
}

struct Picture {
  std::vector<float> pixels = std::vector<float>(row_values);

  explicit Picture(std::size_t seed) {
    for (std::size_t i = 0; i < row_values; ++i) pixels[i] = std::sin(static_cast<float>(seed + i) * 0.37F);
  }

  TensorView view() const {
    static const std::int64_t shape[] = {1, 3, 32, 32};
    return {"input", DType::float32, shape, 4, pixels.data()};
  }
};

std::vector<float> logits(const std::vector<Tensor>& outputs) {
  const float* values = outputs.at(0).float32();
  return {values, values + outputs[0].count()};
}

std::vector<float> alone(const Session& session, std::size_t seed) {
  return logits(session.run({Picture(seed).view()}));
}

// Submits a row for every worker, one after the other, and waits until all of them compute.
std::vector<BatchingSession::Request> busy_workers(BatchingSession& batching, const Session& session, Runs& runs) {
  std::vector<BatchingSession::Request> open;
  for (std::size_t worker = 0; worker < static_cast<std::size_t>(session.lanes()); ++worker) {
    open.push_back(batching.submit(Picture(worker).view()));
    runs.wait_for(worker + 1);
  }
  return open;
}

}  // namespace

TEST_CASE("a GPU session computes two batches side by side, and rows that gather meanwhile go in their order") {
  const Session session = session_on(gpu);
  REQUIRE(session.lanes() == 2);
  std::vector<std::vector<float>> expected;
  for (std::size_t i = 0; i < 9; ++i) expected.push_back(alone(session, i));
  Runs runs;
  runs.hold();
  BatchingSession batching(session, options_of(3));
  auto open = busy_workers(batching, session, runs);
  for (std::size_t i = 2; i < 9; ++i) open.push_back(batching.submit(Picture(i).view()));
  runs.release();
  for (std::size_t i = 0; i < 8; ++i) CHECK(logits(open[i].get()) == expected[i]);
  batching.shutdown();
  CHECK(logits(open[8].get()) == expected[8]);
  CHECK(runs.rows() == std::vector<std::size_t>{1, 1, 3, 3, 1});
}

TEST_CASE("a CPU session computes one batch at a time") {
  const Session session = session_on(cpu);
  REQUIRE(session.lanes() == 1);
  Runs runs;
  runs.hold();
  BatchingSession batching(session, options_of(3));
  auto open = busy_workers(batching, session, runs);
  for (std::size_t i = 1; i < 4; ++i) open.push_back(batching.submit(Picture(i).view()));
  std::this_thread::sleep_for(20ms);
  CHECK(runs.count() == 1);
  runs.release();
  for (std::size_t i = 0; i < open.size(); ++i) CHECK(logits(open[i].get()) == alone(session, i));
  CHECK(runs.of(3) == 1);
}

TEST_CASE("one client never waits for company") {
  for (const char* device : {gpu, cpu}) {
    CAPTURE(device);
    const Session session = session_on(device);
    Runs runs;
    BatchingSession batching(session, options_of(8));
    for (std::size_t i = 0; i < 20; ++i) {
      const auto start = std::chrono::steady_clock::now();
      batching.submit(Picture(i).view()).get();
      REQUIRE(std::chrono::steady_clock::now() - start < 9s);
    }
    CHECK(runs.rows() == std::vector<std::size_t>(20, 1));
  }
}

TEST_CASE("where more were open lately, the oldest waits for the others no longer than the delay") {
  const Session session = session_on(cpu);
  Runs runs;
  runs.hold();
  BatchingSession batching(session, options_of(8, 30ms));
  auto open = busy_workers(batching, session, runs);
  open.push_back(batching.submit(Picture(1).view()));
  runs.release();
  for (auto& request : open) request.get();
  const auto start = std::chrono::steady_clock::now();
  batching.submit(Picture(2).view()).get();
  const auto waited = std::chrono::steady_clock::now() - start;
  CHECK(waited >= 29ms);
  CHECK(waited < 5s);
}

TEST_CASE("what a batch leaves is taken at once by the other worker") {
  const Session session = session_on(gpu, "features");
  const std::vector<float> pixels(3 * 64 * 32, 0.25F);
  const std::int64_t wide[] = {1, 3, 32, 64}, tall[] = {1, 3, 64, 32};
  std::vector<BatchingSession::Request> open;
  Runs runs;
  BatchingSession batching(session, options_of(2, 60s));
  const auto submit = [&](const std::int64_t* shape) {
    open.push_back(batching.submit({"input", DType::float32, shape, 4, pixels.data()}));
  };
  // Many are open in the third batch from the end, and few in the last two.
  runs.hold();
  for (std::size_t run = 1; run <= 2; ++run) submit(wide), runs.wait_for(run);
  for (int row = 0; row < 4; ++row) submit(wide);
  for (std::size_t run = 1; run <= 2; ++run) runs.hold(run), runs.wait_for(2 + run);
  runs.release();
  for (auto& request : open) request.get();
  for (int batch = 0; batch < 2; ++batch) {
    submit(wide), submit(wide);
    for (auto request = open.end() - 2; request != open.end(); ++request) request->get();
  }
  REQUIRE(runs.rows() == std::vector<std::size_t>{1, 1, 2, 2, 2, 2});
  // With the next batch these many are forgotten, and so nobody is missing any more.
  runs.hold();
  for (const auto* shape : {tall, wide, wide}) {
    submit(shape);
    std::this_thread::sleep_for(20ms);  // the worker that it woke sleeps again
  }
  runs.wait_for(8);
  CHECK(runs.count() == 8);
  runs.release();
}

// Eight threads ask in a loop until there were 60 runs, each with its own `pause` longer than the one before it. How
// many of the runs were full.
std::size_t full_runs(const char* device, int max_batch, std::chrono::microseconds pause) {
  const Session session = session_on(device);
  Runs runs;
  runs.hold();  // until all are there
  BatchingSession batching(session, options_of(max_batch, 500ms));
  std::atomic<int> submitted{0};
  std::vector<std::thread> clients;
  for (std::size_t client = 0; client < 8; ++client) {
    clients.emplace_back([&, client] {
      const Picture picture(client);
      auto request = batching.submit(picture.view());
      ++submitted;
      request.get();
      while (runs.count() < 60) {
        std::this_thread::sleep_for(client * pause);
        batching.submit(picture.view()).get();
      }
    });
  }
  while (submitted < 8) std::this_thread::sleep_for(1ms);
  runs.release();
  for (auto& client : clients) client.join();
  return runs.of(static_cast<std::size_t>(max_batch));
}

TEST_CASE("clients in a loop get full batches, also where they do not come back at the same time") {
  CHECK(full_runs(cpu, 8, 300us) >= 40);
  CHECK(full_runs(gpu, 4, 0us) >= 40);  // four in each lane
}

TEST_CASE("a batch that fails has no part in what another worker computes") {
  const Session session = session_on(gpu);
  const auto expected = alone(session, 1);
  Runs runs;
  runs.hold();
  runs.fails = [](std::size_t number) { return number == 0; };
  BatchingSession batching(session, options_of(3));
  auto open = busy_workers(batching, session, runs);
  for (int i = 0; i < 3; ++i) open.push_back(batching.submit(Picture(1).view()));
  runs.release();
  CHECK_THROWS_WITH_AS(open[0].get(), doctest::Contains("the run failed"), Error);
  for (std::size_t i = 1; i < open.size(); ++i) CHECK(logits(open[i].get()) == expected);
}

TEST_CASE("a full queue refuses try_submit, and a cancelled request makes room") {
  for (const char* device : {gpu, cpu}) {
    CAPTURE(device);
    const Session session = session_on(device);
    const Picture picture(2);
    const auto expected = alone(session, 2);
    Runs runs;
    runs.hold();
    BatchingSession batching(session, options_of(8, 10s, 3));
    auto taken = busy_workers(batching, session, runs);
    std::vector<BatchingSession::Request> open;
    for (int i = 0; i < 3; ++i) open.push_back(batching.submit(picture.view()));
    CHECK_FALSE(batching.try_submit(picture.view()).has_value());
    CHECK_FALSE(taken[0].cancel());
    CHECK(open[1].cancel());
    CHECK_FALSE(open[1].cancel());
    auto fourth = batching.try_submit(picture.view());
    CHECK(fourth.has_value());
    CHECK_THROWS_AS(open[1].get(), Error);
    // A sender that waits for room goes on when a request is taken back.
    std::thread sender([&] { open.push_back(batching.submit(picture.view())); });
    std::this_thread::sleep_for(20ms);
    CHECK(open[0].cancel());
    sender.join();
    runs.release();
    batching.shutdown();
    for (auto* request : {&open[2], &open[3], &*fourth}) CHECK(logits(request->get()) == expected);
    for (std::size_t i = 0; i < taken.size(); ++i) CHECK(logits(taken[i].get()) == alone(session, i));
  }
}

TEST_CASE("shutdown waits for what is computed, and answers what waits") {
  for (const char* device : {gpu, cpu}) {
    CAPTURE(device);
    const Session session = session_on(device);
    const auto expected = alone(session, 5);
    Runs runs;
    runs.hold();
    BatchingSession batching(session, options_of(8));
    auto taken = busy_workers(batching, session, runs);
    std::vector<BatchingSession::Request> open;
    for (int i = 0; i < 5; ++i) open.push_back(batching.submit(Picture(5).view()));
    std::thread closing([&] { batching.shutdown(); });
    const auto refused = [&] {
      try {
        open.push_back(batching.submit(Picture(5).view()));
        return false;
      } catch (const Error&) {
        return true;
      }
    };
    while (!refused()) std::this_thread::sleep_for(1ms);
    const auto start = std::chrono::steady_clock::now();
    runs.release();
    closing.join();
    CHECK(std::chrono::steady_clock::now() - start < 9s);  // nobody else can come
    for (auto& request : open) CHECK(logits(request.get()) == expected);
    for (auto& request : taken) request.get();
  }
}

TEST_CASE("many threads, cancellations and failing runs on two workers: each request ends once, as its own batch did") {
  const Session session = session_on(gpu);
  constexpr std::size_t kinds = 8, threads = 8, each = 150;
  std::vector<std::vector<float>> expected;
  for (std::size_t kind = 0; kind < kinds; ++kind) expected.push_back(alone(session, kind));
  Runs runs;
  runs.fails = [](std::size_t number) { return number % 5 == 4; };
  std::atomic<std::size_t> answered{0}, cancelled{0}, failed{0}, wrong{0};
  {
    BatchingSession batching(session, options_of(4, 200us, 16));
    std::vector<std::thread> senders;
    for (std::size_t thread = 0; thread < threads; ++thread) {
      senders.emplace_back([&, thread] {
        std::mt19937 generator(static_cast<unsigned>(thread));
        for (std::size_t i = 0; i < each; i += 3) {
          std::vector<std::pair<std::size_t, BatchingSession::Request>> open;
          for (int k = 0; k < 3; ++k) {
            const std::size_t kind = generator() % kinds;
            open.emplace_back(kind, batching.submit(Picture(kind).view()));
          }
          for (auto& [kind, request] : open) {
            const bool took_back = generator() % 4 == 0 && request.cancel();
            try {
              wrong += logits(request.get()) != expected[kind] || took_back;
              ++answered;
            } catch (const Error& error) {
              wrong += (error.kind() == ErrorKind::cancelled) != took_back;
              ++(took_back ? cancelled : failed);
            }
          }
        }
      });
    }
    for (auto& sender : senders) sender.join();
  }
  std::size_t rows_failed = 0, rows_computed = 0;
  const auto rows = runs.rows();
  for (std::size_t i = 0; i < rows.size(); ++i) (runs.fails(i) ? rows_failed : rows_computed) += rows[i];
  CHECK(wrong == 0);
  CHECK(failed == rows_failed);
  CHECK(answered == rows_computed);
  CHECK(answered + failed + cancelled == threads * each);
  CHECK((failed > 0 && cancelled > 0));
}
