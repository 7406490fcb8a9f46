// A block of CycleMLP on rows (N, H, W, C): norm, weighted cycle MLP, residual; norm, MLP, residual.
#pragma once

#include <memory>

#include "branch_gates.h"
#include "dense.h"
#include "host.h"
#include "kernels.h"

namespace mlpdeploy::cpu {

// Weights as ONNX has them, row-major; vectors are (out).
struct CycleWeights {
    float const* norm1_scale;
    float const* norm1_bias;
    float const* along_w;  // (out, in), of channels that moved along the width, and so the next two matrices
    float const* along_w_bias;
    float const* along_h;
    float const* along_h_bias;
    float const* in_place;
    GateWeights gate;
    float const* proj;  // (in, out), and so the layers of the MLP
    float const* proj_bias;
    float const* norm2_scale;
    float const* norm2_bias;
    float const* fc1;
    float const* fc1_bias;
    float const* fc2;
    float const* fc2_bias;
    // Of 8-bit products: the steps of the weights, and the scales of what they are multiplied with, in the order of
    // the matrices above; the three branches have the same input.
    float const* steps[6] = {};
    Scale scales[6] = {};
};

struct CycleSizes {
    long channels;
    long gate_hidden;
    long hidden;
};

class CycleBlock {
public:
    // Copies the weights. float_kernels, for the gates, are `kernels` themselves if those are of float. Throws
    // std::bad_alloc.
    CycleBlock(Kernels const& kernels, Kernels const& float_kernels, CycleSizes const& sizes, float epsilon,
               CycleWeights const& weights);

    // y = block(x); both (samples, height, width, channels), and not the same memory. Throws std::bad_alloc.
    void run(Host& host, float const* x, float* y, long samples, long height, long width) const;

private:
    // Memory of samples that are computed together.
    struct Group;
    struct Buffers;
    enum Branch { kAlongW, kAlongH, kInPlace, kBranches };

    void run_by_rows(Host& host, float const* x, float* y, long samples, long height, long width) const;
    void run_by_columns(Host& host, float const* x, float* y, long samples, long height, long width) const;
    void normalize(Group const& group, long row) const;
    void average_branch(Group const& group, long branch) const;
    void compute_gates(Group const& group, long sample) const;
    void mix_along_height(Group const& group, long sample, long first, long rows) const;
    void finish_rows(Group const& group, long sample, long first, long rows) const;
    Dense const& branch(long index) const;
    char* operand(char* rows, long row) const;
    void pad(char* rows, long count) const;

    Kernels const* kernels_;
    Kernels const* float_kernels_;
    CycleSizes sizes_;
    long width_;           // of a row, in whole panels
    long stride_;          // of rows of floats
    long operand_stride_;  // of rows of operands
    long hidden_stride_;   // of the hidden layer's operands
    float epsilon_;
    Scale scales_[6];
    Dense along_w_;
    Dense along_h_;
    Dense in_place_;
    std::unique_ptr<Dense> in_float_[kBranches];  // the branches in float, where that is not what they compute in
    BranchGates gates_;
    Dense proj_;
    Dense fc1_;
    Dense fc2_;
    Floats norms_;  // (4, stride): scale and bias of the first norm, and of the second
};

}  // namespace mlpdeploy::cpu
