// Frames for an engine, on the simulated GPU: what is copied and launched, in which order, and what comes out.
#include <doctest/doctest.h>

#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "allocations.h"
#include "engines.h"
#include "fake_gpu.h"
#include "mlpdeploy.h"
#include "mlpdeploy/session.h"
#include "tensorrt/frame_kernel.h"

using namespace mlpdeploy;

namespace {

constexpr int side = 32, classes = 7;
constexpr std::size_t margin = 4;

// Frames whose lines lie apart, up or down, red or blue first; and the tensor that they stand for.
struct Frames {
  std::vector<std::vector<std::uint8_t>> memory;
  std::vector<ImageView> views;
  std::vector<float> pixels, logits;
  std::int64_t in[4], out[2];

  Frames(const Session& session, std::size_t rows, unsigned seed = 1)
      : logits(rows * classes + margin, -1.0F),
        in{static_cast<std::int64_t>(rows), 3, side, side},
        out{static_cast<std::int64_t>(rows), classes} {
    std::mt19937 random(seed);
    Preprocessing known = *session.preprocessing();
    known.crop_pct = 1.0;
    const Preprocessor prepare(known);
    pixels.resize(rows * prepare.count());
    for (std::size_t i = 0; i < rows; ++i) {
      const std::ptrdiff_t apart = 3 * side + static_cast<std::ptrdiff_t>(i % 5);
      auto& bytes = memory.emplace_back(static_cast<std::size_t>((side - 1) * apart + 3 * side));
      for (auto& value : bytes) value = static_cast<std::uint8_t>(random());
      const bool upwards = i % 3 == 1;
      views.push_back({bytes.data() + (upwards ? (side - 1) * apart : 0), side, side, upwards ? -apart : apart,
                       i % 2 ? PixelOrder::bgr : PixelOrder::rgb});
      prepare(views.back(), pixels.data() + i * prepare.count());
    }
  }

  void run(const Session& session) {
    const MutableTensorView output{"logits", DType::float32, out, 2, logits.data()};
    session.run_frames(views.data(), views.size(), &output, 1);
  }

  // What the prepared tensor gives.
  std::vector<float> wanted(const Session& session) const {
    std::vector<float> values(logits.size(), -1.0F);
    const TensorView input{"input", DType::float32, in, 4, pixels.data()};
    const MutableTensorView output{"logits", DType::float32, out, 2, values.data()};
    session.run(&input, 1, &output, 1);
    return values;
  }
};

bool same(const std::vector<float>& left, const std::vector<float>& right) {
  return left.size() == right.size() && std::memcmp(left.data(), right.data(), left.size() * sizeof(float)) == 0;
}

bool without_kernel() {
  if (frame_kernel_image_bytes > 0) return false;
  MESSAGE("built without nvcc: the kernel's launch is not tested");
  return true;
}

}  // namespace

TEST_CASE("without nvcc the processor normalizes, and the session says so") {
  if (!without_kernel()) return;
  const EngineFolder folder("asmlp");
  folder.add();
  const Session session = folder.load();
  CHECK(session.frames() == "processor: the library was built without nvcc");
  Frames frames(session, 5);
  frames.run(session);
  CHECK(same(frames.logits, frames.wanted(session)));
}

TEST_CASE("any number of frames is normalized by the kernel, to the same bits, and padding stays inside") {
  if (without_kernel()) return;
  const EngineFolder folder("asmlp");
  folder.add({{}, {{2, 2, 3}, {4, 8, 8}}});
  const Session session = folder.load();
  CHECK(session.frames() == "CUDA kernel");
  for (const std::size_t rows : {1U, 2U, 3U, 5U, 8U, 9U, 21U}) {
    CAPTURE(rows);
    Frames frames(session, rows, static_cast<unsigned>(rows));
    const auto wanted = frames.wanted(session);
    const long launches = fake_gpu()->kernel_launches, lines = fake_gpu()->line_copies, copies = fake_gpu()->copies;
    for (int i = 0; i < 3; ++i) {  // directly, recorded, and as a graph
      std::fill(frames.logits.begin(), frames.logits.end(), -1.0F);
      frames.run(session);
      CHECK(same(frames.logits, wanted));
    }
    // One copy of lines and one kernel a frame; all other copies are of results.
    CHECK(fake_gpu()->kernel_launches - launches == 3 * static_cast<long>(rows));
    CHECK(fake_gpu()->line_copies - lines == 3 * static_cast<long>(rows));
    const long parts = rows <= 8 ? 1 : rows <= 16 ? 2 : 3;
    CHECK(fake_gpu()->copies - copies == 3 * parts);
  }
  CHECK(fake_gpu()->waiting == 0);
}

