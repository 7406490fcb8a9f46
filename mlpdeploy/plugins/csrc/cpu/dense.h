// A linear layer on rows of channels, or a 1x1 convolution: its weights as column panels, and its products.
#pragma once

#include <memory>

#include "kernels.h"
#include "memory.h"

namespace mlpdeploy::cpu {

inline long round_up(long value, long unit) { return (value + unit - 1) / unit * unit; }

// Values of `bytes` each from one row of `channels` to the next: whole panels and whole cache lines. Strides of whole
// powers of two would put the rows that a product reads side by side into the same few lines of the first cache.
inline long stride_of(Kernels const& kernels, long channels, long bytes) {
    long const line = 64 / bytes;
    long const stride = round_up(round_up(channels, kernels.panel), line);
    return stride % (8 * line) == 0 ? stride + line : stride;
}
inline long float_stride(Kernels const& kernels, long channels) { return stride_of(kernels, channels, sizeof(float)); }
inline long operand_stride(Kernels const& kernels, long channels) {
    return stride_of(kernels, channels, kernels.operand_bytes);
}

// Floats that `rows` of operands take, with the room behind them that products read.
inline long operand_floats(Kernels const& kernels, long rows, long stride) {
    return round_up(rows, kernels.row_unit) * stride * kernels.operand_bytes / static_cast<long>(sizeof(float));
}

// Rows of one task on an image: whole chunks, few enough that there is work for many threads, and enough that weights
// are reused.
inline long rows_of_task(Kernels const& kernels, long pixels) {
    return (pixels >= 2048 ? 4 : pixels >= 512 ? 2 : 1) * kernels.chunk_rows;
}

// Weights as ONNX has them: that of output `out` and input `in` is data[out * out_step + in * in_step].
struct Matrix {
    float const* data;
    long out_step;
    long in_step;
};

// How an 8-bit product is scaled; a product of other operands is not.
struct Scaling {
    float const* steps = nullptr;  // (out_channels): of the weights
    Scale in;                      // of the rows
    Scale out;                     // of the operands that kGeluOperand writes
};

// The column panels [first, last) of a product; all of them by default.
struct Panels {
    long first = 0;
    long last = -1;
};

class Dense {
public:
    // weights: of (out_channels, in_channels), bias: (out_channels), or null for none; all are copied. Throws
    // std::invalid_argument if sums of 8-bit products could overflow.
    Dense(Kernels const& kernels, Matrix weights, float const* bias, long in_channels, long out_channels,
          Scaling const& scaling = {});

    long panels() const { return panels_; }

    // out (row_count, out_stride) = finish(rows x weights + bias), for some panels. rows are operands, and out is
    // floats or, with kGeluOperand, operands. kAdd adds to `added`, whose stride is out's, or to what is in out.
    void multiply(Finish finish, void const* rows, long row_stride, long row_count, void* out, long out_stride,
                  float const* added = nullptr, Panels panels = {}) const;

private:
    Kernels const* kernels_;
    long depth_;
    long panels_;
    long panel_bytes_;
    std::shared_ptr<char[]> weights_;
    Floats scales_;  // null but for 8 bits
    Floats bias_;
    Scale out_scale_;
};

}  // namespace mlpdeploy::cpu
