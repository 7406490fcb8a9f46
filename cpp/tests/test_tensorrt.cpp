// Running engines, on the simulated GPU of fakes/.
#include <doctest/doctest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "allocations.h"
#include "engines.h"
#include "fake_gpu.h"
#include "mlpdeploy.h"
#include "mlpdeploy/session.h"
#include "split.h"

using namespace mlpdeploy;

namespace {

constexpr std::size_t row_values = 3 * 32 * 32, classes = 7, margin = 4;

// Small whole numbers: their sums are exact in whatever order.
std::vector<float> images(std::size_t rows, int seed) {
  std::vector<float> values(rows * row_values);
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<float>((i * 31 + i / row_values * 7 + static_cast<std::size_t>(seed)) % 11);
  }
  return values;
}

// What the fake engine computes of one row.
float expected(const float* row, std::size_t values, std::size_t output) {
  float sum = 0;
  for (std::size_t i = 0; i < values; i += std::max<std::size_t>(values / 64, 1))
    sum += row[i] * (static_cast<float>((i + output) % 7) - 3);
  return sum;
}

struct Call {
  std::int64_t input_shape[4], output_shape[2];
  std::vector<float> pixels, logits;

  explicit Call(std::size_t rows, int seed = 0)
      : input_shape{static_cast<std::int64_t>(rows), 3, 32, 32},
        output_shape{static_cast<std::int64_t>(rows), classes},
        pixels(images(rows, seed)),
        logits(rows * classes + margin, -1.0F) {}

  void run(const Session& session) {
    const TensorView input{"input", DType::float32, input_shape, 4, pixels.data()};
    const MutableTensorView output{"logits", DType::float32, output_shape, 2, logits.data()};
    session.run(&input, 1, &output, 1);
  }

  bool right() const {
    for (std::size_t i = 0; i + margin < logits.size(); ++i) {
      if (logits[i] != expected(pixels.data() + i / classes * row_values, row_values, i % classes)) return false;
    }
    return std::all_of(logits.end() - margin, logits.end(), [](float value) { return value == -1.0F; });
  }
};

struct Existing {
  int device_blocks = fake_gpu()->device_blocks, pinned_blocks = fake_gpu()->pinned_blocks,
      streams = fake_gpu()->streams, graphs = fake_gpu()->graphs, engines = fake_gpu()->engines,
      contexts = fake_gpu()->contexts;

  bool nothing() const { return !device_blocks && !pinned_blocks && !streams && !graphs && !engines && !contexts; }
};

}  // namespace

TEST_CASE("a batch is split by the rules of Python's profiles") {
  const RowRange ranges[] = {{1, 1, 2, 0}, {4, 8, 8, 1}};
  struct Case {
    std::int64_t start, rows, limit, stop, computed;
    int profile;
  };
  for (const Case& one :
       {Case{0, 1, 0, 1, 1, 0}, Case{0, 2, 0, 2, 2, 0}, Case{0, 3, 0, 3, 4, 1}, Case{0, 6, 0, 6, 6, 1},
        Case{8, 19, 0, 16, 8, 1}, Case{16, 19, 0, 19, 4, 1}, Case{0, 19, 5, 5, 5, 1}, Case{0, 19, 2, 2, 2, 0}}) {
    const Chunk chunk = next_chunk(ranges, 2, one.start, one.rows, one.limit);
    CAPTURE(one.rows);
    CHECK(chunk.start == one.start);
    CHECK(chunk.stop == one.stop);
    CHECK(chunk.computed == one.computed);
    CHECK(chunk.profile == one.profile);
  }
}

TEST_CASE("few sizes are computed, so that any batch has its context after one round") {
  std::vector<std::int64_t> sizes;
  for (std::int64_t rows = 1; rows <= 64; ++rows) {
    const std::int64_t size = next_of_few_sizes(rows);
    CHECK(size >= rows);
    if (sizes.empty() || sizes.back() != size) sizes.push_back(size);
  }
  CHECK(sizes == std::vector<std::int64_t>{1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64});

  const EngineFolder folder("asmlp");
  EngineRequest request;
  request.profiles = {{1, 8, 26}};
  folder.add(request);
  const Session session = folder.load();
  const int before = fake_gpu()->contexts;
  for (int round = 0; round < 2; ++round) {
    for (std::size_t rows = 1; rows <= 26; ++rows) {
      Call call(rows, round);
      call.run(session);
      CAPTURE(rows);
      CHECK(call.right());
    }
  }
  CHECK(fake_gpu()->contexts - before <= 7 + 4 + 3 + 1);  // 1 to 7; 8, 10, 12, 14; 16, 20, 24; the profile's last, 26
}

