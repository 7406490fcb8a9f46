#include "token_block.h"

#include <algorithm>
#include <cmath>
#include <optional>

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

TokenBlock::TokenBlock(Kernels const& kernels, Kernels const& float_kernels, TokenSizes const& sizes, float epsilon,
                       TokenWeights const& w)
    : kernels_(&kernels),
      float_kernels_(&float_kernels),
      channels_(sizes.channels),
      width_(round_up(sizes.channels, kernels.panel)),
      whole_(width_ == sizes.channels),
      stride_(std::max(float_stride(kernels, sizes.channels), float_stride(float_kernels, sizes.channels))),
      sum_stride_(whole_ ? sizes.channels : stride_),
      operand_stride_(operand_stride(kernels, sizes.channels)),
      hidden_stride_(operand_stride(kernels, sizes.hidden)),
      proj_(kernels, {w.proj, 1, sizes.channels}, w.proj_bias, sizes.channels, sizes.channels,
            {w.steps[kProj], w.scales[kProj], {}}),
      fc1_(kernels, {w.fc1, 1, sizes.hidden}, w.fc1_bias, sizes.channels, sizes.hidden,
           {w.steps[kFc1], w.scales[kFc1], w.scales[kFc2]}),
      fc2_(kernels, {w.fc2, 1, sizes.channels}, w.fc2_bias, sizes.hidden, sizes.channels,
           {w.steps[kFc2], w.scales[kFc2], {}}),
      epsilon_(epsilon),
      gate_stride_(float_stride(float_kernels, sizes.gate_hidden)),
      logits_stride_(float_stride(float_kernels, 3 * sizes.channels)),
      gate1_(float_kernels, {w.gate1, sizes.channels, 1}, w.gate1_bias, sizes.channels, sizes.gate_hidden),
      gate2_(float_kernels, {by_branch(w.gate2, sizes.channels, sizes.gate_hidden).data(), sizes.gate_hidden, 1},
             by_branch(w.gate2_bias, sizes.channels, 1).data(), sizes.gate_hidden, 3 * sizes.channels),
      norms_(aligned_floats(4 * stride_)) {
    std::copy_n(w.scales, 6, scales_);
    float const* const vectors[] = {w.norm1_scale, w.norm1_bias, w.norm2_scale, w.norm2_bias};
    for (long i = 0; i < 4; ++i) std::copy_n(vectors[i], sizes.channels, norms_.get() + i * stride_);
}

void TokenBlock::pad(char* rows, long count) const {
    long const behind = round_up(channels_, kernels_->depth_unit) - channels_;
    for (long row = 0; row < count && behind > 0; ++row)
        std::fill_n(operand(rows, row) + channels_ * kernels_->operand_bytes, behind * kernels_->operand_bytes, '\0');
}

void TokenBlock::normalize(Host& host, float const* x, long count, char* normal, float* mean) const {
    std::optional<Scratch> pixels;
    if (!whole_) {
        pixels.emplace(host, count * stride_);
        enter(x, count, pixels->get());
    }
    kernels_->layer_norm({whole_ ? x : pixels->get(), sum_stride_, count, width_, normal, operand_stride_, scales_[0]},
                         channels_, epsilon_, norms_.get(), norms_.get() + stride_);
    kernels_->mean_of_rows(normal, operand_stride_, count, channels_, scales_[0], mean);
}

void TokenBlock::compute_gates(Host& host, float const* mean, float* gates) const {
    Scratch const memory(host, gate_stride_ + logits_stride_);
    float* const hidden = memory.get();
    float* const logits = hidden + gate_stride_;
    gate1_.multiply(Finish::kGelu, mean, stride_, 1, hidden, gate_stride_);
    gate2_.multiply(Finish::kStore, hidden, gate_stride_, 1, logits, logits_stride_);
    softmax(logits, channels_, gates, stride_);
}

void TokenBlock::blend(float const* mixed, float const* first, float const* second, float const* gates, long rows,
                       char* operands) const {
    kernels_->blend({mixed, stride_, rows, width_, operands, operand_stride_, scales_[kProj]}, first, second, gates);
    pad(operands, rows);
}

void TokenBlock::enter(float const* x, long count, float* rows) const {
    if (whole_) return;
    for (long row = 0; row < count; ++row) {
        float* const end = std::copy_n(x + row * channels_, channels_, rows + row * stride_);
        std::fill_n(end, stride_ - channels_, 0.0F);
    }
}

void TokenBlock::leave(float const* rows, long count, float* y) const {
    if (whole_) return;
    for (long row = 0; row < count; ++row) std::copy_n(rows + row * stride_, channels_, y + row * channels_);
}

void TokenBlock::normalize_again(float const* rows, long count, char* normal) const {
    kernels_->layer_norm({rows, sum_stride_, count, width_, normal, operand_stride_, scales_[kFc1]}, channels_,
                         epsilon_, norms_.get() + 2 * stride_, norms_.get() + 3 * stride_);
}

void TokenBlock::finish(char* operands, long rows, float const* x, float* memory, float* y) const {
    float* const sums = whole_ ? y : memory;
    float* const hidden = memory + rows * stride_;
    enter(x, rows, sums);
    proj_.multiply(Finish::kAdd, operands, operand_stride_, rows, sums, sum_stride_, whole_ ? x : sums);
    normalize_again(sums, rows, operands);
    fc1_.multiply(Finish::kGeluOperand, operands, operand_stride_, rows, hidden, hidden_stride_);
    fc2_.multiply(Finish::kAdd, hidden, hidden_stride_, rows, sums, sum_stride_);
    leave(sums, rows, y);
}

std::vector<float> TokenBlock::branch_in_floats(float const* weights, float const* steps) const {
    std::vector<float> values(weights, weights + channels_ * channels_);
    for (long i = 0; steps != nullptr && i < channels_ * channels_; ++i)
        values[static_cast<std::size_t>(i)] *= steps[i / channels_];
    return values;
}

}  // namespace mlpdeploy::cpu
