#include "fake_gpu.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

using Work = std::vector<std::function<void()>>;

struct CUstream_st {
  Work work{};
  bool capturing = false, broken = false;
  std::thread::id capturer{};
  Work captured{};
};

struct CUgraph_st {
  Work work;
};

struct CUgraphExec_st {
  Work work;
};

namespace {

FakeGpu gpu;
std::recursive_mutex mutex;
std::map<std::uintptr_t, std::size_t> device_blocks, pinned_blocks;  // address -> bytes
std::vector<CUstream> streams;
thread_local int current = 0;
const CUcontext context = reinterpret_cast<CUcontext>(&gpu);

using Lock = std::lock_guard<std::recursive_mutex>;

bool inside(const std::map<std::uintptr_t, std::size_t>& blocks, const void* pointer, std::size_t bytes) {
  const auto address = reinterpret_cast<std::uintptr_t>(pointer);
  auto after = blocks.upper_bound(address);
  if (after == blocks.begin()) return false;
  --after;
  return address + bytes <= after->first + after->second;
}

CUresult status(const char* name) {
  if (!current) return CUDA_ERROR_INVALID_CONTEXT;
  return fake_fails(name) ? CUDA_ERROR_LAUNCH_FAILED : CUDA_SUCCESS;
}

// A call that a thread may not make while it captures breaks its capture.
bool breaks_capture() {
  bool broke = false;
  for (CUstream stream : streams) {
    if (!stream->capturing || stream->capturer != std::this_thread::get_id()) continue;
    broke = stream->broken = true;
  }
  return broke;
}

CUresult allocate(const char* name, std::map<std::uintptr_t, std::size_t>& blocks, std::size_t bytes, void** out) {
  const Lock lock(mutex);
  if (const CUresult failed = status(name))
    return failed == CUDA_ERROR_LAUNCH_FAILED ? CUDA_ERROR_OUT_OF_MEMORY : failed;
  if (breaks_capture()) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  *out = std::malloc(bytes);
  std::memset(*out, 0x7f, bytes);  // what nobody wrote is no number
  blocks[reinterpret_cast<std::uintptr_t>(*out)] = bytes;
  ++gpu.allocations;
  return CUDA_SUCCESS;
}

CUresult release(const char* name, std::map<std::uintptr_t, std::size_t>& blocks, void* pointer) {
  const Lock lock(mutex);
  if (const CUresult failed = status(name)) return failed;
  if (breaks_capture()) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  if (!blocks.erase(reinterpret_cast<std::uintptr_t>(pointer))) fake_violation("memory is freed that is not there");
  std::free(pointer);
  return CUDA_SUCCESS;
}

void count() {
  gpu.device_blocks = static_cast<int>(device_blocks.size());
  gpu.pinned_blocks = static_cast<int>(pinned_blocks.size());
}

CUresult copy(const char* name, CUdeviceptr device, void* host, std::size_t bytes, CUstream stream, bool in) {
  const Lock lock(mutex);
  if (const CUresult failed = status(name)) return failed;
  if (!inside(pinned_blocks, host, bytes)) fake_violation("a copy from or to memory that is not pinned");
  void* const place = fake_memory(reinterpret_cast<void*>(device), bytes);
  fake_enqueue(stream, [=] {
    if (!inside(pinned_blocks, host, bytes)) fake_violation("pinned memory was freed before its copy");
    fake_memory(place, bytes);
    std::memcpy(in ? place : host, in ? host : place, bytes);
  });
  return CUDA_SUCCESS;
}

}  // namespace

FAKE_API FakeGpu* fake_gpu() { return &gpu; }

void fake_violation(const std::string& what) {
  std::fprintf(stderr, "the simulated GPU: %s\n", what.c_str());
  std::abort();
}

bool fake_fails(const char* name) {
  const Lock lock(mutex);
  if (gpu.failing != name) return false;
  gpu.failing.clear();
  return true;
}

void fake_enqueue(CUstream stream, std::function<void()> work) {
  const Lock lock(mutex);
  (stream->capturing ? stream->captured : stream->work).push_back(std::move(work));
  if (!stream->capturing) ++gpu.waiting;
}

bool fake_is_capturing(CUstream stream) {
  const Lock lock(mutex);
  return stream->capturing;
}

void* fake_memory(const void* address, std::size_t bytes) {
  const Lock lock(mutex);
  if (!inside(device_blocks, address, bytes)) fake_violation("device memory is used that is not there");
  return const_cast<void*>(address);
}

FAKE_API CUresult cuInit(unsigned) { return gpu.count ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE; }

FAKE_API CUresult cuGetErrorName(CUresult error, const char** name) {
  *name = error == CUDA_ERROR_OUT_OF_MEMORY                ? "CUDA_ERROR_OUT_OF_MEMORY"
          : error == CUDA_ERROR_STREAM_CAPTURE_INVALIDATED ? "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"
                                                           : "CUDA_ERROR_LAUNCH_FAILED";
  return CUDA_SUCCESS;
}

FAKE_API CUresult cuDeviceGetCount(int* found) { return *found = gpu.count, CUDA_SUCCESS; }
FAKE_API CUresult cuDeviceGet(CUdevice* device, int index) { return *device = index, CUDA_SUCCESS; }

FAKE_API CUresult cuDeviceGetName(char* name, int bytes, CUdevice) {
  std::snprintf(name, static_cast<std::size_t>(bytes), "%s", gpu.name.c_str());
  return CUDA_SUCCESS;
}