TEST_CASE("any batch is computed, and padding stays inside") {
  const EngineFolder folder("asmlp");
  folder.add();
  {
    const Session session = folder.load();
    CHECK(session.max_batch() == 8);
    CHECK(session.backend() == "tensorrt");
    CHECK(session.backend_version() == fake_version());
    CHECK(session.model().file.rfind("engines/", 0) == 0);
    for (int round = 0; round < 3; ++round) {  // direct, recorded, launched
      for (const std::size_t rows : {1U, 2U, 3U, 4U, 8U, 9U, 11U, 16U, 23U}) {
        Call call(rows, round);
        call.run(session);
        CAPTURE(rows);
        CHECK(call.right());
      }
    }
    Call three(3);
    three.run(session);
    const auto owned = session.run({{"input", DType::float32, three.input_shape, 4, three.pixels.data()}});
    CHECK(owned[0].shape == std::vector<std::int64_t>{3, 7});
    CHECK(std::equal(three.logits.begin(), three.logits.end() - margin, owned[0].float32()));
  }
  CHECK(Existing().nothing());
  CHECK(fake_gpu()->retained > 0);  // the context stays: others in the process may have things in it
}

TEST_CASE("a session outlives the one that began first") {
  const EngineFolder folder("asmlp");
  folder.add();
  auto first = std::make_unique<Session>(folder.load());
  const Session second = folder.load();
  first.reset();
  Call call(3);
  call.run(second);
  CHECK(call.right());
}

TEST_CASE("the second run of a shape is recorded, and later ones launch the graph") {
  const EngineFolder folder("asmlp");
  folder.add();
  const Session session = folder.load();
  const long launches = fake_gpu()->graph_launches, enqueues = fake_gpu()->enqueues;
  for (int i = 0; i < 5; ++i) {
    Call call(2, i);
    call.run(session);
    CHECK(call.right());
  }
  CHECK(fake_gpu()->enqueues - enqueues == 2);
  CHECK(fake_gpu()->graph_launches - launches == 4);
  const auto notes = session.graphs();
  REQUIRE(notes.size() == 1);
  CHECK(notes[0].shapes == "2x3x32x32");
  CHECK(notes[0].note == "CUDA graph");
}

TEST_CASE("work that cannot be recorded runs directly, and says so") {
  for (const auto& [word, why] : {std::pair("no-graph", "no CUDA graph: a layer cannot be captured"),
                                  std::pair("breaks-capture",
                                            "no CUDA graph: CUDA's cuStreamEndCapture failed: "
                                            "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED (901)")}) {
    const EngineFolder folder("asmlp");
    EngineRequest request;
    request.words = {word};
    folder.add(request);
    const Session session = folder.load();
    const long launches = fake_gpu()->graph_launches;
    for (int i = 0; i < 4; ++i) {
      Call call(5, i);
      call.run(session);
      CHECK(call.right());
    }
    CHECK(fake_gpu()->graph_launches == launches);
    CHECK(session.graphs()[0].note == why);
  }
  CHECK(Existing().nothing());
}

TEST_CASE("CUDA may refuse a graph") {
  const EngineFolder folder("asmlp");
  folder.add();
  for (const std::string call : {"cuStreamBeginCapture", "cuGraphInstantiate"}) {
    const Session session = folder.load();
    Call(2).run(session);
    fake_gpu()->failing = call;
    for (int i = 0; i < 3; ++i) {
      Call again(2, i);
      again.run(session);
      CHECK(again.right());
    }
    CHECK(session.graphs()[0].note == "no CUDA graph: CUDA's " + call + " failed: CUDA_ERROR_LAUNCH_FAILED (719)");
  }
  CHECK(Existing().nothing());
}

