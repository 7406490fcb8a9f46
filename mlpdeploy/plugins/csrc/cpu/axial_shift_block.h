// A block of AS-MLP on planes (N, C, H, W): norm, axial shift, residual; norm, MLP, residual.
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
};

class AxialShiftBlock {
public:
    // Copies the weights. Throws std::bad_alloc.
    AxialShiftBlock(Kernels const& kernels, long channels, long hidden, Shift const& shift, float epsilon,
                    AxialShiftWeights const& weights);

    // y = block(x); both (samples, channels, height, width), and not the same memory. Throws std::bad_alloc.
    void run(Host& host, float const* x, float* y, long samples, long height, long width) const;

private:
    struct Group;
    void run_by_rows(Group& group) const;
    void run_by_columns(Group& group) const;

    Kernels const* kernels_;
    long channels_;
    long hidden_;
    long stride_;
    long hidden_stride_;
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
};

}  // namespace mlpdeploy::cpu
