#include "dense.h"

#include <algorithm>
#include <cstdlib>
#include <new>

namespace mlpdeploy::cpu {

void FreeDeleter::operator()(float* memory) const { std::free(memory); }

Floats aligned_floats(long count) {
    constexpr long kLine = 64 / sizeof(float);
    long const size = round_up(std::max(count, 1L), kLine);
    auto* memory = static_cast<float*>(std::aligned_alloc(64, static_cast<std::size_t>(size) * sizeof(float)));
    if (memory == nullptr) throw std::bad_alloc();
    std::fill_n(memory, size, 0.0F);
    return Floats(memory);
}

Dense::Dense(Kernels const& kernels, Matrix weights, float const* bias, long in_channels, long out_channels)
    : kernels_(&kernels),
      depth_(in_channels),
      panels_(round_up(out_channels, kernels.panel) / kernels.panel),
      weights_(aligned_floats(panels_ * kernels.panel * in_channels)),
      bias_(aligned_floats(panels_ * kernels.panel)) {
    for (long out = 0; out < out_channels; ++out) {
        float* column = weights_.get() + out / kernels.panel * kernels.panel * in_channels + out % kernels.panel;
        float const* from = weights.data + out * weights.out_step;
        for (long in = 0; in < in_channels; ++in) column[in * kernels.panel] = from[in * weights.in_step];
    }
    if (bias != nullptr) std::copy_n(bias, out_channels, bias_.get());
}

void Dense::multiply(Finish finish, float const* rows, long row_stride, long row_count, float* out, long out_stride,
                     long first, long last) const {
    long const width = kernels_->panel;
    for (long panel = first; panel < last; ++panel) {
        kernels_->multiply(finish, {rows, row_stride, row_count, depth_, weights_.get() + panel * width * depth_,
                                    bias_.get() + panel * width, out + panel * width, out_stride});
    }
}

}  // namespace mlpdeploy::cpu
