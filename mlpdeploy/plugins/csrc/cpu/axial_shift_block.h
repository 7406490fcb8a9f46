// A block of AS-MLP: norm, axial shift, residual; norm, MLP, residual.
#pragma once

#include "dense.h"
#include "host.h"
#include "kernels.h"

namespace mlpdeploy::cpu {

// Weights as ONNX has them, row-major: matrices (out, in), vectors (out).
struct AxialShiftWeights {
    float const* conv1;
    float const* conv1_bias;
    float const* norm_scale;  // of the norm in front of the shift's GELU; all other norms have none
    float const* norm_bias;
    float const* conv2_w;  // of what was shifted along W
    float const* conv2_w_bias;
    float const* conv2_h;
    float const* conv2_h_bias;
    float const* conv3;
    float const* conv3_bias;
    float const* fc1;
    float const* fc1_bias;
    float const* fc2;
    float const* fc2_bias;
    // Of 8-bit products: the steps of the weights, and the scales of what they are multiplied with, in the order of
    // the matrices above; the two behind the shift have the same input.
    float const* steps[6] = {};
    Scale scales[6] = {};
};

// Of the tensors: (N, C, H, W), or (N, H, W, C).
enum class Layout { kPlanes, kRows };

class AxialShiftBlock {
public:
    // Copies the weights. Throws std::bad_alloc.
    AxialShiftBlock(Kernels const& kernels, Layout layout, long channels, long hidden, Shift const& shift,
                    float epsilon, AxialShiftWeights const& weights);

    // y = block(x); both of `samples` images, and not the same memory. Throws std::bad_alloc.
    void run(Host& host, float const* x, float* y, long samples, long height, long width) const;

private:
    struct Group;
    struct Part;
    struct Stream;
    Stream stream_of(Group const& group, float*& memory) const;
    void enter(Group const& group, Stream const& stream, long sample, long first, long count) const;
    void leave(Group const& group, Stream const& stream, long sample, long first, long count) const;
    template <typename Step>
    static void for_each_part(Group const& group, long size, Step const& step);
    void run_by_rows(Group& group) const;
    void run_by_columns(Group& group) const;

    Kernels const* kernels_;
    Layout layout_;
    long channels_;
    long hidden_;
    long width_;           // of a row, in whole panels
    long stride_;          // of rows of floats
    long operand_stride_;  // of rows of operands
    long hidden_stride_;   // of the hidden layer's operands
    Shift shift_;
    float epsilon_;
    Dense conv1_;
    Dense conv2_w_;
    Dense conv2_h_;
    Dense conv3_;
    Dense fc1_;
    Dense fc2_;
    Floats norm_scale_;
    Floats norm_bias_;
    Scale scales_[6];
};

}  // namespace mlpdeploy::cpu
