#include "nvinfer.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "../text.h"
#include "dynamic_library.h"

// From 10.1 on scratch memory is given with its size; earlier versions have no such functions, and 11 no others.
#define MLPDEPLOY_SIZED_SCRATCH (NV_TENSORRT_MAJOR > 10 || (NV_TENSORRT_MAJOR == 10 && NV_TENSORRT_MINOR >= 1))

namespace mlpdeploy {

namespace {

using nvinfer1::Dims;

constexpr int major = NV_TENSORRT_MAJOR;
static_assert(major == 8 ? NV_TENSORRT_MINOR >= 6 : major == 10 || major == 11, "TensorRT 8.6, 10 or 11 is wanted");

std::string dotted(std::initializer_list<int> numbers) {
  std::vector<std::string> parts;
  for (const int number : numbers) parts.push_back(std::to_string(number));
  return join(parts, ".");
}

[[noreturn]] void refuse(const std::string& got, const std::string& wanted = "", const std::string& fix = "") {
  throw Error(ErrorKind::backend, got, wanted, fix);
}

std::string headers() { return dotted({major, NV_TENSORRT_MINOR, NV_TENSORRT_PATCH}); }

// Another major version's library, where one is there.
std::string other_version() {
  for (const int other : {11, 10, 9, 8}) {
    const std::string name = "libnvinfer.so." + std::to_string(other);
    if (other != major && DynamicLibrary(name.c_str())) return name;
  }
  return "";
}

// Major, minor and patch of a library: 8601 is 8.6.1, and 101401 is 10.14.1.
std::array<int, 3> numbers_of(int version) {
  if (version < 10000) return {version / 1000, version / 100 % 10, version % 100};
  return {version / 10000, version / 100 % 100, version % 100};
}

Nvinfer opened() {
  const std::string name = "libnvinfer.so." + std::to_string(major);
  static const DynamicLibrary library(name.c_str());
  const std::string here = "libmlpdeploy was compiled for TensorRT " + std::to_string(major);
  if (!library) {
    const std::string other = other_version();
    if (other.empty()) {
      refuse(name + " cannot be loaded (" + library.error() + ")",
             "TensorRT " + headers() + " or a later " + std::to_string(major),
             "install it, or name its folder in LD_LIBRARY_PATH");
    }
    refuse("the TensorRT that is installed is " + other + ", and " + here, name,
           "compile libmlpdeploy with the headers of the installed one");
  }
  std::int32_t (*version)() = nullptr;
  std::int32_t (*build)() = nullptr;
  Nvinfer found;
  if (!library.find(version, "getInferLibVersion") ||
      !library.find(found.create_runtime, "createInferRuntime_INTERNAL")) {
    refuse(name + " is no TensorRT", "its functions", "install TensorRT " + std::to_string(major) + " again");
  }
  const auto [its_major, minor, patch] = numbers_of(version());
  found.version = dotted({its_major, minor, patch});
  if (its_major != major) refuse(name + " is TensorRT " + found.version + ", and " + here);
  if (std::array{its_major, minor, patch} < std::array{major, NV_TENSORRT_MINOR, NV_TENSORRT_PATCH}) {
    refuse("TensorRT " + found.version + " is older than the headers of libmlpdeploy", headers() + " or later",
           "install a newer TensorRT " + std::to_string(major) + ", or compile libmlpdeploy with its headers");
  }
  if (library.find(build, "getInferLibBuildVersion")) found.version += "." + std::to_string(build());
  return found;
}

std::optional<DType> dtype_of(nvinfer1::DataType type) {
  switch (type) {
    case nvinfer1::DataType::kFLOAT:
      return DType::float32;
    case nvinfer1::DataType::kHALF:
      return DType::float16;
    case nvinfer1::DataType::kINT8:
      return DType::int8;
    case nvinfer1::DataType::kINT32:
      return DType::int32;
    case nvinfer1::DataType::kUINT8:
      return DType::uint8;
#if NV_TENSORRT_MAJOR >= 10
    case nvinfer1::DataType::kINT64:
      return DType::int64;
#endif
    default:
      return std::nullopt;
  }
}

}  // namespace

Complaints& Complaints::of_process() {
  static Complaints* const kept = new Complaints;
  return *kept;
}

void Complaints::log(Severity severity, char const* message) noexcept {
  if (severity > Severity::kERROR) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  std::strncpy(last_.data(), message, last_.size() - 1);
  std::replace(last_.begin(), last_.end(), '\n', ' ');
}

std::string Complaints::last() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return last_.front() ? last_.data() : "it does not say why";
}

void Complaints::forget() {
  const std::lock_guard<std::mutex> lock(mutex_);
  last_.front() = '\0';
}

const Nvinfer& load_nvinfer() {
  static const Nvinfer loaded = opened();
  return loaded;
}