TEST_CASE("after warm-up a call allocates nothing, on neither side") {
  const EngineFolder folder("asmlp");
  folder.add();
  const Session session = folder.load();
  for (const std::size_t rows : {1U, 3U, 8U, 19U}) {
    session.warmup(static_cast<int>(rows));
    Call call(rows);
    call.run(session);
    const long on_gpu = fake_gpu()->allocations;
    count_allocations(true);
    const Allocations before = allocations();
    for (int i = 0; i < 10; ++i) call.run(session);
    const Allocations after = allocations();
    count_allocations(false);
    CAPTURE(rows);
    CHECK(after.ours == before.ours);
#ifndef MLPDEPLOY_SANITIZED
    CHECK(after.backend > before.backend);  // otherwise nothing was counted
#endif
    CHECK(fake_gpu()->allocations == on_gpu);
    CHECK(call.right());
  }
}

TEST_CASE("a warm-up prepares every lane") {
  const EngineFolder folder("asmlp");
  folder.add();
  const Session session = folder.load();
  session.warmup(2, 2);
  CHECK(fake_gpu()->streams == 2);
  CHECK(fake_gpu()->contexts == 2);
  for (const GraphNote& note : session.graphs()) CHECK(note.note == "CUDA graph");
}

TEST_CASE("many threads use one session, and two lanes at most") {
  const EngineFolder folder("asmlp");
  folder.add();
  const Session session = folder.load();
  std::vector<Call> calls;
  for (int i = 0; i < 16; ++i) calls.emplace_back(1 + static_cast<std::size_t>(i) % 11, i);
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (Call& call : calls) {
    threads.emplace_back([&] {
      for (int i = 0; i < 20; ++i) {
        std::fill(call.logits.begin(), call.logits.end() - margin, 0.0F);
        call.run(session);
        wrong += !call.right();
      }
    });
  }
  for (int i = 0; i < 10; ++i) session.graphs();
  for (auto& thread : threads) thread.join();
  CHECK(wrong == 0);
  CHECK(fake_gpu()->streams == 2);
}

TEST_CASE("a failure is an error, and the next call is right again") {
  const EngineFolder folder("asmlp");
  folder.add();
  {
    const Session session = folder.load();
    const std::string name = "TensorRT " + fake_version();
    const auto refusal = [&](const char* what, std::size_t rows) {
      Call call(rows);
      fake_gpu()->failing = what;
      std::string text = refusal_of([&] { call.run(session); });
      CHECK(fake_gpu()->failing.empty());
      CHECK(fake_gpu()->waiting == 0);  // nothing uses the memory any more
      call.run(session);
      CHECK(call.right());
      return text;
    };
    CHECK(refusal("cuMemAlloc", 1) == "CUDA's cuMemAlloc failed: CUDA_ERROR_OUT_OF_MEMORY (2)");
    CHECK(refusal("cuMemHostAlloc", 2) == "CUDA's cuMemHostAlloc failed: CUDA_ERROR_OUT_OF_MEMORY (2)");
    CHECK(refusal("context", 4) == name + " cannot create an execution context; free memory of the GPU");
    CHECK(refusal("enqueue", 5) == name + " could not run the engine: the enqueue failed");
    for (const char* call : {"cuStreamSynchronize", "cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync"}) {
      CHECK(refusal(call, 19) == std::string("CUDA's ") + call + " failed: CUDA_ERROR_LAUNCH_FAILED (719)");
    }
    CHECK(refusal("cuGraphLaunch", 19) == "CUDA's cuGraphLaunch failed: CUDA_ERROR_LAUNCH_FAILED (719)");
  }
  CHECK(Existing().nothing());
}

TEST_CASE("where there is no memory for a second lane, one does") {
  const EngineFolder folder("asmlp");
  folder.add();
  const Session session = folder.load();
  Call(1).run(session);
  for (const char* call : {"cuStreamCreate", "cuMemAlloc"}) {
    fake_gpu()->failing = call;
    Call split(19);
    split.run(session);
    CHECK(fake_gpu()->failing.empty());
    CHECK(split.right());
    CHECK(fake_gpu()->streams == 1);
  }
  Call split(19);
  split.run(session);
  CHECK(fake_gpu()->streams == 2);
}

