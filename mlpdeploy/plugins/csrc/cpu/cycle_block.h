// A block of CycleMLP on rows (N, H, W, C): norm, weighted cycle MLP, residual; norm, MLP, residual.
#pragma once

#include <memory>

#include "token_block.h"

namespace mlpdeploy::cpu {

struct CycleWeights : TokenWeights {
    float const* along_w;  // (out, in), of channels that moved along the width, and so the other matrices
    float const* along_w_bias;
    float const* along_h;
    float const* along_h_bias;
    float const* in_place;
};

class CycleBlock : TokenBlock {
public:
    // See TokenBlock's.
    CycleBlock(Kernels const& kernels, Kernels const& float_kernels, TokenSizes const& sizes, float epsilon,
               CycleWeights const& weights);

    // y = block(x); both (samples, height, width, channels), and not the same memory. Throws std::bad_alloc.
    void run(Host& host, float const* x, float* y, long samples, long height, long width) const;

private:
    // Memory of samples that are computed together.
    struct Group;
    void run_by_rows(Group const& group) const;
    void run_by_columns(Group const& group) const;
    void average_branch(Group const& group, long branch) const;
    void find_gates(Group const& group, long sample) const;
    void mix_along_height(Group const& group, long sample, long first, long rows) const;
    void finish_rows(Group const& group, long sample, long first, long rows) const;

    Dense branches_[kBranches];
    std::unique_ptr<Dense> in_float_[kBranches];  // the branches in float, where that is not what they compute in
};

}  // namespace mlpdeploy::cpu
