#include "cuda.h"

#include <array>
#include <mutex>

#include "../text.h"
#include "cuda_functions.h"
#include "dynamic_library.h"
#include "mlpdeploy/session.h"

#define MLPDEPLOY_TEXT(name) #name
#define MLPDEPLOY_EXPORTED(name) MLPDEPLOY_TEXT(name)

namespace mlpdeploy {

namespace {

constexpr const char* wanted = "a GPU for the target tensorrt";
constexpr const char* fix = "see: mlpdeploy doctor; TensorRT-RTX builds without a GPU: --target tensorrt-rtx";

template <typename Function>
bool find(const DynamicLibrary& library, Function& function, const char* name) {
  return library.find(function, name);
}

// The driver, loaded once. Throws Error (backend).
const CudaFunctions& driver() {
  static const DynamicLibrary library("libcuda.so.1");
  if (!library) throw Error(ErrorKind::backend, "no NVIDIA driver on this machine", wanted, fix);
  static CudaFunctions functions;
  static const char* const missing = [] {
    const char* name = nullptr;
#define MLPDEPLOY_FIND(call) \
  if (!find(library, functions.call, MLPDEPLOY_EXPORTED(call))) name = MLPDEPLOY_EXPORTED(call);
    MLPDEPLOY_CUDA_FUNCTIONS(MLPDEPLOY_FIND)
#undef MLPDEPLOY_FIND
    return name;
  }();
  if (missing) {
    throw Error(ErrorKind::backend, std::string("the NVIDIA driver has no ") + missing,
                "a driver for CUDA 11.4 or newer", "update the driver");
  }
  return functions;
}

}  // namespace

std::shared_ptr<Cuda> Cuda::open(int index) {
  const CudaFunctions& functions = driver();
  int count = 0;
  CUresult status = functions.cuInit(0);
  if (status == CUDA_SUCCESS) status = functions.cuDeviceGetCount(&count);
  if (status != CUDA_SUCCESS || index >= count) {
    throw Error(ErrorKind::backend,
                "the NVIDIA driver finds no GPU " + std::to_string(index) + " (CUDA error " + std::to_string(status) +
                    ", " + std::to_string(count) + " GPUs)",
                wanted, fix);
  }
  return std::shared_ptr<Cuda>(new Cuda(functions, index));
}

Cuda::Cuda(const CudaFunctions& functions, int index) : functions_(functions) {
  std::array<char, 256> name{};
  try {
    check(functions.cuDeviceGet(&device_, index), "cuDeviceGet");
    check(functions.cuDeviceGetName(name.data(), static_cast<int>(name.size()), device_), "cuDeviceGetName");
    const auto capability = {std::pair(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, &gpu_.major),
                             std::pair(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, &gpu_.minor)};
    for (const auto& [which, value] : capability) {
      check(functions.cuDeviceGetAttribute(value, which, device_), "cuDeviceGetAttribute");
    }
    // Never released, as in Python: the last release destroys the context with what others may still have in it, and
    // the next session would have to make another one.
    check(functions.cuDevicePrimaryCtxRetain(&context_, device_), "cuDevicePrimaryCtxRetain");
  } catch (const CudaFailure& failure) {
    throw Error(ErrorKind::backend, "GPU " + std::to_string(index) + " cannot be used (" + failure.message + ")",
                wanted, fix);
  }
  gpu_.name = name.data();
}

void Cuda::check(CUresult result, const char* call) const {
  if (result == CUDA_SUCCESS) return;
  const char* name = nullptr;
  functions_.cuGetErrorName(result, &name);
  throw CudaFailure{std::string("CUDA's ") + call + " failed: " + (name ? name : "an unknown error") + " (" +
                    std::to_string(result) + ")"};
}

Current::Current(const Cuda& cuda) : cuda_(cuda) {
  cuda.check(cuda.functions().cuCtxPushCurrent(cuda.context_), "cuCtxPushCurrent");
}

Current::~Current() {
  CUcontext popped = nullptr;
  cuda_.functions().cuCtxPopCurrent(&popped);
}

DeviceMemory::DeviceMemory(const Cuda& cuda, std::size_t bytes) : cuda_(cuda) {
  cuda.check(cuda.functions().cuMemAlloc(&address_, bytes), "cuMemAlloc");
}

DeviceMemory::~DeviceMemory() { cuda_.functions().cuMemFree(address_); }

PinnedMemory::PinnedMemory(const Cuda& cuda, std::size_t bytes) : cuda_(cuda) {
  cuda.check(cuda.functions().cuMemHostAlloc(&data_, bytes, 0), "cuMemHostAlloc");
}

PinnedMemory::~PinnedMemory() { cuda_.functions().cuMemFreeHost(data_); }

Graph::Graph(const Cuda& cuda, CUgraph recorded) : cuda_(cuda) {
  const CUresult result = cuda.functions().cuGraphInstantiateWithFlags(&executable_, recorded, 0);
  cuda.functions().cuGraphDestroy(recorded);
  cuda.check(result, "cuGraphInstantiate");
}

Graph::~Graph() { cuda_.functions().cuGraphExecDestroy(executable_); }

void Graph::launch(CUstream stream) const {
  cuda_.check(cuda_.functions().cuGraphLaunch(executable_, stream), "cuGraphLaunch");
}

Stream::Stream(const Cuda& cuda) : cuda_(cuda) {
  cuda.check(cuda.functions().cuStreamCreate(&handle_, CU_STREAM_NON_BLOCKING), "cuStreamCreate");
}

Stream::~Stream() { cuda_.functions().cuStreamDestroy(handle_); }

void Stream::copy_in(const DeviceMemory& to, const PinnedMemory& from, std::size_t bytes) const {
  cuda_.check(cuda_.functions().cuMemcpyHtoDAsync(to.address(), from.data(), bytes, handle_), "cuMemcpyHtoDAsync");
}

void Stream::copy_lines(CUdeviceptr to, const void* from, std::size_t line_bytes, std::size_t lines,
                        std::size_t apart) const {
  CUDA_MEMCPY2D copy{};
  copy.srcMemoryType = CU_MEMORYTYPE_HOST;
  copy.srcHost = from;
  copy.srcPitch = apart;
  copy.dstMemoryType = CU_MEMORYTYPE_DEVICE;
  copy.dstDevice = to;
  copy.dstPitch = copy.WidthInBytes = line_bytes;
  copy.Height = lines;
  cuda_.check(cuda_.functions().cuMemcpy2DAsync(&copy, handle_), "cuMemcpy2DAsync");
}

void Stream::clear(CUdeviceptr address, std::size_t bytes) const {
  cuda_.check(cuda_.functions().cuMemsetD8Async(address, 0, bytes, handle_), "cuMemsetD8Async");
}

void Stream::copy_out(const PinnedMemory& to, const DeviceMemory& from, std::size_t bytes) const {
  cuda_.check(cuda_.functions().cuMemcpyDtoHAsync(to.data(), from.address(), bytes, handle_), "cuMemcpyDtoHAsync");
}

void Stream::wait() const { cuda_.check(cuda_.functions().cuStreamSynchronize(handle_), "cuStreamSynchronize"); }

void Stream::drain() const noexcept { cuda_.functions().cuStreamSynchronize(handle_); }

void Stream::begin_recording() const {
  // Of this thread only: others may allocate meanwhile.
  const auto mode = CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
  cuda_.check(cuda_.functions().cuStreamBeginCapture(handle_, mode), "cuStreamBeginCapture");
}

std::unique_ptr<Graph> Stream::end_recording() const {
  CUgraph recorded = nullptr;
  cuda_.check(cuda_.functions().cuStreamEndCapture(handle_, &recorded), "cuStreamEndCapture");
  return std::make_unique<Graph>(cuda_, recorded);
}

}  // namespace mlpdeploy
