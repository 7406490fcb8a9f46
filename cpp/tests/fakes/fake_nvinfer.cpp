// A TensorRT for tests, compiled with the real headers: its objects are the real classes, with the simulated GPU behind
// them. A plan is a text: which tensors and profiles there are, and what goes wrong. Every output value is a sum over
// some of the row's input values, 64 or a few more, value i of output e times (i + e) % 7 - 3.
#include <NvInferRuntime.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "fake_gpu.h"
#include "fake_stubs.h"

void unexpected(const char* method) noexcept { fake_violation(std::string("nobody expected a call of ") + method); }

namespace {

using namespace nvinfer1;

struct Tensor {
  std::string name;
  bool is_input;
  Dims shape;
};

struct Plan {
  std::vector<Tensor> tensors;
  std::vector<std::array<int, 3>> rows;   // of each profile
  std::vector<std::array<int, 2>> sides;  // of each profile: least and most of open axes behind the batch
  std::set<std::string> words;            // "plugin", "no-graph", "breaks-capture"

  const Tensor* find(const char* name) const {
    const auto found = std::find_if(tensors.begin(), tensors.end(), [&](auto& one) { return one.name == name; });
    return found == tensors.end() ? nullptr : &*found;
  }

  bool read(const std::string& text) {
    std::istringstream lines(text);
    std::string line, word;
    if (!std::getline(lines, line) || line != "fake-engine") return false;
    while (std::getline(lines, line)) {
      std::istringstream in(line);
      in >> word;
      if (word == "input" || word == "output") {
        Tensor tensor{"", word == "input", {}};
        in >> tensor.name;
        for (int size = 0; in >> size;) tensor.shape.d[tensor.shape.nbDims++] = size;
        tensors.push_back(tensor);
      } else if (word == "profile") {
        auto& range = rows.emplace_back();
        auto& side = sides.emplace_back();
        in >> range[0] >> range[1] >> range[2] >> side[0] >> side[1];
      } else {
        words.insert(word);
      }
    }
    return true;
  }
};

constexpr std::size_t scratch_bytes = 512;

class Context : public IExecutionContext {
 public:
  Context(const Plan& plan, ILogger& logger, std::atomic<int>& siblings) : impl_(plan, logger), siblings_(siblings) {
    mImpl = &impl_;
    ++siblings_, ++fake_gpu()->contexts;
  }
  ~Context() noexcept override { --siblings_, --fake_gpu()->contexts; }

 private:
  struct Impl : StubVExecutionContext {
    const Plan& plan;
    ILogger& logger;
    std::atomic_flag busy = ATOMIC_FLAG_INIT;
    int profile = -1;
    bool prepared = false;
    void* scratch = nullptr;
    std::map<std::string, Dims> shapes{};
    std::map<std::string, void*> addresses{};
    std::shared_ptr<bool> alive = std::make_shared<bool>(true);

    ~Impl() noexcept override { *alive = false; }

    // Work that needs this context until it has run.
    void enqueue(cudaStream_t stream, std::function<void()> work) const {
      fake_enqueue(stream, [known = alive, work = std::move(work)] {
        if (!*known) fake_violation("a context is destroyed before its work has run");
        work();
      });
    }

    Impl(const Plan& known, ILogger& told) : plan(known), logger(told) {}

    // Two threads in one context at once break TensorRT.
    struct Alone {
      std::atomic_flag& flag;
      explicit Alone(std::atomic_flag& taken) : flag(taken) {
        if (flag.test_and_set()) fake_violation("two threads use one context");
      }
      ~Alone() { flag.clear(); }
    };

    bool refuse(const char* why) const {
      logger.log(ILogger::Severity::kERROR, why);
      return false;
    }

    bool setOptimizationProfileAsync(int32_t index, cudaStream_t stream) noexcept override {
      const Alone alone(busy);
      if (index < 0 || index >= static_cast<int32_t>(plan.rows.size())) return refuse("no such profile");
      profile = index;
      enqueue(stream, [] {});
      return true;
    }

    bool setInputShape(char const* name, Dims const& dims) noexcept override {
      const Alone alone(busy);
      const Tensor* tensor = plan.find(name);
      if (!tensor || !tensor->is_input || dims.nbDims != tensor->shape.nbDims) return refuse("no such input");
      for (int axis = 0; axis < dims.nbDims; ++axis) {
        const auto size = dims.d[axis], fixed = tensor->shape.d[axis];
        if (fixed >= 0 && size != fixed) return refuse("a size that is fixed");
        if (fixed >= 0) continue;
        if (profile < 0) fake_violation("a shape before its profile");
        const auto& rows = plan.rows[static_cast<std::size_t>(profile)];
        const auto& side = plan.sides[static_cast<std::size_t>(profile)];
        const int low = axis ? side[0] : rows[0], high = axis ? side[1] : rows[2];
        if (size < low || size > high) return refuse("a size outside of the profile");
      }
      shapes[name] = dims;
      prepared = false;
      return true;
    }

