// ONNX Runtime on the CPU or a GPU, with the options of mlpdeploy/runtime/onnxruntime.py. The only part that knows it.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend.h"
#include "mlpdeploy/session.h"

namespace mlpdeploy {

// A loaded ONNX file. `run` is thread-safe.
class OnnxModel {
 public:
  // On the GPU with this index by the CUDA provider, never by the CPU's instead; none: on the CPU, with the operators
  // of the library `kernels`, or none where it is empty.
  // Throws Error: artifact (ONNX Runtime cannot load it), backend (the provider does not run here).
  OnnxModel(const std::filesystem::path& file, int threads, std::optional<int> gpu,
            const std::filesystem::path& kernels, const std::vector<TensorSpec>& inputs,
            const std::vector<TensorSpec>& outputs);
  OnnxModel(OnnxModel&&) noexcept;
  ~OnnxModel();

  // Takes an output that ONNX Runtime has allocated, because its binding has no data.
  using Take = void (*)(void* context, std::size_t output, const Binding& value);

  // Inputs and outputs as many as the specs; on a GPU their data is Staging. Throws Error (backend).
  void run(const Binding* inputs, const Binding* outputs, Take take = nullptr, void* context = nullptr) const;

  static std::string version();
  static bool has_cuda();  // whether the library that is loaded was built with the provider
  static std::string refusal(
      const std::filesystem::path& kernels);  // why it takes no operators from it; empty: it does

 private:
  friend class Staging;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Memory for a tensor of a model: pinned where the model is on a GPU, which copies from and to it without a detour.
// The model must outlive it.
class Staging {
 public:
  Staging() = default;
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;
  ~Staging();

  // At least so many bytes; what was in them is gone. Throws Error (backend).
  void* room(const OnnxModel& model, std::size_t bytes);

 private:
  std::vector<std::byte> plain_;
  const OnnxModel* model_ = nullptr;
  void* pinned_ = nullptr;
  std::size_t pinned_bytes_ = 0;

  void release() noexcept;
};

}  // namespace mlpdeploy
