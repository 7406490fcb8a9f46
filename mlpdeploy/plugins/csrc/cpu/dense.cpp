#include "dense.h"

#include <algorithm>
#include <stdexcept>

namespace mlpdeploy::cpu {

// Products of a byte and a signed one whose sum fits into 32 bits.
constexpr long kMostTerms = 66'000;

Dense::Dense(Kernels const& kernels, Matrix weights, float const* bias, long in_channels, long out_channels,
             Scaling const& scaling)
    : kernels_(&kernels),
      depth_(in_channels),
      panels_(round_up(out_channels, kernels.panel) / kernels.panel),
      panel_bytes_(round_up(in_channels, kernels.depth_unit) * kernels.panel * kernels.operand_bytes),
      weights_(weight_memory(static_cast<std::size_t>(panels_ * panel_bytes_))),
      bias_(aligned_floats(panels_ * kernels.panel)),
      out_scale_(scaling.out) {
    for (long panel = 0; panel < panels_; ++panel) {
        long const first = panel * kernels.panel;
        kernels.pack(weights.data + first * weights.out_step, weights.out_step, weights.in_step,
                     std::min(kernels.panel, out_channels - first), in_channels, weights_.get() + panel * panel_bytes_);
    }
    if (bias != nullptr) std::copy_n(bias, out_channels, bias_.get());
    if (scaling.steps == nullptr) return;
    if (in_channels > kMostTerms) throw std::invalid_argument("too many channels for sums of 32 bits");
    // step * weight_step * sum((operand - zero) * weight), without what the zero adds, which is constant.
    scales_ = aligned_floats(panels_ * kernels.panel);
    for (long out = 0; out < out_channels; ++out) {
        double sum = 0;
        for (long in = 0; in < in_channels; ++in)
            sum += static_cast<double>(weights.data[out * weights.out_step + in * weights.in_step]);
        scales_[out] = scaling.in.step * scaling.steps[out];
        double const of_zero = static_cast<double>(scaling.in.zero) * sum * static_cast<double>(scales_[out]);
        bias_[out] = static_cast<float>(static_cast<double>(bias_[out]) - of_zero);
    }
}

void Dense::multiply(Finish finish, void const* rows, long row_stride, long row_count, void* out, long out_stride,
                     float const* added, Panels panels) const {
    long const last = panels.last < 0 ? panels_ : panels.last;
    long const column = panels.first * kernels_->panel;
    long const bytes = finish == Finish::kGeluOperand ? kernels_->operand_bytes : static_cast<long>(sizeof(float));
    void* const to = static_cast<char*>(out) + column * bytes;
    kernels_->multiply(
        finish, {rows, row_stride, row_count, depth_, weights_.get() + panels.first * panel_bytes_, last - panels.first,
                 scales_ == nullptr ? nullptr : scales_.get() + column, bias_.get() + column, to, out_stride,
                 added == nullptr ? static_cast<float const*>(to) : added + column, out_scale_});
}

}  // namespace mlpdeploy::cpu
