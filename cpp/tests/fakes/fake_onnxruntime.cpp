#include "fake_onnxruntime.h"

#include <dlfcn.h>
#include <onnxruntime_c_api.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string_view>

namespace {

FakeProvider provider;
std::mutex mutex;
std::map<const void*, std::size_t> pinned;  // start -> bytes
bool last_is_gpu = false;                   // whether the options that were made last name the provider
char cuda_name[] = "CUDAExecutionProvider", cpu_name[] = "CPUExecutionProvider";
char* names[] = {cuda_name, cpu_name};

[[noreturn]] void violation(const char* what) {
  std::fprintf(stderr, "the provider made up for tests: %s\n", what);
  std::abort();
}

const OrtApiBase& real_base() {
  static const OrtApiBase* const base = [] {
    void* library = dlopen(MLPDEPLOY_ONNXRUNTIME_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!library) violation(dlerror());
    return reinterpret_cast<const OrtApiBase* (*)()>(dlsym(library, "OrtGetApiBase"))();
  }();
  return *base;
}

const OrtApi& real() {
  static const OrtApi* const api = real_base().GetApi(ORT_API_VERSION);
  return *api;
}

OrtStatus* failure(const char* what, const char* message) {
  if (provider.failing != what) return nullptr;
  provider.failing.clear();
  return real().CreateStatus(ORT_FAIL, message);
}

bool is_pinned(const OrtMemoryInfo* info) {
  const char* name = nullptr;
  if (OrtStatus* failed = real().MemoryInfoGetName(info, &name)) return real().ReleaseStatus(failed), false;
  return std::string_view(name) == "CudaPinned";
}

OrtStatus* ORT_API_CALL providers(char*** out, int* count) noexcept {
  *out = names + (provider.built ? 0 : 1);
  *count = provider.built ? 2 : 1;
  return nullptr;
}

OrtStatus* ORT_API_CALL release_providers(char**, int) noexcept { return nullptr; }

OrtStatus* ORT_API_CALL create_options(OrtCUDAProviderOptionsV2** out) noexcept {
  ++provider.option_objects;
  provider.options.clear();
  *out = reinterpret_cast<OrtCUDAProviderOptionsV2*>(&provider);
  return nullptr;
}

OrtStatus* ORT_API_CALL update_options(OrtCUDAProviderOptionsV2*, const char* const* keys, const char* const* values,
                                       std::size_t count) noexcept {
  for (std::size_t i = 0; i < count; ++i) provider.options[keys[i]] = values[i];
  return nullptr;
}

void ORT_API_CALL release_options(OrtCUDAProviderOptionsV2*) noexcept { --provider.option_objects; }

OrtStatus* ORT_API_CALL append(OrtSessionOptions*, const OrtCUDAProviderOptionsV2*) noexcept {
  if (OrtStatus* failed = failure("append", "libonnxruntime_providers_cuda.so cannot be loaded\nwith more")) return failed;
  ++provider.appended;
  last_is_gpu = true;
  return nullptr;
}

OrtStatus* ORT_API_CALL create_session(const OrtEnv* environment, const ORTCHAR_T* path,
                                       const OrtSessionOptions* options, OrtSession** out) noexcept {
  const bool gpu = last_is_gpu;
  last_is_gpu = false;
  if (gpu) {
    if (OrtStatus* failed = failure("session", "CUDA failure 100: no CUDA-capable device is detected")) return failed;
  }
  return real().CreateSession(environment, path, options, out);
}

void* ORT_API_CALL allocate(OrtAllocator*, std::size_t bytes) noexcept {
  const std::lock_guard<std::mutex> lock(mutex);
  if (provider.failing == "pinned") return provider.failing.clear(), nullptr;
  void* block = std::malloc(bytes);
  std::memset(block, 0x7f, bytes);
  pinned[block] = bytes;
  ++provider.pinned_blocks;
  return block;
}

void ORT_API_CALL free_block(OrtAllocator*, void* block) noexcept {
  const std::lock_guard<std::mutex> lock(mutex);
  if (!pinned.erase(block)) violation("pinned memory is freed that is not there");
  --provider.pinned_blocks;
  std::free(block);
}

OrtAllocator fake_allocator{};

OrtStatus* ORT_API_CALL create_allocator(const OrtSession*, const OrtMemoryInfo* info, OrtAllocator** out) noexcept {
  int id = -1;
  OrtMemType type = OrtMemTypeDefault;
  if (!is_pinned(info) || real().MemoryInfoGetId(info, &id) || real().MemoryInfoGetMemType(info, &type)) {
    violation("an allocator of another kind than pinned memory");
  }
  if (std::to_string(id) != provider.options["device_id"]) violation("pinned memory of another GPU");
  if (type != OrtMemTypeCPUOutput) violation("memory that the processor cannot reach");
  fake_allocator.version = ORT_API_VERSION;
  fake_allocator.Alloc = allocate;
  fake_allocator.Free = free_block;
  ++provider.allocators;
  *out = &fake_allocator;
  return nullptr;
}

void ORT_API_CALL release_allocator(OrtAllocator*) noexcept { --provider.allocators; }

OrtStatus* ORT_API_CALL allocator_alloc(OrtAllocator* allocator, std::size_t bytes, void** out) noexcept {
  *out = allocator->Alloc(allocator, bytes);
  return *out ? nullptr : real().CreateStatus(ORT_FAIL, "CUDA failure 2: out of memory");
}

OrtStatus* ORT_API_CALL allocator_free(OrtAllocator* allocator, void* block) noexcept {
  return allocator->Free(allocator, block), nullptr;
}

// The CPU computes on a value of its own memory kind.
OrtStatus* ORT_API_CALL create_value(const OrtMemoryInfo* info, void* data, std::size_t bytes,
                                     const std::int64_t* shape, std::size_t rank, ONNXTensorElementDataType type,
                                     OrtValue** out) noexcept {
  if (!is_pinned(info)) {
    ++provider.plain_values;
    return real().CreateTensorWithDataAsOrtValue(info, data, bytes, shape, rank, type, out);
  }
  {
    const std::lock_guard<std::mutex> lock(mutex);
    auto after = pinned.upper_bound(data);
    if (after == pinned.begin() || (--after, static_cast<char*>(data) + bytes >
                                                 static_cast<const char*>(after->first) + after->second)) {
      violation("memory is said to be pinned, and is not");
    }
  }
  ++provider.pinned_values;
  OrtMemoryInfo* cpu = nullptr;
  if (OrtStatus* failed = real().CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &cpu)) return failed;
  OrtStatus* const made = real().CreateTensorWithDataAsOrtValue(cpu, data, bytes, shape, rank, type, out);
  real().ReleaseMemoryInfo(cpu);
  return made;
}

