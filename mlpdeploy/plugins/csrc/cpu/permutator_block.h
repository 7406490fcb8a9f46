// A block of Vision Permutator on rows (N, H, W, C): norm, weighted permute MLP, residual; norm, MLP, residual.
#pragma once

#include "branch_gates.h"
#include "dense.h"
#include "host.h"
#include "kernels.h"

namespace mlpdeploy::cpu {

// Weights as ONNX has them, row-major; vectors are (out).
struct PermutatorWeights {
    float const* norm1_scale;
    float const* norm1_bias;
    float const* mlp_h;  // (out, in), and so the next four
    float const* mlp_w;
    float const* mlp_c;
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

struct PermutatorSizes {
    long side;      // pixels along an image's side, and segments of its channels
    long channels;  // a multiple of side
    long gate_hidden;
    long hidden;
};

class PermutatorBlock {
public:
    // Copies the weights. float_kernels, for the gates, are `kernels` themselves if those are of float. Throws
    // std::bad_alloc.
    PermutatorBlock(Kernels const& kernels, Kernels const& float_kernels, PermutatorSizes const& sizes, float epsilon,
                    PermutatorWeights const& weights);

    // y = block(x); both (samples, side, side, channels), and not the same memory. Throws std::bad_alloc.
    void run(Host& host, float const* x, float* y, long samples) const;

private:
    // Memory of samples that are computed together.
    struct Group;
    void normalize(Group const& group, long row) const;
    void compute_gates(Group const& group, long sample) const;
    void mix_along_height(Group const& group, long sample, long first, long last) const;
    void finish_rows(Group const& group, long sample, long first, long last) const;
    char* operand(char* rows, long row) const;
    void pad(char* rows, long count) const;

    Kernels const* kernels_;
    Kernels const* float_kernels_;
    PermutatorSizes sizes_;
    long segment_;         // channels of one segment
    long width_;           // of a row, in whole panels
    long stride_;          // of rows of floats
    long operand_stride_;  // of rows of operands
    long hidden_stride_;   // of the hidden layer's operands
    float epsilon_;
    Scale scales_[6];
    Dense mlp_h_;
    Dense mlp_w_;
    Dense mlp_c_;
    Dense mean_h_;  // from a row of mlp_h_ to the mean over its results' pixels: (C, segment)
    Dense mean_w_;
    std::unique_ptr<Dense> mean_c_;  // mlp_c_ in float, where that is not what mlp_c_ computes in
    BranchGates gates_;
    Dense proj_;
    Dense fc1_;
    Dense fc2_;
    Floats norms_;  // (4, stride): scale and bias of the first norm, and of the second
};

}  // namespace mlpdeploy::cpu
