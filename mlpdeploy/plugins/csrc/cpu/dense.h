// A linear layer on rows of channels, or a 1x1 convolution: its weights as column panels, and its products.
#pragma once

#include <memory>

#include "kernels.h"

namespace mlpdeploy::cpu {

inline long round_up(long value, long unit) { return (value + unit - 1) / unit * unit; }

// Floats from one row of `channels` to the next. Strides of whole powers of two would put the rows that a product reads
// side by side into the same few lines of the first cache.
inline long row_stride(Kernels const& kernels, long channels) {
    constexpr long kLine = 64 / sizeof(float);
    long const stride = round_up(round_up(channels, kernels.panel), kLine);
    return stride % (8 * kLine) == 0 ? stride + kLine : stride;
}

struct FreeDeleter {
    void operator()(float* memory) const;
};
using Floats = std::unique_ptr<float[], FreeDeleter>;

// Return `count` zeros on a cache line's boundary. Throws std::bad_alloc.
Floats aligned_floats(long count);

// Weights as ONNX has them: that of output `out` and input `in` is data[out * out_step + in * in_step].
struct Matrix {
    float const* data;
    long out_step;
    long in_step;
};

class Dense {
public:
    // weights: of (out_channels, in_channels), bias: (out_channels), or null for none; both are copied.
    Dense(Kernels const& kernels, Matrix weights, float const* bias, long in_channels, long out_channels);

    long panels() const { return panels_; }

    // out (row_count, out_stride) = finish(rows x weights + bias), for the panels [first, last).
    void multiply(Finish finish, float const* rows, long row_stride, long row_count, float* out, long out_stride,
                  long first, long last) const;

private:
    Kernels const* kernels_;
    long depth_;
    long panels_;
    Floats weights_;
    Floats bias_;
};

}  // namespace mlpdeploy::cpu
