#include "onnxruntime.h"

#include <onnxruntime_c_api.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <iterator>
#include <mutex>

namespace mlpdeploy {

namespace {

const OrtApi& api() {
  static const OrtApi* const found = OrtGetApiBase()->GetApi(ORT_API_VERSION);
  if (!found) {
    throw Error(ErrorKind::backend, "ONNX Runtime " + OnnxModel::version() + " is older than the headers",
                "interface version " + std::to_string(ORT_API_VERSION), "load a newer libonnxruntime.so.1");
  }
  return *found;
}

// As Python's binding words it.
const char* code_name(OrtErrorCode code) {
  constexpr const char* names[] = {"SUCCESS",           "FAIL",
                                   "INVALID_ARGUMENT",  "NO_SUCHFILE",
                                   "NO_MODEL",          "ENGINE_ERROR",
                                   "RUNTIME_EXCEPTION", "INVALID_PROTOBUF",
                                   "MODEL_LOADED",      "NOT_IMPLEMENTED",
                                   "INVALID_GRAPH",     "EP_FAIL"};
  return static_cast<std::size_t>(code) < std::size(names) ? names[code] : "GENERAL ERROR";
}

// The first line of a failure; frees it.
std::string taken_message(OrtStatus* status) {
  const OrtErrorCode code = api().GetErrorCode(status);
  std::string text = api().GetErrorMessage(status);
  api().ReleaseStatus(status);
  text.erase(std::find(text.begin(), text.end(), '\n'), text.end());
  return "[ONNXRuntimeError] : " + std::to_string(code) + " : " + code_name(code) + " : " + text;
}

// As in Python.
constexpr const char* cuda_wanted = "a GPU, and the CUDA and cuDNN that this ONNX Runtime was built for";
constexpr const char* cuda_fix = "see: mlpdeploy doctor, or use --device cpu";

struct RuntimeFailure {
  std::string message;
};

void check(OrtStatus* status) {
  if (status) throw RuntimeFailure{taken_message(status)};
}

template <typename T, void (*OrtApi::*Release)(T*)>
struct Releaser {
  void operator()(T* object) const { (api().*Release)(object); }
};

template <typename T, void (*OrtApi::*Release)(T*)>
using Handle = std::unique_ptr<T, Releaser<T, Release>>;

using Environment = Handle<OrtEnv, &OrtApi::ReleaseEnv>;
using Options = Handle<OrtSessionOptions, &OrtApi::ReleaseSessionOptions>;
using SessionHandle = Handle<OrtSession, &OrtApi::ReleaseSession>;
using MemoryInfo = Handle<OrtMemoryInfo, &OrtApi::ReleaseMemoryInfo>;
using ShapeInfo = Handle<OrtTensorTypeAndShapeInfo, &OrtApi::ReleaseTensorTypeAndShapeInfo>;
using CudaOptions = Handle<OrtCUDAProviderOptionsV2, &OrtApi::ReleaseCUDAProviderOptions>;
using Allocator = Handle<OrtAllocator, &OrtApi::ReleaseAllocator>;

// One environment while any model is loaded; it has to outlive them all.
std::shared_ptr<OrtEnv> environment() {
  static std::mutex mutex;
  static std::weak_ptr<OrtEnv> known;
  const std::lock_guard<std::mutex> lock(mutex);
  if (auto existing = known.lock()) return existing;
  setenv("ORT_DISABLE_TELEMETRY", "1", 0);  // ONNX Runtime 1.31 reports to its maker from here on
  OrtEnv* created = nullptr;
  // It would print an error that its status says, too; the library prints nothing.
  check(api().CreateEnv(ORT_LOGGING_LEVEL_FATAL, "mlpdeploy", &created));
  std::shared_ptr<OrtEnv> owner(created, Releaser<OrtEnv, &OrtApi::ReleaseEnv>());
  known = owner;
  return owner;
}

// Whether this processor adds two products of uint8 and int8 in 16 bits: x86-64 with AVX2, without VNNI.
bool sums_of_int8_saturate() {
#if defined(__x86_64__)
  unsigned a = 0, b = 0, c = 0, d = 0, more = 0, unused = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  if (a >= 1) __get_cpuid_count(7, 1, &more, &unused, &unused, &unused);
  const bool avx2 = b >> 5 & 1, avx512_vnni = c >> 11 & 1, amx_int8 = d >> 25 & 1, avx_vnni = more >> 4 & 1;
  return avx2 && !avx512_vnni && !amx_int8 && !avx_vnni;
#else
  return false;
#endif
}

Options session_options(int threads, const std::filesystem::path& kernels) {
  OrtSessionOptions* created = nullptr;
  check(api().CreateSessionOptions(&created));
  Options options(created);
  check(api().SetIntraOpNumThreads(created, threads));
  check(api().SetInterOpNumThreads(created, 1));
  // Weights outside of the arena, which grows in powers of two.
  check(api().AddSessionConfigEntry(created, "session.use_device_allocator_for_initializers", "1"));
  // Without VNNI sums of 8-bit products saturate but for this; with it the option would only cost time.
  if (sums_of_int8_saturate()) check(api().AddSessionConfigEntry(created, "session.x64quantprecision", "1"));
  check(api().SetSessionLogSeverityLevel(created, ORT_LOGGING_LEVEL_FATAL));
  if (!kernels.empty()) check(api().RegisterCustomOpsLibrary_V2(created, kernels.c_str()));
  return options;
}

// This interface, unlike Python's, fails where the provider cannot be used, and never takes the CPU instead.
void append_cuda(OrtSessionOptions* options, int gpu) {
  OrtCUDAProviderOptionsV2* created = nullptr;
  check(api().CreateCUDAProviderOptions(&created));
  const CudaOptions cuda(created);
  const std::string index = std::to_string(gpu);
  const char *const keys[] = {"device_id", "use_tf32"}, *const values[] = {index.c_str(), "0"};
  check(api().UpdateCUDAProviderOptions(created, keys, values, std::size(keys)));
  check(api().SessionOptionsAppendExecutionProvider_CUDA_V2(options, created));
}

ONNXTensorElementDataType element_type(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    case DType::float64:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE;
    case DType::float16:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    case DType::int64:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    case DType::int32:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
    case DType::uint8:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
    case DType::int8:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
  }
  return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
}

// ONNX Runtime's handles on the tensors of one run; on the stack, released at its end.
struct Values {
  OrtValue* handles[max_tensors] = {};
  std::size_t count = 0;

