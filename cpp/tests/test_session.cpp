#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "allocations.h"
#include "artifacts.h"
#include "mlpdeploy/session.h"

using namespace mlpdeploy;

namespace {

constexpr std::size_t row_values = 3 * 32 * 32, classes = 7;

std::vector<float> images(std::size_t rows, float phase) {
  std::vector<float> values(rows * row_values);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = std::sin(phase + static_cast<float>(i) * 0.37F);
  return values;
}

// One call with the caller's memory, as a program's inner loop makes it.
struct Call {
  std::int64_t input_shape[4], output_shape[2];
  std::vector<float> pixels, logits;

  Call(std::size_t rows, float phase)
      : input_shape{static_cast<std::int64_t>(rows), 3, 32, 32},
        output_shape{static_cast<std::int64_t>(rows), classes},
        pixels(images(rows, phase)),
        logits(rows * classes, -1.0F) {}

  void run(const Session& session) {
    const TensorView input{"input", DType::float32, input_shape, 4, pixels.data()};
    const MutableTensorView output{"logits", DType::float32, output_shape, 2, logits.data()};
    session.run(&input, 1, &output, 1);
  }
};

LoadOptions with(int threads, int max_batch) {
  LoadOptions options;
  options.threads = threads;
  options.max_batch = max_batch;
  return options;
}

// Every row of a batch is the bits of that row alone, and nothing is written behind the last.
void check_rows(const Session& session, std::size_t rows) {
  CAPTURE(rows);
  Call call(rows, 1.0F);
  call.logits.resize(rows * classes + 4, 99.0F);  // a margin that must stay as it is
  call.run(session);
  for (std::size_t row = 0; row < rows; ++row) {
    Call alone(1, 0.0F);
    std::copy_n(call.pixels.begin() + static_cast<std::ptrdiff_t>(row * row_values), row_values, alone.pixels.begin());
    alone.run(session);
    CHECK(std::memcmp(alone.logits.data(), call.logits.data() + row * classes, classes * sizeof(float)) == 0);
  }
  for (std::size_t i = rows * classes; i < call.logits.size(); ++i) CHECK(call.logits[i] == 99.0F);
}

}  // namespace

TEST_CASE("after warm-up a call allocates nothing of its own") {
#ifndef MLPDEPLOY_SANITIZED
  struct Case {
    std::string name;
    std::size_t rows;
  };
  // One image, streams with a rest, several parts, and padding to a fixed batch.
  for (const Case& one : {Case{"asmlp", 1}, Case{"asmlp", 5}, Case{"asmlp", 11}, Case{"fixed", 4}}) {
    CAPTURE(one.name);
    CAPTURE(one.rows);
    const Session session = Session::load(artifact(one.name.c_str()), with(2, 8));
    Call call(one.rows, 0.0F);
    for (int i = 0; i < 3; ++i) call.run(session);
    count_allocations(true);
    const Allocations before = allocations();
    for (int i = 0; i < 10; ++i) call.run(session);
    const Allocations after = allocations();
    count_allocations(false);
    CHECK(after.ours - before.ours == 0);
    MESSAGE(one.name << ", " << one.rows << " rows: ONNX Runtime allocates "
                     << static_cast<double>(after.backend - before.backend) / 10 << " times a call");
    CHECK(after.backend > before.backend);  // otherwise nothing was counted
  }
#endif
}

TEST_CASE("a session may be used by many threads at once") {
  const Session session = Session::load(artifact("asmlp"), with(2, 4));
  std::vector<Call> calls;
  for (std::size_t i = 0; i < 16; ++i) calls.emplace_back(1 + i % 6, static_cast<float>(i));
  std::vector<std::vector<float>> alone;
  for (Call& call : calls) {
    call.run(session);
    alone.push_back(call.logits);
    std::fill(call.logits.begin(), call.logits.end(), -1.0F);
  }
  const Session fresh = Session::load(artifact("asmlp"), with(2, 4));  // streams are made under contention
  std::vector<std::thread> threads;
  for (Call& call : calls) {
    threads.emplace_back([&] {
      for (int i = 0; i < 5; ++i) call.run(fresh);
    });
  }
  for (auto& thread : threads) thread.join();
  for (std::size_t i = 0; i < calls.size(); ++i) CHECK(calls[i].logits == alone[i]);
}

TEST_CASE("padding of a fixed batch stays inside") {
  const Session session = Session::load(artifact("fixed"));
  REQUIRE(session.fixed_batch() == 3);
  for (const std::size_t rows : {1U, 2U, 3U, 4U, 7U}) check_rows(session, rows);
}

TEST_CASE("rows in streams are computed like a row alone") {
  for (const int threads : {1, 2, 3, 4}) {
    CAPTURE(threads);
    const Session session = Session::load(artifact("asmlp"), with(threads, 32));
    for (const std::size_t rows : {1U, 2U, 3U, 5U, 6U, 8U, 10U, 13U}) check_rows(session, rows);
  }
}

TEST_CASE("open output sizes are found out by running") {
  const Session session = Session::load(artifact("features"), with(2, 2));
  const std::vector<float> pixels(3 * 3 * 64 * 40, 0.5F);
  const std::int64_t shape[] = {3, 3, 64, 40};
  const auto outputs = session.run({{"input", DType::float32, shape, 4, pixels.data()}});
  REQUIRE(outputs.size() == 2);
  CHECK(outputs[0].shape == std::vector<std::int64_t>{3, 21, 16, 10});
  CHECK(outputs[1].shape == std::vector<std::int64_t>{3, 42, 8, 5});
  CHECK(outputs[1].bytes.size() == outputs[1].count() * sizeof(float));
}

TEST_CASE("a session tells what it holds, moves, and refuses what does not fit") {
  Session first = Session::load(artifact("asmlp"), with(1, 5));
  const Session session = std::move(first);
  CHECK(session.inputs().front().name == "input");
  CHECK(session.outputs().front().layout == "NK");
  CHECK(session.model().name == "asmlp_t");
  CHECK(session.model().file == "model.cpu.onnx");
  CHECK(session.max_batch() == 5);
  CHECK(session.labels().size() == classes);
  session.warmup(2);
  CHECK_THROWS_AS(session.run(std::vector<TensorView>{}), Error);
  CHECK_THROWS_AS(Session::load("/nonexistent"), Error);
  LoadOptions canonical;
  canonical.role = "canonical";
  CHECK(Session::load(artifact("asmlp"), canonical).model().file == "model.onnx");
}