Engine::Engine(const Source& source, const std::vector<TensorSpec>& inputs, const std::vector<TensorSpec>& outputs)
    : nvinfer_(load_nvinfer()) {
  load(source);
  inputs_ = tensors(source, inputs, nvinfer1::TensorIOMode::kINPUT);
  outputs_ = tensors(source, outputs, nvinfer1::TensorIOMode::kOUTPUT);
  if (static_cast<std::size_t>(engine_->getNbIOTensors()) != inputs.size() + outputs.size()) {
    throw Error(ErrorKind::artifact, source.path + " has other inputs and outputs than the manifest", "",
                "build the engine again with mlpdeploy build --force");
  }
  read_profiles();
#if MLPDEPLOY_SIZED_SCRATCH
  scratch_bytes_ = static_cast<std::size_t>(engine_->getDeviceMemorySizeV2());
#else
  scratch_bytes_ = engine_->getDeviceMemorySize();
#endif
}

void Engine::load(const Source& source) {
  complaints_.forget();
  runtime_.reset(static_cast<nvinfer1::IRuntime*>(nvinfer_.create_runtime(&complaints_, NV_TENSORRT_VERSION)));
  if (!runtime_) refuse(nvinfer_.name() + " cannot start: " + complaints_.last(), "", "run: mlpdeploy doctor");
  if (source.version_compatible) runtime_->setEngineHostCodeAllowed(true);
  if (!source.plugin_library.empty() && !runtime_->getPluginRegistry().loadLibrary(source.plugin_library.c_str())) {
    refuse(nvinfer_.name() + " cannot load the plugin library " + source.plugin_library + ": " + complaints_.last(), "",
           "build it again: mlpdeploy plugin build");
  }
  engine_.reset(runtime_->deserializeCudaEngine(source.plan.data(), source.plan.size()));
  if (!engine_) {
    refuse(nvinfer_.name() + " cannot load " + source.path + ": " + complaints_.last(), "",
           "run: mlpdeploy doctor; if it finds nothing, build the engine again with mlpdeploy build --force");
  }
}

std::vector<EngineTensor> Engine::tensors(const Source& source, const std::vector<TensorSpec>& specs,
                                          nvinfer1::TensorIOMode mode) const {
  std::vector<EngineTensor> found;
  for (const TensorSpec& spec : specs) {
    const char* name = spec.name.c_str();
    const Dims shape = engine_->getTensorShape(name);
    const bool there = engine_->getTensorIOMode(name) == mode &&
                       dtype_of(engine_->getTensorDataType(name)) == spec.dtype &&
                       static_cast<std::size_t>(std::max<std::int64_t>(shape.nbDims, 0)) == spec.shape.size();
    if (!there) {
      throw Error(ErrorKind::artifact,
                  source.path + " has no " + dtype_name(spec.dtype) + " tensor " + repr(spec.name) + " of " +
                      std::to_string(spec.shape.size()) + " axes, which the manifest names",
                  "", "build the engine again with mlpdeploy build --force");
    }
    found.push_back({spec.name, spec.dtype, shape, {}});
  }
  return found;
}

void Engine::read_profiles() {
  const auto open = [](const EngineTensor& tensor) {
    return std::find(tensor.shape.d, tensor.shape.d + tensor.shape.nbDims, -1) != tensor.shape.d + tensor.shape.nbDims;
  };
  has_profiles_ = std::any_of(inputs_.begin(), inputs_.end(), open);
  const int count = has_profiles_ ? engine_->getNbOptimizationProfiles() : 1;
  for (int profile = 0; profile < count; ++profile) {
    RowRange range;
    range.profile = profile;
    for (EngineTensor& tensor : inputs_) {
      const auto sizes = [&](nvinfer1::OptProfileSelector which) {
        return has_profiles_ ? engine_->getProfileShape(tensor.name.c_str(), profile, which) : tensor.shape;
      };
      const Dims least = sizes(nvinfer1::OptProfileSelector::kMIN), most = sizes(nvinfer1::OptProfileSelector::kMAX);
      tensor.ranges.push_back({least, most});
      if (&tensor != &inputs_.front()) continue;  // all inputs have the same rows
      range.least = least.d[0];
      range.best = sizes(nvinfer1::OptProfileSelector::kOPT).d[0];
      range.most = most.d[0];
    }
    profiles_.push_back(range);
  }
}

Context Engine::create_context() const {
  const std::lock_guard<std::mutex> lock(making_);
#if NV_TENSORRT_MAJOR >= 10
  Context context(engine_->createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED));
#else
  Context context(engine_->createExecutionContextWithoutDeviceMemory());
#endif
  if (!context) refuse(nvinfer_.name() + " cannot create an execution context", "", "free memory of the GPU");
  return context;
}

void Engine::give_scratch(nvinfer1::IExecutionContext& context, void* scratch) const {
#if MLPDEPLOY_SIZED_SCRATCH
  context.setDeviceMemoryV2(scratch, static_cast<std::int64_t>(scratch_bytes_));
#else
  context.setDeviceMemory(scratch);
#endif
}

}  // namespace mlpdeploy