std::size_t rows_of(const OrtValue* value) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  std::int64_t rows = 0;
  if (real().GetTensorTypeAndShape(value, &info) || real().GetDimensions(info, &rows, 1)) violation("no input");
  real().ReleaseTensorTypeAndShapeInfo(info);
  return static_cast<std::size_t>(rows);
}

OrtStatus* ORT_API_CALL run(OrtSession* session, const OrtRunOptions* options, const char* const* inputs,
                            const OrtValue* const* feeds, std::size_t feed_count, const char* const* outputs,
                            std::size_t output_count, OrtValue** results) noexcept {
  if (provider.at_run && !provider.at_run(rows_of(feeds[0]))) return real().CreateStatus(ORT_FAIL, "the run failed");
  return real().Run(session, options, inputs, feeds, feed_count, outputs, output_count, results);
}

const OrtApi* ORT_API_CALL get_api(std::uint32_t version) noexcept {
  static OrtApi api = [] {
    OrtApi copy = real();
    copy.GetAvailableProviders = providers;
    copy.ReleaseAvailableProviders = release_providers;
    copy.CreateCUDAProviderOptions = create_options;
    copy.UpdateCUDAProviderOptions = update_options;
    copy.ReleaseCUDAProviderOptions = release_options;
    copy.SessionOptionsAppendExecutionProvider_CUDA_V2 = append;
    copy.CreateSession = create_session;
    copy.CreateAllocator = create_allocator;
    copy.ReleaseAllocator = release_allocator;
    copy.AllocatorAlloc = allocator_alloc;
    copy.AllocatorFree = allocator_free;
    copy.CreateTensorWithDataAsOrtValue = create_value;
    copy.Run = run;
    return copy;
  }();
  return version == ORT_API_VERSION ? &api : nullptr;
}

const char* ORT_API_CALL version_text() noexcept { return real_base().GetVersionString(); }

const OrtApiBase base{get_api, version_text};

}  // namespace

FakeProvider& fake_provider() { return provider; }

extern "C" const OrtApiBase* ORT_API_CALL OrtGetApiBase() noexcept { return &base; }
