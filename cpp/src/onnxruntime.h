// ONNX Runtime's CPU provider, with the options of mlpdeploy/runtime/onnxruntime.py. The only part that knows it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "mlpdeploy/session.h"

namespace mlpdeploy {

// Inputs or outputs of one model; more are refused when it is loaded, so that a call keeps its handles on the stack.
constexpr std::size_t max_tensors = 16;
constexpr std::size_t max_rank = 8;

// One tensor of one run, in the model's order.
struct Binding {
  DType dtype = DType::float32;
  std::int64_t shape[max_rank] = {};
  std::size_t rank = 0;
  void* data = nullptr;  // null for an output: ONNX Runtime allocates it, and `take` gets it

  std::size_t row_bytes() const noexcept;
  Binding rows(std::int64_t start, std::int64_t stop) const noexcept;  // without a copy
};

// A loaded ONNX file. `run` is thread-safe.
class OnnxModel {
 public:
  // Throws Error (artifact): ONNX Runtime cannot load it.
  OnnxModel(const std::filesystem::path& file, int threads, const std::vector<TensorSpec>& inputs,
            const std::vector<TensorSpec>& outputs);
  OnnxModel(OnnxModel&&) noexcept;
  ~OnnxModel();

  // Takes an output that ONNX Runtime has allocated.
  using Take = void (*)(void* context, std::size_t output, const Binding& value);

  // Inputs and outputs as many as the specs. Throws Error (backend).
  void run(const Binding* inputs, const Binding* outputs, Take take = nullptr, void* context = nullptr) const;

  static std::string version();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mlpdeploy
