// What a caller gives to `run`, checked against the model's inputs and outputs and put in their order.
#pragma once

#include <cstdint>
#include <vector>

#include "mlpdeploy/session.h"
#include "onnxruntime.h"

namespace mlpdeploy {

struct Feeds {
  Binding tensors[max_tensors];  // the model reads them; `data` is not const because the runtime's interface is not

  std::int64_t rows() const noexcept { return tensors[0].shape[0]; }
};

struct Results {
  Binding tensors[max_tensors];
};

Binding binding(DType dtype, const std::int64_t* shape, std::size_t rank, void* data) noexcept;

// Both throw Error (usage) with the words of Python's Session, and allocate nothing otherwise.
Feeds checked_feeds(const std::vector<TensorSpec>& specs, const TensorView* inputs, std::size_t count);
Results checked_results(const std::vector<TensorSpec>& specs, const MutableTensorView* outputs, std::size_t count,
                        std::int64_t rows);

}  // namespace mlpdeploy