FAKE_API CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice) {
  *value = which == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR ? gpu.major : gpu.minor;
  return CUDA_SUCCESS;
}

FAKE_API CUresult cuDevicePrimaryCtxRetain(CUcontext* out, CUdevice) { return *out = context, CUDA_SUCCESS; }
FAKE_API CUresult cuDevicePrimaryCtxRelease(CUdevice) { return CUDA_SUCCESS; }

FAKE_API CUresult cuCtxPushCurrent(CUcontext pushed) {
  if (pushed != context) fake_violation("a context that is not there");
  return ++current, CUDA_SUCCESS;
}

FAKE_API CUresult cuCtxPopCurrent(CUcontext*) {
  if (current-- < 1) fake_violation("no context is current");
  return CUDA_SUCCESS;
}

FAKE_API CUresult cuMemAlloc(CUdeviceptr* out, std::size_t bytes) {
  void* pointer = nullptr;
  const CUresult result = allocate("cuMemAlloc", device_blocks, bytes, &pointer);
  *out = reinterpret_cast<CUdeviceptr>(pointer);
  return count(), result;
}

FAKE_API CUresult cuMemFree(CUdeviceptr pointer) {
  const CUresult result = release("cuMemFree", device_blocks, reinterpret_cast<void*>(pointer));
  return count(), result;
}

FAKE_API CUresult cuMemHostAlloc(void** out, std::size_t bytes, unsigned) {
  const CUresult result = allocate("cuMemHostAlloc", pinned_blocks, bytes, out);
  return count(), result;
}

FAKE_API CUresult cuMemFreeHost(void* pointer) {
  const CUresult result = release("cuMemFreeHost", pinned_blocks, pointer);
  return count(), result;
}

FAKE_API CUresult cuStreamCreate(CUstream* out, unsigned flags) {
  const Lock lock(mutex);
  if (const CUresult failed = status("cuStreamCreate")) return failed;
  if (flags != CU_STREAM_NON_BLOCKING) fake_violation("a stream that waits for the default stream");
  *out = new CUstream_st;
  streams.push_back(*out);
  return ++gpu.streams, CUDA_SUCCESS;
}

FAKE_API CUresult cuStreamDestroy(CUstream stream) {
  const Lock lock(mutex);
  if (const CUresult failed = status("cuStreamDestroy")) return failed;
  if (!stream->work.empty()) fake_violation("a stream with work is destroyed");
  streams.erase(std::find(streams.begin(), streams.end(), stream));
  delete stream;
  return --gpu.streams, CUDA_SUCCESS;
}

FAKE_API CUresult cuStreamSynchronize(CUstream stream) {
  const Lock lock(mutex);
  if (!current) return CUDA_ERROR_INVALID_CONTEXT;
  if (breaks_capture()) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  Work work;
  std::swap(work, stream->work);
  for (const auto& step : work) step();
  gpu.waiting -= static_cast<int>(work.size());
  return fake_fails("cuStreamSynchronize") ? CUDA_ERROR_LAUNCH_FAILED : CUDA_SUCCESS;
}

FAKE_API CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void* from, std::size_t bytes, CUstream stream) {
  return copy("cuMemcpyHtoDAsync", to, const_cast<void*>(from), bytes, stream, true);
}

FAKE_API CUresult cuMemcpyDtoHAsync(void* to, CUdeviceptr from, std::size_t bytes, CUstream stream) {
  return copy("cuMemcpyDtoHAsync", from, to, bytes, stream, false);
}

FAKE_API CUresult cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode mode) {
  const Lock lock(mutex);
  if (const CUresult failed = status("cuStreamBeginCapture")) return failed;
  if (mode != CU_STREAM_CAPTURE_MODE_THREAD_LOCAL) fake_violation("a capture that forbids other threads to allocate");
  stream->capturing = true, stream->broken = false;
  stream->capturer = std::this_thread::get_id();
  stream->captured.clear();
  return CUDA_SUCCESS;
}

FAKE_API CUresult cuStreamEndCapture(CUstream stream, CUgraph* graph) {
  const Lock lock(mutex);
  if (!stream->capturing || stream->capturer != std::this_thread::get_id()) fake_violation("no capture to end");
  stream->capturing = false;
  *graph = nullptr;
  if (stream->broken) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  *graph = new CUgraph_st{std::move(stream->captured)};
  return ++gpu.graphs, CUDA_SUCCESS;
}

FAKE_API CUresult cuGraphInstantiateWithFlags(CUgraphExec* out, CUgraph graph, unsigned long long) {
  const Lock lock(mutex);
  if (const CUresult failed = status("cuGraphInstantiate")) return failed;
  *out = new CUgraphExec_st{graph->work};
  return ++gpu.graphs, CUDA_SUCCESS;
}

FAKE_API CUresult cuGraphDestroy(CUgraph graph) {
  delete graph;
  return --gpu.graphs, CUDA_SUCCESS;
}

FAKE_API CUresult cuGraphExecDestroy(CUgraphExec graph) {
  delete graph;
  return --gpu.graphs, CUDA_SUCCESS;
}

FAKE_API CUresult cuGraphLaunch(CUgraphExec graph, CUstream stream) {
  const Lock lock(mutex);
  if (const CUresult failed = status("cuGraphLaunch")) return failed;
  for (const auto& step : graph->work) fake_enqueue(stream, step);
  return ++gpu.graph_launches, CUDA_SUCCESS;
}