TEST_CASE("the limit of rows is the caller's or the engine's") {
  const EngineFolder folder("asmlp");
  folder.add();
  LoadOptions options;
  options.max_batch = 2;
  const Session session = folder.load(options);
  CHECK(session.max_batch() == 2);
  fake_gpu()->largest_batch = 0;
  Call call(7);
  call.run(session);
  CHECK(call.right());
  CHECK(fake_gpu()->largest_batch == 2);
  options.max_batch = 9;
  CHECK(folder.refusal(options) ==
        "max_batch is 9; wanted at most 8, as the engine was built; build one with --max-batch");
  const EngineFolder wide("asmlp");
  EngineRequest request;
  request.profiles = {{4, 8, 8}};
  wide.add(request);
  options.max_batch = 3;
  const Session narrow = wide.load(options);
  CHECK(refusal_of([&] { Call(7).run(narrow); }) ==
        "max_batch is 3, and the engine takes no fewer than 4 rows; wanted at least 4");
}

TEST_CASE("a fixed batch is padded") {
  const EngineFolder folder("fixed");
  folder.add();
  const Session session = folder.load();
  CHECK(session.fixed_batch() == 3);
  CHECK(session.max_batch() == 3);
  for (const std::size_t rows : {1U, 3U, 4U, 8U}) {
    Call call(rows);
    call.run(session);
    CHECK(call.right());
  }
}

TEST_CASE("open image sizes: outputs as the engine says, shapes come and go, others are refused") {
  const EngineFolder folder("features");
  EngineRequest request;
  request.sides = {32, 96};
  folder.add(request);
  {
    const Session session = folder.load();
    const auto run = [&](std::int64_t rows, std::int64_t height, std::int64_t width) {
      const std::int64_t shape[] = {rows, 3, height, width};
      std::vector<float> pixels(static_cast<std::size_t>(rows * 3 * height * width));
      for (std::size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<float>(i % 5);
      const auto outputs = session.run({{"input", DType::float32, shape, 4, pixels.data()}});
      REQUIRE(outputs.size() == 2);
      for (const Tensor& output : outputs) {
        CHECK(output.shape[0] == rows);
        CHECK(output.shape[2] == height);
        const std::size_t values = pixels.size() / static_cast<std::size_t>(rows);
        const std::size_t count = output.count() / static_cast<std::size_t>(rows);
        const auto last = static_cast<std::size_t>(rows - 1);
        CHECK(output.float32()[last * count + 3] == expected(pixels.data() + last * values, values, 3));
      }
    };
    for (int round = 0; round < 2; ++round) {
      for (std::int64_t side = 32; side <= 96; side += 8) {
        run(1, side, 32);
        run(3, 32, side);
        run(5, 40, side);
      }
    }
    CHECK(fake_gpu()->contexts == 24);  // of 27, in the one lane that was used
    run(11, 32, 40);
    const std::string text = refusal_of([&] { run(1, 104, 32); });
    CHECK(text ==
          "inputs of 3x104x32; wanted 3x32x32 to 3x96x96, as the engine was built; build one with --image-size");
  }
  CHECK(Existing().nothing());
}

TEST_CASE("requests are batched on an engine") {
  const EngineFolder folder("asmlp");
  folder.add();
  const Session session = folder.load();
  CHECK(session.lanes() == 2);
  BatchingSession batching(session);
  std::vector<Call> calls;
  std::vector<BatchingSession::Request> requests;
  for (int i = 0; i < 20; ++i) {
    calls.emplace_back(1, i);
    requests.push_back(
        batching.submit({"input", DType::float32, calls.back().input_shape, 4, calls.back().pixels.data()}));
  }
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const auto answer = requests[i].get();
    CHECK(answer[0].float32()[2] == expected(calls[i].pixels.data(), row_values, 2));
  }
}

TEST_CASE("the C interface takes the backend") {
  const EngineFolder folder("asmlp");
  folder.add();
  mlpdeploy_options options{};
  options.backend = "tensorrt";
  mlpdeploy_session* session = nullptr;
  REQUIRE(mlpdeploy_load(folder.path().c_str(), &options, &session) == 0);
  Call call(3);
  const mlpdeploy_tensor input{"input", "float32", call.input_shape, 4, call.pixels.data()};
  const mlpdeploy_tensor output{"logits", "float32", call.output_shape, 2, call.logits.data()};
  CHECK(mlpdeploy_run(session, &input, 1, &output, 1) == 0);
  CHECK(call.right());
  mlpdeploy_free(session);
  options.backend = "tensorflow";
  CHECK(mlpdeploy_load(folder.path().c_str(), &options, &session) == 2);
  CHECK(std::string(mlpdeploy_last_error()) == "unknown backend 'tensorflow'; did you mean tensorrt?");
}
