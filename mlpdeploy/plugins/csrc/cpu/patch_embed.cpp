#include "patch_embed.h"

#include <algorithm>
#include <vector>

#include "sample_norm.h"

namespace mlpdeploy::cpu {
namespace {

Floats copy_of(float const* values, long count) {
    Floats copy = aligned_floats(count);
    std::copy_n(values, count, copy.get());
    return copy;
}

}  // namespace

PatchEmbed::PatchEmbed(Kernels const& kernels, Sizes const& sizes, float const* weights, float const* bias,
                       std::optional<Norm> const& norm)
    : kernels_(&kernels),
      sizes_(sizes),
      stride_(float_stride(kernels, sizes.depth())),
      zeros_(aligned_floats(sizes.kernel)),
      product_(kernels, {weights, sizes.depth(), 1}, bias, sizes.depth(), sizes.out_channels) {
    if (!norm) return;
    epsilon_ = norm->epsilon;
    scale_ = copy_of(norm->scale, sizes.out_channels);
    offset_ = copy_of(norm->offset, sizes.out_channels);
}

void PatchEmbed::run(Host& host, float const* x, float* y, long samples, long height, long width) const {
    Kernels const& k = *kernels_;
    long const pixels = sizes_.out_of(height) * sizes_.out_of(width);
    if (pixels == 0) return;
    long const out = sizes_.out_channels;
    long const chunks = chunks_of(k, pixels);
    long const step = rows_of_task(k, pixels);
    long const parts = (pixels + step - 1) / step;
    std::vector<Moments> moments(epsilon_ ? static_cast<std::size_t>(samples * chunks) : 0);
    for_each(host, samples * parts, [&](long task) {
        long const sample = task / parts;
        long const first = task % parts * step;
        long const count = std::min(step, pixels - first);
        Scratch const rows(host, operand_floats(k, count, stride_));
        gather(x + sample * sizes_.channels * height * width, height, width, first, count, rows.get());
        float* const to = y + (sample * pixels + first) * out;
        product_.multiply(Finish::kStore, rows.get(), stride_, count, to, out);
        if (epsilon_)
            measure(k, to, count, out, out, &moments[static_cast<std::size_t>(sample * chunks + first / k.chunk_rows)]);
    });
    if (!epsilon_) return;
    for_each(host, samples * parts, [&](long task) {
        long const sample = task / parts;
        long const first = task % parts * step;
        Statistics const norm = merge(k, &moments[static_cast<std::size_t>(sample * chunks)], pixels, out, *epsilon_);
        float* const at = y + (sample * pixels + first) * out;
        k.normalize_affine({at, out, std::min(step, pixels - first), out, at, out, {}}, norm.mean, norm.factor,
                           scale_.get(), offset_.get());
    });
}

// rows <- what the kernel sees from the output's pixels [first, first + count), plane by plane.
void PatchEmbed::gather(float const* x, long height, long width, long first, long count, float* rows) const {
    auto const [channels, out_channels, kernel, step, padding] = sizes_;
    long const out_width = sizes_.out_of(width);
    // The outputs [begin, end) of a line see nothing left or right of the image.
    long const begin = std::min((padding + step - 1) / step, out_width);
    long const end = std::max(begin, std::min((width + padding - kernel + step) / step, out_width));
    for (long done = 0; done < count;) {
        long const line = (first + done) / out_width;
        long const from = (first + done) % out_width;
        long const to = std::min(out_width, from + count - done);
        for (long channel = 0; channel < channels; ++channel) {
            for (long row = 0; row < kernel; ++row) {
                float* const place = rows + done * stride_ + (channel * kernel + row) * kernel;
                long const y = line * step + row - padding;
                if (y < 0 || y >= height) {
                    kernels_->copy_segments({zeros_.get(), 0, place, stride_, kernel, to - from});
                    continue;
                }
                float const* const source = x + (channel * height + y) * width;
                long const inside = std::max(from, begin);
                long const behind = std::max(inside, std::min(to, end));
                kernels_->copy_segments({source + inside * step - padding, step, place + (inside - from) * stride_,
                                         stride_, kernel, behind - inside});
                auto const put_border = [&](long out) {
                    for (long column = 0; column < kernel; ++column) {
                        long const at = out * step + column - padding;
                        place[(out - from) * stride_ + column] = at >= 0 && at < width ? source[at] : 0.0F;
                    }
                };
                for (long out = from; out < std::min(to, begin); ++out) put_border(out);
                for (long out = std::max(from, end); out < to; ++out) put_border(out);
            }
        }
        done += to - from;
    }
}

}  // namespace mlpdeploy::cpu