TEST_CASE("frames and tensors take turns in the same slots") {
  if (without_kernel()) return;
  const EngineFolder folder("asmlp");
  folder.add();
  const Session session = folder.load();
  Frames first(session, 4, 1), second(session, 4, 2);
  const auto wanted = first.wanted(session);
  for (int i = 0; i < 4; ++i) {
    first.run(session);
    CHECK(same(first.logits, wanted));
    CHECK(same(second.wanted(session), second.wanted(session)));
  }
}

TEST_CASE("after warm-up frames allocate nothing, on neither side") {
  if (without_kernel()) return;
  const EngineFolder folder("asmlp");
  folder.add();
  {
    const Session session = folder.load();
    Frames frames(session, 11);
    for (int i = 0; i < 6; ++i) frames.run(session);
    const long device = fake_gpu()->allocations;
    count_allocations(true);
    const Allocations before = allocations();
    for (int i = 0; i < 10; ++i) frames.run(session);
    const Allocations after = allocations();
    count_allocations(false);
    CHECK(after.ours - before.ours == 0);
    CHECK(fake_gpu()->allocations == device);
  }
  CHECK(fake_gpu()->modules == 0);
  CHECK(fake_gpu()->device_blocks == 0);
}

TEST_CASE("many threads send frames to one session") {
  if (without_kernel()) return;
  const EngineFolder folder("asmlp");
  folder.add();
  const Session session = folder.load();
  std::vector<std::unique_ptr<Frames>> calls;
  std::vector<std::vector<float>> wanted;
  for (unsigned i = 0; i < 8; ++i) {
    calls.push_back(std::make_unique<Frames>(session, 1 + i % 6, i));
    wanted.push_back(calls.back()->wanted(session));
  }
  std::vector<std::thread> threads;
  for (auto& call : calls) {
    threads.emplace_back([&] {
      for (int i = 0; i < 10; ++i) call->run(session);
    });
  }
  for (auto& thread : threads) thread.join();
  for (std::size_t i = 0; i < calls.size(); ++i) CHECK(same(calls[i]->logits, wanted[i]));
}

TEST_CASE("a failure is an error, and the next frames are right again") {
  if (without_kernel()) return;
  const EngineFolder folder("asmlp");
  folder.add();
  const Session session = folder.load();
  Frames frames(session, 5);
  const auto wanted = frames.wanted(session);
  for (const char* call : {"cuMemcpy2DAsync", "cuLaunchKernel", "cuStreamSynchronize", "cuGraphLaunch"}) {
    CAPTURE(call);
    fake_gpu()->failing = call;
    CHECK_THROWS_AS(frames.run(session), Error);
    CHECK(fake_gpu()->waiting == 0);
    frames.run(session);
    CHECK(same(frames.logits, wanted));
  }
  Frames padded(session, 3);
  fake_gpu()->failing = "cuMemsetD8Async";
  CHECK_THROWS_AS(padded.run(session), Error);
  padded.run(session);
  CHECK(same(padded.logits, padded.wanted(session)));
}

TEST_CASE("a GPU that cannot load the kernel leaves frames to the processor, and says why") {
  if (without_kernel()) return;
  const EngineFolder folder("asmlp");
  folder.add();
  fake_gpu()->failing = "cuModuleLoadData";
  const Session session = folder.load();
  CHECK(session.frames() == "processor: CUDA's cuModuleLoadData failed: CUDA_ERROR_LAUNCH_FAILED (719)");
  Frames frames(session, 5);
  const long launches = fake_gpu()->kernel_launches;
  frames.run(session);
  CHECK(same(frames.logits, frames.wanted(session)));
  CHECK(fake_gpu()->kernel_launches == launches);
}

TEST_CASE("the C interface takes frames") {
  const EngineFolder folder("asmlp");
  folder.add();
  const Session session = folder.load();
  Frames frames(session, 3);
  mlpdeploy_options options{};
  options.backend = "tensorrt";
  mlpdeploy_session* handle = nullptr;
  REQUIRE(mlpdeploy_load(folder.path().c_str(), &options, &handle) == 0);
  std::vector<mlpdeploy_frame> views;
  for (const ImageView& view : frames.views) {
    views.push_back({view.pixels, view.height, view.width, view.stride_bytes, view.order == PixelOrder::bgr});
  }
  const mlpdeploy_tensor output{"logits", "float32", frames.out, 2, frames.logits.data()};
  CHECK(mlpdeploy_run_frames(handle, views.data(), views.size(), &output, 1) == 0);
  CHECK(same(frames.logits, frames.wanted(session)));
  CHECK(mlpdeploy_run_frames(handle, nullptr, 2, &output, 1) == 2);
  CHECK(std::string(mlpdeploy_last_error()) == "the frames is NULL; wanted a pointer");
  mlpdeploy_free(handle);
}
