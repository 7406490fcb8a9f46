// What blocks of Vision Permutator and CycleMLP have in common, on rows (N, H, W, C): a norm; gates for three branches
// that mix tokens; then the projection, the residual, and norm, MLP, residual.
#pragma once

#include <vector>

#include "dense.h"
#include "host.h"
#include "kernels.h"

namespace mlpdeploy::cpu {

// Weights as ONNX has them, row-major; vectors are (out).
struct TokenWeights {
    float const* norm1_scale;
    float const* norm1_bias;
    float const* gate1;  // (out, in)
    float const* gate1_bias;
    float const* gate2;  // output 3 c + k is branch k's logit for channel c
    float const* gate2_bias;
    float const* proj;  // (in, out), and so the layers of the MLP
    float const* proj_bias;
    float const* norm2_scale;
    float const* norm2_bias;
    float const* fc1;
    float const* fc1_bias;
    float const* fc2;
    float const* fc2_bias;
    // Of 8-bit products: the steps of the weights, and the scales of what they are multiplied with. First the three
    // branches, which have the same input, then the projection and the layers of the MLP.
    float const* steps[6] = {};
    Scale scales[6] = {};
};

struct TokenSizes {
    long channels;
    long gate_hidden;
    long hidden;
};

class TokenBlock {
protected:
    // The branches are 0, 1 and 2.
    enum Products { kBranches = 3, kProj = 3, kFc1, kFc2 };

    // Copies the weights. float_kernels, for the gates, are `kernels` themselves if those are of float. Throws
    // std::bad_alloc.
    TokenBlock(Kernels const& kernels, Kernels const& float_kernels, TokenSizes const& sizes, float epsilon,
               TokenWeights const& weights);

    char* operand(char* rows, long row) const { return rows + row * operand_stride_ * kernels_->operand_bytes; }

    // Zeros behind the channels of some rows of operands, as far as products read.
    void pad(char* rows, long count) const;

    // The first norm of `count` pixels as operands, and the mean over them: (stride).
    void normalize(Host& host, float const* x, long count, char* normal, float* mean) const;

    // gates (3, stride) <- the mean over the image of the branches' sum: (stride).
    void compute_gates(Host& host, float const* mean, float* gates) const;

    // operands <- mixed * gates[2] + first * gates[0] + second * gates[1], where the results of the branches lie alike.
    void blend(float const* mixed, float const* first, float const* second, float const* gates, long rows,
               char* operands) const;

    // rows (count, stride) <- x: (count, channels), with zeros behind the channels; and back. Where rows of channels
    // are whole panels nothing is copied, and what is added up lies in the output.
    void enter(float const* x, long count, float* rows) const;
    void leave(float const* rows, long count, float* y) const;

    // The second norm of what was added up, as operands.
    void normalize_again(float const* rows, long count, char* normal) const;

    // Floats of memory that `finish` needs.
    long finish_floats(long rows) const { return rows * stride_ + operand_floats(*kernels_, rows, hidden_stride_); }

    // y <- x and what the projection and the MLP make of the blended operands, which are used up.
    void finish(char* operands, long rows, float const* x, float* memory, float* y) const;

    // Weights (out, in) of a branch in float, multiplied with their steps where they have any.
    std::vector<float> branch_in_floats(float const* weights, float const* steps) const;

    Kernels const* kernels_;
    Kernels const* float_kernels_;
    long channels_;
    long width_;           // of a row, in whole panels
    bool whole_;           // whether the channels are whole panels
    long stride_;          // of rows of floats, for both kinds of kernels
    long sum_stride_;      // of rows that are added to
    long operand_stride_;  // of rows of operands
    long hidden_stride_;   // of the hidden layer's operands
    Scale scales_[6];
    Dense proj_;
    Dense fc1_;
    Dense fc2_;

private:
    float epsilon_;
    long gate_stride_;
    long logits_stride_;
    Dense gate1_;
    Dense gate2_;   // outputs by branch: (3, channels)
    Floats norms_;  // (4, stride): scale and bias of the first norm, and of the second
};

}  // namespace mlpdeploy::cpu
