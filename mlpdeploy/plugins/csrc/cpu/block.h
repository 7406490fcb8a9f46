// A block of AS-MLP on planes (N, C, H, W): norm, axial shift, residual; norm, MLP, residual.
#pragma once

#include "dense.h"
#include "host.h"
#include "kernels.h"

namespace mlpdeploy::cpu {

// Weights as ONNX has them, row-major: matrices (out, in), vectors (out).
struct BlockWeights {
    const float* conv1;
    const float* conv1_bias;
    const float* norm_scale;  // of the norm in front of the shift's GELU; all other norms have none
    const float* norm_bias;
    const float* conv2_w;  // of what was shifted along W
    const float* conv2_w_bias;
    const float* conv2_h;
    const float* conv2_h_bias;
    const float* conv3;
    const float* conv3_bias;
    const float* fc1;
    const float* fc1_bias;
    const float* fc2;
    const float* fc2_bias;
};

class Block {
public:
    // Copies the weights. Throws std::bad_alloc.
    Block(const Kernels& kernels, long channels, long hidden, const Shift& shift, float epsilon, const BlockWeights& weights);

    // y = block(x); both (samples, channels, height, width), and not the same memory. Throws std::bad_alloc.
    void run(Host& host, const float* x, float* y, long samples, long height, long width) const;

private:
    struct Group;
    void run_by_rows(Group& group) const;
    void run_by_columns(Group& group) const;

    const Kernels* kernels_;
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
