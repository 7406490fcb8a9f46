// ONNX Runtime's CPU provider, with the options of mlpdeploy/runtime/onnxruntime.py. The only part that knows it.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "backend.h"
#include "mlpdeploy/session.h"

namespace mlpdeploy {

// A loaded ONNX file. `run` is thread-safe.
class OnnxModel {
 public:
  // Throws Error (artifact): ONNX Runtime cannot load it.
  OnnxModel(const std::filesystem::path& file, int threads, const std::vector<TensorSpec>& inputs,
            const std::vector<TensorSpec>& outputs);
  OnnxModel(OnnxModel&&) noexcept;
  ~OnnxModel();

  // Takes an output that ONNX Runtime has allocated, because its binding has no data.
  using Take = void (*)(void* context, std::size_t output, const Binding& value);

  // Inputs and outputs as many as the specs. Throws Error (backend).
  void run(const Binding* inputs, const Binding* outputs, Take take = nullptr, void* context = nullptr) const;

  static std::string version();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mlpdeploy
