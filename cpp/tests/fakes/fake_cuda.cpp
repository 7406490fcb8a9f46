#include "fake_gpu.h"

#include "frame_index.h"

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
  const Lock lock(mutex);
  gpu.device_blocks = static_cast<int>(device_blocks.size());
  gpu.pinned_blocks = static_cast<int>(pinned_blocks.size());
}

CUresult copy(const char* name, CUdeviceptr device, void* host, std::size_t bytes, CUstream stream, bool in) {
  const Lock lock(mutex);
  if (const CUresult failed = status(name)) return failed;
  if (!inside(pinned_blocks, host, bytes)) fake_violation("a copy from or to memory that is not pinned");
  void* const place = fake_memory(reinterpret_cast<void*>(device), bytes);
  ++gpu.copies;
  fake_enqueue(stream, [=] {
    if (!inside(pinned_blocks, host, bytes)) fake_violation("pinned memory was freed before its copy");
    fake_memory(place, bytes);
    std::memcpy(in ? place : host, in ? host : place, bytes);
  });
  return CUDA_SUCCESS;
}

// What runs on the GPU: every thread of the grid, one after another.
void run_kernel(const mlpdeploy::FrameParams& frame, std::int64_t threads) {
  const std::int64_t pixels = std::int64_t{frame.height} * frame.width;
  const std::int64_t line = std::int64_t{3} * frame.width, last = (frame.height - 1) * frame.row_bytes;
  const auto* lowest = frame.pixels + std::min<std::int64_t>(last, 0);
  fake_memory(lowest, static_cast<std::size_t>(std::abs(last) + line));
  fake_memory(frame.out, static_cast<std::size_t>(pixels * frame.channels * (frame.half ? 2 : 4)));
  for (std::int64_t thread = 0; thread < threads; ++thread) {
    for (std::int64_t index = thread; index < pixels; index += threads) mlpdeploy::convert_pixel(frame, index);
  }
}

constexpr std::uint32_t fat_binary_magic = 0xba55ed50U;
const CUmodule the_module = reinterpret_cast<CUmodule>(&device_blocks);
const CUfunction the_kernel = reinterpret_cast<CUfunction>(&pinned_blocks);

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

// FAKE_GPUS, for programs of which a test sees no more than the output.
FAKE_API CUresult cuDeviceGetCount(int* found) {
  const char* given = std::getenv("FAKE_GPUS");
  return *found = given ? std::atoi(given) : gpu.count.load(), CUDA_SUCCESS;
}
FAKE_API CUresult cuDeviceGet(CUdevice* device, int index) { return *device = index, CUDA_SUCCESS; }

FAKE_API CUresult cuDeviceGetName(char* name, int bytes, CUdevice) {
  std::snprintf(name, static_cast<std::size_t>(bytes), "%s", gpu.name.c_str());
  return CUDA_SUCCESS;
}

FAKE_API CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice) {
  *value = which == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR ? gpu.major : gpu.minor;
  return CUDA_SUCCESS;
}

FAKE_API CUresult cuDevicePrimaryCtxRetain(CUcontext* out, CUdevice) {
  return ++gpu.retained, *out = context, CUDA_SUCCESS;
}

FAKE_API CUresult cuDevicePrimaryCtxRelease(CUdevice) { return --gpu.retained, CUDA_SUCCESS; }

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

FAKE_API CUresult cuMemcpy2DAsync(const CUDA_MEMCPY2D* copy, CUstream stream) {
  const Lock lock(mutex);
  if (const CUresult failed = status("cuMemcpy2DAsync")) return failed;
  if (copy->srcMemoryType != CU_MEMORYTYPE_HOST || copy->dstMemoryType != CU_MEMORYTYPE_DEVICE) {
    fake_violation("a copy of lines in another direction than to the GPU");
  }
  if (copy->srcPitch < copy->WidthInBytes || copy->dstPitch < copy->WidthInBytes) return CUDA_ERROR_INVALID_VALUE;
  const CUDA_MEMCPY2D lines = *copy;
  auto* const to = static_cast<char*>(
      fake_memory(reinterpret_cast<void*>(lines.dstDevice), lines.dstPitch * (lines.Height - 1) + lines.WidthInBytes));
  ++gpu.line_copies;
  // As late as from page-locked memory.
  fake_enqueue(stream, [=] {
    for (std::size_t y = 0; y < lines.Height; ++y) {
      std::memcpy(to + y * lines.dstPitch, static_cast<const char*>(lines.srcHost) + y * lines.srcPitch,
                  lines.WidthInBytes);
    }
  });
  return CUDA_SUCCESS;
}

FAKE_API CUresult cuMemsetD8Async(CUdeviceptr address, unsigned char value, std::size_t bytes, CUstream stream) {
  const Lock lock(mutex);
  if (const CUresult failed = status("cuMemsetD8Async")) return failed;
  void* const place = fake_memory(reinterpret_cast<void*>(address), bytes);
  fake_enqueue(stream, [=] { std::memset(place, value, bytes); });
  return CUDA_SUCCESS;
}

FAKE_API CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  const Lock lock(mutex);
  if (const CUresult failed = status("cuModuleLoadData")) return failed;
  std::uint32_t magic = 0;
  std::memcpy(&magic, image, sizeof magic);
  if (magic != fat_binary_magic) return CUDA_ERROR_INVALID_IMAGE;
  return ++gpu.modules, *module = the_module, CUDA_SUCCESS;
}

FAKE_API CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  if (module != the_module) fake_violation("a module that is not there");
  if (std::strcmp(name, "mlpdeploy_frame_to_row") != 0) return CUDA_ERROR_NOT_FOUND;
  return *function = the_kernel, CUDA_SUCCESS;
}

FAKE_API CUresult cuModuleUnload(CUmodule module) {
  const Lock lock(mutex);
  if (module != the_module || gpu.modules < 1) fake_violation("a module is unloaded that is not there");
  return --gpu.modules, CUDA_SUCCESS;
}

FAKE_API CUresult cuLaunchKernel(CUfunction function, unsigned blocks, unsigned blocks_y, unsigned blocks_z,
                                 unsigned threads, unsigned threads_y, unsigned threads_z, unsigned shared_bytes,
                                 CUstream stream, void** arguments, void** extra) {
  const Lock lock(mutex);
  if (const CUresult failed = status("cuLaunchKernel")) return failed;
  if (function != the_kernel || gpu.modules < 1) fake_violation("a kernel that is not there");
  const bool flat = blocks_y == 1 && blocks_z == 1 && threads_y == 1 && threads_z == 1;
  if (!flat || blocks < 1 || threads < 1 || threads > 1024 || shared_bytes || extra) return CUDA_ERROR_INVALID_VALUE;
  const auto frame = *static_cast<const mlpdeploy::FrameParams*>(arguments[0]);
  ++gpu.kernel_launches;
  fake_enqueue(stream, [=] { run_kernel(frame, std::int64_t{blocks} * threads); });
  return CUDA_SUCCESS;
}
