#include "branch_gates.h"

#include <algorithm>
#include <cmath>

namespace mlpdeploy::cpu {
namespace {

// Rows (c, branch) in the order (branch, c), so that a branch's logits follow each other.
std::vector<float> by_branch(float const* rows, long channels, long width) {
    std::vector<float> ordered(static_cast<std::size_t>(3 * channels * width));
    for (long row = 0; row < 3 * channels; ++row) {
        long const to = row % 3 * channels + row / 3;
        std::copy_n(rows + row * width, width, ordered.data() + to * width);
    }
    return ordered;
}

// Three logits of each channel become three gates whose sum is one: (3, channels) -> (3, stride).
void softmax(float const* logits, long channels, float* gates, long stride) {
    for (long c = 0; c < channels; ++c) {
        float const of[] = {logits[c], logits[channels + c], logits[2 * channels + c]};
        float const most = std::max(of[0], std::max(of[1], of[2]));
        float const exps[] = {std::exp(of[0] - most), std::exp(of[1] - most), std::exp(of[2] - most)};
        float const sum = exps[0] + exps[1] + exps[2];
        for (long k = 0; k < 3; ++k) gates[k * stride + c] = exps[k] / sum;
    }
}

}  // namespace

BranchGates::BranchGates(Kernels const& kernels, GateWeights const& weights, long channels, long hidden)
    : channels_(channels),
      hidden_stride_(float_stride(kernels, hidden)),
      logits_stride_(float_stride(kernels, 3 * channels)),
      first_(kernels, {weights.first, channels, 1}, weights.first_bias, channels, hidden),
      second_(kernels, {by_branch(weights.second, channels, hidden).data(), hidden, 1},
              by_branch(weights.second_bias, channels, 1).data(), hidden, 3 * channels) {}

void BranchGates::compute(Host& host, float const* mean, float* gates, long stride) const {
    Scratch const memory(host, hidden_stride_ + logits_stride_);
    float* const hidden = memory.get();
    float* const logits = hidden + hidden_stride_;
    first_.multiply(Finish::kGelu, mean, stride, 1, hidden, hidden_stride_);
    second_.multiply(Finish::kStore, hidden, hidden_stride_, 1, logits, logits_stride_);
    softmax(logits, channels_, gates, stride);
}

std::vector<float> in_floats(float const* weights, float const* steps, long out_channels, long in_channels) {
    std::vector<float> values(weights, weights + out_channels * in_channels);
    for (long i = 0; steps != nullptr && i < out_channels * in_channels; ++i)
        values[static_cast<std::size_t>(i)] *= steps[i / in_channels];
    return values;
}

}  // namespace mlpdeploy::cpu