  Values() = default;
  Values(const Values&) = delete;
  Values& operator=(const Values&) = delete;
  ~Values() {
    for (std::size_t i = 0; i < count; ++i) {
      if (handles[i]) api().ReleaseValue(handles[i]);
    }
  }

  void add(const OrtMemoryInfo* memory, const Binding& tensor) {
    OrtValue*& handle = handles[count++];
    if (!tensor.data) return;
    const auto bytes = tensor.row_bytes() * static_cast<std::size_t>(tensor.shape[0]);
    check(api().CreateTensorWithDataAsOrtValue(memory, tensor.data, bytes, tensor.shape, tensor.rank,
                                               element_type(tensor.dtype), &handle));
  }
};

Binding binding_of(OrtValue* value, DType dtype) {
  OrtTensorTypeAndShapeInfo* created = nullptr;
  check(api().GetTensorTypeAndShape(value, &created));
  const ShapeInfo info(created);
  Binding result;
  result.dtype = dtype;
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  check(api().GetTensorElementType(created, &type));
  check(api().GetDimensionsCount(created, &result.rank));
  if (result.rank < 1 || result.rank > max_rank || type != element_type(dtype)) {
    throw RuntimeFailure{"an output is not what the manifest says"};
  }
  check(api().GetDimensions(created, result.shape, result.rank));
  check(api().GetTensorMutableData(value, &result.data));
  return result;
}

}  // namespace

struct OnnxModel::Impl {
  std::shared_ptr<OrtEnv> environment;
  MemoryInfo memory;
  SessionHandle session;
  Allocator pinned;                // on a GPU
  std::vector<std::string> names;  // of inputs, then outputs; the pointers below point here
  std::vector<const char*> inputs, outputs;
  std::vector<DType> output_types;
};

