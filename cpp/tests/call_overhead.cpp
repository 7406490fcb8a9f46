// call_overhead FOLDER [RUNS]: microseconds of Session::run beyond ONNX Runtime's own run of the same row, as JSON.
//
// Both run in turn in one loop; the difference of each pair is taken, and the median of the differences.
#include <onnxruntime_c_api.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <vector>

#include "mlpdeploy/session.h"

namespace {

using Clock = std::chrono::steady_clock;

const OrtApi& api() { return *OrtGetApiBase()->GetApi(ORT_API_VERSION); }

void check(OrtStatus* status) {
  if (status) throw std::runtime_error(api().GetErrorMessage(status));
}

// The first row of an input or an output.
struct Row {
  std::vector<std::int64_t> shape;
  std::vector<float> values;

  explicit Row(const mlpdeploy::TensorSpec& spec) {
    std::size_t count = 1;
    for (const auto& axis : spec.shape) {
      shape.push_back(axis.fixed() ? axis.size : 1);
      count *= static_cast<std::size_t>(shape.back());
    }
    values.resize(count);
  }

  OrtValue* value() {
    OrtMemoryInfo* memory = nullptr;
    check(api().CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
    OrtValue* created = nullptr;
    check(api().CreateTensorWithDataAsOrtValue(memory, values.data(), values.size() * sizeof(float), shape.data(),
                                               shape.size(), ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &created));
    return created;
  }
};

// ONNX Runtime with the session's options and with everything prepared that can be. Freed with the process.
OrtSession* backend_of(const std::filesystem::path& file) {
  OrtEnv* environment = nullptr;
  OrtSessionOptions* options = nullptr;
  OrtSession* session = nullptr;
  check(api().CreateEnv(ORT_LOGGING_LEVEL_ERROR, "overhead", &environment));
  check(api().CreateSessionOptions(&options));
  check(api().SetIntraOpNumThreads(options, 1));
  check(api().SetInterOpNumThreads(options, 1));
  check(api().AddSessionConfigEntry(options, "session.use_device_allocator_for_initializers", "1"));
  check(api().CreateSession(environment, file.c_str(), options, &session));
  return session;
}

double median(std::vector<double>& values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

template <typename Work>
double microseconds(Work&& work) {
  const auto start = Clock::now();
  work();
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

void measure(const char* folder, int runs) {
  using namespace mlpdeploy;
  constexpr int warmup = 20;
  LoadOptions options;
  options.threads = 1;
  const Session session = Session::load(folder, options);
  OrtSession* backend = backend_of(std::filesystem::path(folder) / session.model().file);
  const TensorSpec &in = session.inputs().front(), &out = session.outputs().front();
  Row feed(in), result(out);
  const TensorView input{in.name, DType::float32, feed.shape.data(), feed.shape.size(), feed.values.data()};
  const MutableTensorView output{out.name, DType::float32, result.shape.data(), result.shape.size(),
                                 result.values.data()};
  const OrtValue* feeds[] = {feed.value()};
  OrtValue* results[] = {result.value()};
  const char *input_names[] = {in.name.c_str()}, *output_names[] = {out.name.c_str()};
  const auto whole = [&] { session.run(&input, 1, &output, 1); };
  const auto alone = [&] { check(api().Run(backend, nullptr, input_names, feeds, 1, output_names, 1, results)); };
  std::vector<double> backend_us, session_us, difference_us;
  for (int i = 0; i < runs + warmup; ++i) {
    const double first = i % 2 ? microseconds(whole) : microseconds(alone);
    const double second = i % 2 ? microseconds(alone) : microseconds(whole);
    if (i < warmup) continue;
    backend_us.push_back(i % 2 ? second : first);
    session_us.push_back(i % 2 ? first : second);
    difference_us.push_back(session_us.back() - backend_us.back());
  }
  std::printf("{\"runs\": %d, \"backend_us\": %.3f, \"session_us\": %.3f, \"overhead_us\": %.3f}\n", runs,
              median(backend_us), median(session_us), median(difference_us));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  ::setenv("MLPDEPLOY_NATIVE", "0", 1);  // the other side of the comparison does not register our operators
  try {
    measure(argv[1], argc > 2 ? std::atoi(argv[2]) : 2000);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "call_overhead: %s\n", error.what());
    return 1;
  }
}