    // Outputs have the input's sizes where they are open.
    Dims getTensorShape(char const* name) const noexcept override {
      const Tensor* tensor = plan.find(name);
      if (tensor->is_input) return shapes.at(name);
      Dims dims = tensor->shape;
      const auto input = shapes.begin();
      for (int axis = 0; axis < dims.nbDims; ++axis) {
        if (dims.d[axis] < 0) dims.d[axis] = input == shapes.end() ? -1 : input->second.d[axis];
      }
      return dims;
    }

    bool setTensorAddress(char const* name, void* data) noexcept override {
      const Alone alone(busy);
      const Tensor* tensor = plan.find(name);
      if (!tensor) return refuse("no such tensor");
      if (tensor->is_input && !shapes.count(name)) fake_violation("an address before the shape");
      if (reinterpret_cast<std::uintptr_t>(data) % 16) fake_violation("an address that is not aligned");
      fake_memory(data, bytes_of(name));
      addresses[name] = data;
      return true;
    }

    void setDeviceMemory(void* memory) noexcept override { take_scratch(memory); }
#if NV_TENSORRT_MAJOR > 10 || (NV_TENSORRT_MAJOR == 10 && NV_TENSORRT_MINOR >= 1)
    void setDeviceMemoryV2(void* memory, int64_t size) noexcept override {
      if (size < static_cast<int64_t>(scratch_bytes)) fake_violation("too little scratch memory");
      take_scratch(memory);
    }
#endif

    void take_scratch(void* memory) {
      fake_memory(memory, scratch_bytes);
      scratch = memory;
    }

    std::size_t count_of(char const* name) const {
      const Dims dims = getTensorShape(name);
      std::size_t count = 1;
      for (int axis = 0; axis < dims.nbDims; ++axis) count *= static_cast<std::size_t>(dims.d[axis]);
      return count;
    }
    std::size_t bytes_of(char const* name) const { return count_of(name) * sizeof(float); }

    bool enqueueV3(cudaStream_t stream) noexcept override {
      const Alone alone(busy);
      if (fake_fails("enqueue")) return refuse("the enqueue failed");
      if (addresses.size() != plan.tensors.size()) fake_violation("work without all addresses");
      if (!scratch) fake_violation("work without scratch memory");
      if (fake_is_capturing(stream)) {
        if (!prepared) fake_violation("a capture of work that never ran");
        if (plan.words.count("no-graph")) return refuse("a layer cannot be captured");
        if (plan.words.count("breaks-capture")) cuStreamSynchronize(stream);
      }
      prepared = true;
      ++fake_gpu()->enqueues;
      fake_gpu()->profile = profile;
      enqueue_sums(stream);
      return true;
    }

    void enqueue_sums(cudaStream_t stream) {
      const Tensor& input = plan.tensors.front();
      const auto rows = static_cast<std::size_t>(shapes.at(input.name).d[0]);
      const std::size_t in = count_of(input.name.c_str()) / rows, step = std::max<std::size_t>(in / 64, 1);
      void *const from = addresses.at(input.name), *const work = scratch;
      fake_gpu()->largest_batch = std::max(fake_gpu()->largest_batch.load(), static_cast<int>(rows));
      for (const Tensor& tensor : plan.tensors) {
        if (tensor.is_input) continue;
        const std::size_t out = count_of(tensor.name.c_str()) / rows;
        void* const to = addresses.at(tensor.name);
        enqueue(stream, [=] {
          fake_memory(work, scratch_bytes);
          const auto* x = static_cast<const float*>(fake_memory(from, rows * in * sizeof(float)));
          auto* y = static_cast<float*>(fake_memory(to, rows * out * sizeof(float)));
          for (std::size_t row = 0; row < rows; ++row) {
            for (std::size_t e = 0; e < out; ++e) {
              float sum = 0;
              for (std::size_t i = 0; i < in; i += step) sum += x[row * in + i] * (static_cast<float>((i + e) % 7) - 3);
              y[row * out + e] = sum;
            }
          }
        });
      }
    }
  };

  Impl impl_;
  std::atomic<int>& siblings_;
};

class FakeEngine : public ICudaEngine {
 public:
  FakeEngine(Plan plan, ILogger& logger, std::atomic<int>& siblings)
      : impl_(std::move(plan), logger), siblings_(siblings) {
    mImpl = &impl_;
    ++siblings_, ++fake_gpu()->engines;
  }
  ~FakeEngine() noexcept override {
    if (impl_.contexts) fake_violation("an engine is destroyed before its contexts");
    --siblings_, --fake_gpu()->engines;
  }

 private:
  struct Impl : StubVCudaEngine {
    Plan plan;
    ILogger& logger;
    std::atomic<int> contexts{0};

    Impl(Plan known, ILogger& told) : plan(std::move(known)), logger(told) {}