OnnxModel::OnnxModel(const std::filesystem::path& file, int threads, std::optional<int> gpu,
                     const std::filesystem::path& kernels, const std::vector<TensorSpec>& inputs,
                     const std::vector<TensorSpec>& outputs)
    : impl_(std::make_unique<Impl>()) {
  try {
    impl_->environment = mlpdeploy::environment();
    const Options options = session_options(threads, kernels);
    if (gpu) append_cuda(options.get(), *gpu);
    OrtMemoryInfo* memory = nullptr;
    check(gpu ? api().CreateMemoryInfo("CudaPinned", OrtDeviceAllocator, *gpu, OrtMemTypeCPUOutput, &memory)
              : api().CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
    impl_->memory.reset(memory);
    OrtSession* session = nullptr;
    check(api().CreateSession(impl_->environment.get(), file.c_str(), options.get(), &session));
    impl_->session.reset(session);
    OrtAllocator* pinned = nullptr;
    if (gpu) check(api().CreateAllocator(session, memory, &pinned));
    impl_->pinned.reset(pinned);
  } catch (const RuntimeFailure& failure) {
    if (gpu) {
      throw Error(ErrorKind::backend,
                  "device cuda:" + std::to_string(*gpu) + ", but the CUDA provider of ONNX Runtime " + version() +
                      " does not run here (" + failure.message + ")",
                  cuda_wanted, cuda_fix);
    }
    throw Error(ErrorKind::artifact,
                "ONNX Runtime " + version() + " cannot load " + file.string() + " (" + failure.message + ")", "",
                "export or quantize the model again");
  }
  for (const auto* specs : {&inputs, &outputs}) {
    for (const TensorSpec& spec : *specs) impl_->names.push_back(spec.name);
  }
  for (std::size_t i = 0; i < impl_->names.size(); ++i) {
    (i < inputs.size() ? impl_->inputs : impl_->outputs).push_back(impl_->names[i].c_str());
  }
  for (const TensorSpec& spec : outputs) impl_->output_types.push_back(spec.dtype);
}

OnnxModel::OnnxModel(OnnxModel&&) noexcept = default;
OnnxModel::~OnnxModel() = default;

void OnnxModel::run(const Binding* inputs, const Binding* outputs, Take take, void* context) const {
  try {
    Values feeds, results;
    for (std::size_t i = 0; i < impl_->inputs.size(); ++i) feeds.add(impl_->memory.get(), inputs[i]);
    for (std::size_t i = 0; i < impl_->outputs.size(); ++i) results.add(impl_->memory.get(), outputs[i]);
    // Values that already have memory are written to in place: this is what an I/O binding does, without its objects.
    check(api().Run(impl_->session.get(), nullptr, impl_->inputs.data(), feeds.handles, feeds.count,
                    impl_->outputs.data(), results.count, results.handles));
    for (std::size_t i = 0; i < results.count; ++i) {
      if (!outputs[i].data && take) take(context, i, binding_of(results.handles[i], impl_->output_types[i]));
    }
  } catch (const RuntimeFailure& failure) {
    throw Error(ErrorKind::backend,
                "ONNX Runtime " + version() + " cannot compute this batch (" + failure.message + ")");
  }
}

std::string OnnxModel::version() { return OrtGetApiBase()->GetVersionString(); }

bool OnnxModel::has_cuda() {
  char** names = nullptr;
  int count = 0;
  if (OrtStatus* failed = api().GetAvailableProviders(&names, &count)) return api().ReleaseStatus(failed), false;
  const auto cuda = [](const char* name) { return std::string_view(name) == "CUDAExecutionProvider"; };
  const bool found = std::any_of(names, names + count, cuda);
  if (OrtStatus* failed = api().ReleaseAvailableProviders(names, count)) api().ReleaseStatus(failed);
  return found;
}

std::string OnnxModel::refusal(const std::filesystem::path& kernels) {
  try {
    session_options(1, kernels);
  } catch (const RuntimeFailure& failure) {
    return failure.message;
  }
  return "";
}

Staging::~Staging() { release(); }

void Staging::release() noexcept {
  if (!pinned_) return;
  if (OrtStatus* failed = api().AllocatorFree(model_->impl_->pinned.get(), pinned_)) api().ReleaseStatus(failed);
  pinned_ = nullptr;
  pinned_bytes_ = 0;
}

void* Staging::room(const OnnxModel& model, std::size_t bytes) {
  OrtAllocator* const allocator = model.impl_->pinned.get();
  if (!allocator) {
    if (plain_.size() < bytes) plain_.resize(bytes);
    return plain_.data();
  }
  if (pinned_bytes_ >= bytes) return pinned_;
  release();
  if (OrtStatus* failed = api().AllocatorAlloc(allocator, bytes, &pinned_)) {
    throw Error(ErrorKind::backend, "no pinned memory for a batch (" + taken_message(failed) + ")");
  }
  model_ = &model;
  pinned_bytes_ = bytes;
  return pinned_;
}

}  // namespace mlpdeploy
