// A block of Vision Permutator on rows (N, H, W, C): norm, weighted permute MLP, residual; norm, MLP, residual.
#pragma once

#include <memory>

#include "token_block.h"

namespace mlpdeploy::cpu {

struct PermutatorWeights : TokenWeights {
    float const* mlp_h;  // (out, in), and so the others
    float const* mlp_w;
    float const* mlp_c;
};

struct PermutatorSizes : TokenSizes {  // channels: a multiple of side
    long side;                         // pixels along an image's side, and segments of its channels
};

class PermutatorBlock : TokenBlock {
public:
    // See TokenBlock's.
    PermutatorBlock(Kernels const& kernels, Kernels const& float_kernels, PermutatorSizes const& sizes, float epsilon,
                    PermutatorWeights const& weights);

    // y = block(x); both (samples, side, side, channels), and not the same memory. Throws std::bad_alloc.
    void run(Host& host, float const* x, float* y, long samples) const;

private:
    // Memory of samples that are computed together.
    struct Group;
    void find_gates(Group const& group, long sample) const;
    void mix_along_height(Group const& group, long sample, long first, long last) const;
    void finish_rows(Group const& group, long sample, long first, long last) const;

    long side_;
    long segment_;  // channels of one segment
    Dense mlp_h_;
    Dense mlp_w_;
    Dense mlp_c_;
    Dense mean_h_;  // from a row of mlp_h_ to the mean over its results' pixels: (C, segment)
    Dense mean_w_;
    std::unique_ptr<Dense> mean_c_;  // mlp_c_ in float, where that is not what mlp_c_ computes in
};

}  // namespace mlpdeploy::cpu