    IExecutionContext* context() { return fake_fails("context") ? nullptr : new Context(plan, logger, contexts); }
#if NV_TENSORRT_MAJOR >= 10
    IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy strategy) noexcept override {
      if (strategy != ExecutionContextAllocationStrategy::kUSER_MANAGED) fake_violation("scratch memory of its own");
      return context();
    }
#else
    IExecutionContext* createExecutionContextWithoutDeviceMemory() noexcept override { return context(); }
#endif
#if NV_TENSORRT_MAJOR > 10 || (NV_TENSORRT_MAJOR == 10 && NV_TENSORRT_MINOR >= 1)
    int64_t getDeviceMemorySizeV2() const noexcept override { return scratch_bytes; }
#else
    size_t getDeviceMemorySize() const noexcept override { return scratch_bytes; }
#endif
    int32_t getNbOptimizationProfiles() const noexcept override { return static_cast<int32_t>(plan.rows.size()); }
    int32_t getNbIOTensors() const noexcept override { return static_cast<int32_t>(plan.tensors.size()); }

    Dims getTensorShape(char const* name) const noexcept override {
      const Tensor* tensor = plan.find(name);
      Dims none{};
      none.nbDims = -1;
      return tensor ? tensor->shape : none;
    }
    DataType getTensorDataType(char const*) const noexcept override { return DataType::kFLOAT; }
    TensorIOMode getTensorIOMode(char const* name) const noexcept override {
      const Tensor* tensor = plan.find(name);
      if (!tensor) return TensorIOMode::kNONE;
      return tensor->is_input ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
    }
    Dims getProfileShape(char const* name, int32_t index, OptProfileSelector which) const noexcept override {
      Dims dims = plan.find(name)->shape;
      const auto profile = static_cast<std::size_t>(index);
      for (int axis = 0; axis < dims.nbDims; ++axis) {
        if (dims.d[axis] >= 0) continue;
        dims.d[axis] = axis == 0 ? plan.rows[profile][static_cast<std::size_t>(which)]
                                 : plan.sides[profile][which == OptProfileSelector::kMAX ? 1 : 0];
      }
      return dims;
    }
  };

  Impl impl_;
  std::atomic<int>& siblings_;
};

struct Registry : StubIPluginRegistry {
  bool loaded = false;

  PluginLibraryHandle loadLibrary(char const* path) noexcept override {
    std::ifstream file(path);
    std::string word;
    loaded = static_cast<bool>(file >> word) && word == "plugin";
    return loaded ? this : nullptr;
  }
};

class FakeRuntime : public IRuntime {
 public:
  explicit FakeRuntime(ILogger& logger) : impl_(logger) { mImpl = &impl_; }
  ~FakeRuntime() noexcept override {
    if (impl_.engines) fake_violation("a runtime is destroyed before its engine");
  }

 private:
  struct Impl : StubVRuntime {
    ILogger& logger;
    Registry registry{};
    std::atomic<int> engines{0};

    explicit Impl(ILogger& told) : logger(told) {}

    IPluginRegistry& getPluginRegistry() noexcept override { return registry; }
    void setEngineHostCodeAllowed(bool) noexcept override {}

#if NV_TENSORRT_MAJOR >= 10
    ICudaEngine* deserializeCudaEngine(void const* blob, std::size_t size) noexcept override {
      return opened(std::string(static_cast<const char*>(blob), size));
    }
#else
    ICudaEngine* deserializeCudaEngine(void const* blob, std::size_t size, IPluginFactory*) noexcept override {
      return opened(std::string(static_cast<const char*>(blob), size));
    }
#endif

    ICudaEngine* opened(const std::string& text) {
      Plan plan;
      if (!plan.read(text)) {
        logger.log(ILogger::Severity::kERROR, "Serialization assertion failed:\nmagic tag does not match");
        return nullptr;
      }
      if (plan.words.count("plugin") && !registry.loaded) {
        logger.log(ILogger::Severity::kERROR, "Cannot find plugin: AxialShift, version: 1, namespace: mlpdeploy.");
        return nullptr;
      }
      return new FakeEngine(std::move(plan), logger, engines);
    }
  };

  Impl impl_;
};

}  // namespace

FAKE_API void* createInferRuntime_INTERNAL(void* logger, int32_t version) noexcept {
  if (version != NV_TENSORRT_VERSION) fake_violation("other headers");
  auto& told = *static_cast<ILogger*>(logger);
  static ILogger* const first = &told;
  if (&told != first) fake_violation("another logger: TensorRT goes on with the first, which must live as long");
  if (fake_fails("runtime")) {
    told.log(ILogger::Severity::kERROR, "CUDA initialization failure with error: 35");
    return nullptr;
  }
  return static_cast<IRuntime*>(new FakeRuntime(told));
}

// FAKE_TENSORRT_VERSION, for tests of other versions than the headers'.
FAKE_API int32_t getInferLibVersion() noexcept {
  const char* given = std::getenv("FAKE_TENSORRT_VERSION");
  return given ? std::atoi(given) : NV_TENSORRT_VERSION;
}

#if NV_TENSORRT_MAJOR >= 10
FAKE_API int32_t getInferLibBuildVersion() noexcept { return NV_TENSORRT_BUILD; }
#endif
