// What a caller gives to `run`, checked against the model's inputs and outputs and put in their order.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "backend.h"
#include "mlpdeploy/session.h"

namespace mlpdeploy {

std::string shape_text(const std::int64_t* shape, std::size_t rank);  // as Python prints a tuple

Binding binding(DType dtype, const std::int64_t* shape, std::size_t rank, void* data) noexcept;

// Both throw Error (usage) with the words of Python's Session, and allocate nothing otherwise.
Feeds checked_feeds(const std::vector<TensorSpec>& specs, const TensorView* inputs, std::size_t count);
Results checked_results(const std::vector<TensorSpec>& specs, const MutableTensorView* outputs, std::size_t count,
                        const std::vector<TensorSpec>& input_specs, const Feeds& feeds);

}  // namespace mlpdeploy
