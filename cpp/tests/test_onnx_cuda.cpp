// ONNX Runtime's CUDA provider, with the one of fakes/ that computes on the CPU.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "allocations.h"
#include "artifacts.h"
#include "fake_onnxruntime.h"
#include "json.h"
#include "mlpdeploy/session.h"
#include "scratch.h"
#include "sha256.h"

using namespace mlpdeploy;
namespace fs = std::filesystem;

namespace {

constexpr std::size_t row_values = 3 * 32 * 32, classes = 7, margin = 4;

struct Call {
  std::int64_t input_shape[4], output_shape[2];
  std::vector<float> pixels, logits;

  explicit Call(std::size_t rows, float phase = 0)
      : input_shape{static_cast<std::int64_t>(rows), 3, 32, 32},
        output_shape{static_cast<std::int64_t>(rows), classes},
        pixels(rows * row_values),
        logits(rows * classes + margin, -1.0F) {
    for (std::size_t i = 0; i < pixels.size(); ++i) pixels[i] = std::sin(phase + static_cast<float>(i) * 0.37F);
  }

  const std::vector<float>& run(const Session& session) {
    const TensorView input{"input", DType::float32, input_shape, 4, pixels.data()};
    const MutableTensorView output{"logits", DType::float32, output_shape, 2, logits.data()};
    session.run(&input, 1, &output, 1);
    return logits;
  }
};

LoadOptions on(const char* device, const char* role = "") {
  LoadOptions options;
  options.device = device;
  options.role = role;
  options.threads = 2;
  options.max_batch = 4;
  return options;
}

std::string refusal(const fs::path& folder, const LoadOptions& options) {
  try {
    Session::load(folder, options);
  } catch (const Error& error) {
    return std::to_string(error.exit_code()) + " " + error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("on a GPU the canonical file runs, on the GPU that is named and without TF32") {
  const int before = fake_provider().appended;
  const Session session = Session::load(artifact("asmlp"), on("cuda:1"));
  CHECK(session.model().file == "model.onnx");
  CHECK(session.backend() == "onnxruntime");
  CHECK(fake_provider().appended == before + 1);
  CHECK(fake_provider().options == std::map<std::string, std::string>{{"device_id", "1"}, {"use_tf32", "0"}});
  CHECK(Session::load(artifact("asmlp"), on("cuda", "cpu")).model().file == "model.cpu.onnx");
  CHECK(fake_provider().options["device_id"] == "0");
  CHECK(fake_provider().option_objects == 0);
}

TEST_CASE("without a device the CPU computes, also where there is a provider") {
  const int before = fake_provider().appended;
  for (const char* device : {"", "cpu"}) {
    CHECK(Session::load(artifact("asmlp"), on(device)).model().file == "model.cpu.onnx");
  }
  CHECK(fake_provider().appended == before);
}

TEST_CASE("any batch is computed through pinned memory, to the same bits, and nothing else is written") {
  for (const char* name : {"asmlp", "fixed"}) {
    CAPTURE(name);
    const Session gpu = Session::load(artifact(name), on("cuda")), cpu = Session::load(artifact(name), on("", "canonical"));
    for (const std::size_t rows : {1U, 2U, 3U, 4U, 7U, 9U}) {
      CAPTURE(rows);
      Call ours(rows), theirs(rows);
      const int plain = fake_provider().plain_values, pinned = fake_provider().pinned_values;
      ours.run(gpu);
      CHECK(fake_provider().plain_values == plain);
      CHECK(fake_provider().pinned_values > pinned);
      theirs.run(cpu);
      CHECK(std::memcmp(ours.logits.data(), theirs.logits.data(), ours.logits.size() * sizeof(float)) == 0);
      for (std::size_t i = rows * classes; i < ours.logits.size(); ++i) CHECK(ours.logits[i] == -1.0F);
    }
  }
}

TEST_CASE("open output sizes are found out by running") {
  const Session gpu = Session::load(artifact("features"), on("cuda"));
  const Session cpu = Session::load(artifact("features"), on("", "canonical"));
  const std::vector<float> pixels(5 * 3 * 64 * 40, 0.5F);
  const std::int64_t shape[] = {5, 3, 64, 40};
  const TensorView input{"input", DType::float32, shape, 4, pixels.data()};
  const auto ours = gpu.run({input}), theirs = cpu.run({input});
  REQUIRE(ours.size() == theirs.size());
  for (std::size_t i = 0; i < ours.size(); ++i) {
    CHECK(ours[i].shape == theirs[i].shape);
    CHECK(ours[i].bytes == theirs[i].bytes);
  }
}

TEST_CASE("after warm-up nothing is allocated, and pinned memory goes back at the end") {
  {
    const Session session = Session::load(artifact("asmlp"), on("cuda"));
    Call call(6);
    for (int i = 0; i < 3; ++i) call.run(session);
    const int blocks = fake_provider().pinned_blocks;
    CHECK(blocks == 2);
    count_allocations(true);
    const Allocations before = allocations();
    for (int i = 0; i < 10; ++i) call.run(session);
    const Allocations after = allocations();
    count_allocations(false);
    CHECK(after.ours - before.ours == 0);
    CHECK(fake_provider().pinned_blocks == blocks);
    Call larger(40), smaller(1);
    larger.run(session), smaller.run(session);
    CHECK(fake_provider().pinned_blocks == blocks);
  }
  CHECK(fake_provider().pinned_blocks == 0);
  CHECK(fake_provider().allocators == 0);
}

TEST_CASE("many threads use one session") {
  const Session session = Session::load(artifact("asmlp"), on("cuda"));
  std::vector<Call> calls;
  for (std::size_t i = 0; i < 8; ++i) calls.emplace_back(1 + i % 5, static_cast<float>(i));
  std::vector<std::vector<float>> alone;
  for (Call& call : calls) alone.push_back(call.run(session));
  std::vector<std::thread> threads;
  for (Call& call : calls) {
    threads.emplace_back([&] {
      for (int i = 0; i < 5; ++i) call.run(session);
    });
  }
  for (auto& thread : threads) thread.join();
  for (std::size_t i = 0; i < calls.size(); ++i) CHECK(calls[i].logits == alone[i]);
}

TEST_CASE("a provider that does not run here is an error, and never the CPU") {
  const std::string tail =
      "); wanted a GPU, and the CUDA and cuDNN that this ONNX Runtime was built for; see: mlpdeploy doctor, or use "
      "--device cpu";
  const auto contains = [](const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
  };
  fake_provider().failing = "append";
  const std::string append = refusal(artifact("asmlp"), on("cuda:2"));
  CHECK(contains(append, "1 device cuda:2, but the CUDA provider of ONNX Runtime "));
  CHECK(contains(append, " does not run here ([ONNXRuntimeError] : 1 : FAIL : libonnxruntime_providers_cuda.so cannot be "
                         "loaded" + tail));
  fake_provider().failing = "session";
  CHECK(contains(refusal(artifact("asmlp"), on("cuda")), "CUDA failure 100: no CUDA-capable device is detected" + tail));
  CHECK(fake_provider().option_objects == 0);

  const Session session = Session::load(artifact("asmlp"), on("cuda"));
  Call call(2);
  fake_provider().failing = "pinned";
  try {
    call.run(session);
    FAIL("not refused");
  } catch (const Error& error) {
    CHECK(error.kind() == ErrorKind::backend);
    CHECK(std::string(error.what()) ==
          "no pinned memory for a batch ([ONNXRuntimeError] : 1 : FAIL : CUDA failure 2: out of memory)");
  }
  const std::vector<float> after = call.run(session);
  CHECK(after == Call(2).run(Session::load(artifact("asmlp"), on("", "canonical"))));
}

TEST_CASE("devices that there are not, a library without the provider, and another precision") {
  CHECK(refusal(artifact("asmlp"), on("gpu")) == "2 unknown device 'gpu'; wanted cpu or cuda");
  CHECK(refusal(artifact("asmlp"), on("cuda:x")) == "2 device 'cuda:x'; wanted cuda, or cuda:1 for the second GPU");
  fake_provider().built = false;
  CHECK(refusal(artifact("asmlp"), on("cuda")) ==
        "2 this ONNX Runtime has no CUDA provider; load a libonnxruntime.so.1 of a package for GPUs, or "
        "use --device cpu");
  fake_provider().built = true;

  const ScratchFolder scratch("half");
  const fs::path& folder = scratch.path();
  std::ostringstream text;
  text << std::ifstream(artifact("asmlp") / "manifest.json").rdbuf();
  Json body = parse_json(text.str());
  auto& members = body.members;
  const auto checksum = [](const auto& member) { return member.first == "sha256"; };
  members.erase(std::remove_if(members.begin(), members.end(), checksum), members.end());
  for (auto& [name, value] : members) {
    if (name == "precision") value = Json("fp16");
  }
  body.set("sha256", sha256_of(canonical_json(body)));
  std::ofstream(folder / "manifest.json") << indented_json(body);
  CHECK(refusal(folder, on("cuda:0")) == "2 an artifact in fp16 on cuda:0; wanted a float32 artifact, or --device cpu");
}
