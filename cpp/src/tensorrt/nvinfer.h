// TensorRT 8.6, 10 or 11, whichever this library was compiled for, loaded at run time. The only part that knows it.
#pragma once

#include <NvInferRuntime.h>

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "../split.h"
#include "mlpdeploy/session.h"

namespace mlpdeploy {

// Keeps the last error that TensorRT told, from whatever thread. There is one for all engines, which is never freed:
// TensorRT keeps a pointer to the first logger that a process gives it, and uses it for everything.
class Complaints final : public nvinfer1::ILogger {
 public:
  static Complaints& of_process();
  void log(Severity severity, char const* message) noexcept override;
  std::string last() const;  // or that there is none
  void forget();

 private:
  mutable std::mutex mutex_;
  std::array<char, 512> last_{};
};

struct Nvinfer {
  std::string version;  // in full where the library tells it: "11.4.0.106"
  void* (*create_runtime)(void* logger, std::int32_t version) = nullptr;

  std::string name() const { return "TensorRT " + version; }
};

// Throws Error (backend): it is not there, of another major version, or older than the headers.
const Nvinfer& load_nvinfer();

// Sizes of one input in one profile.
struct SizeRange {
  nvinfer1::Dims least, most;
};

struct EngineTensor {
  std::string name;
  DType dtype = DType::float32;
  nvinfer1::Dims shape;           // -1 where the profile decides
  std::vector<SizeRange> ranges;  // of an input, by profile
};

using Context = std::unique_ptr<nvinfer1::IExecutionContext>;

// A deserialized engine. The GPU's context must be current in every call, and at the end.
class Engine {
 public:
  struct Source {
    std::string path;                 // for error texts
    std::string plan;                 // the engine's bytes
    std::string plugin_library;       // empty: none
    bool version_compatible = false;  // the plan carries a runtime of its own
  };

  // Inputs and outputs are those that the manifest names, in its order. Throws Error (backend, artifact).
  Engine(const Source& source, const std::vector<TensorSpec>& inputs, const std::vector<TensorSpec>& outputs);

  const Nvinfer& nvinfer() const noexcept { return nvinfer_; }
  const Complaints& complaints() const noexcept { return complaints_; }
  const std::vector<EngineTensor>& inputs() const noexcept { return inputs_; }
  const std::vector<EngineTensor>& outputs() const noexcept { return outputs_; }
  const std::vector<RowRange>& profiles() const noexcept { return profiles_; }
  bool has_profiles() const noexcept { return has_profiles_; }  // else all shapes are fixed
  std::size_t scratch_bytes() const noexcept { return scratch_bytes_; }

  // A context without scratch memory of its own: contexts that run one after another share it. Throws Error (backend).
  Context create_context() const;
  void give_scratch(nvinfer1::IExecutionContext& context, void* scratch) const;

 private:
  const Nvinfer& nvinfer_;
  Complaints& complaints_ = Complaints::of_process();
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  mutable std::mutex making_;
  std::vector<EngineTensor> inputs_, outputs_;
  std::vector<RowRange> profiles_;
  bool has_profiles_ = false;
  std::size_t scratch_bytes_ = 0;

  void load(const Source& source);
  std::vector<EngineTensor> tensors(const Source& source, const std::vector<TensorSpec>& specs,
                                    nvinfer1::TensorIOMode mode) const;
  void read_profiles();
};

}  // namespace mlpdeploy
