#include "downsample.h"

#include <algorithm>
#include <vector>

#include "sample_norm.h"

namespace mlpdeploy::cpu {
namespace {

// Rows of a product of one task.
constexpr long kTaskRows = 64;

constexpr Statistics kNoNorm{0, 1};

// (out, channels, kernel, kernel) -> (out, kernel, kernel, channels), as the pixels' channels follow each other.
std::vector<float> by_pixel(float const* weights, Downsample::Sizes const& sizes) {
    long const pixels = sizes.kernel * sizes.kernel;
    std::vector<float> ordered(static_cast<std::size_t>(pixels * sizes.channels * sizes.out_channels));
    float* to = ordered.data();
    for (long out = 0; out < sizes.out_channels; ++out) {
        for (long pixel = 0; pixel < pixels; ++pixel) {
            for (long c = 0; c < sizes.channels; ++c) *to++ = weights[(out * sizes.channels + c) * pixels + pixel];
        }
    }
    return ordered;
}

}  // namespace

// The image that a product's rows are gathered from, and how it is normalized meanwhile.
struct Downsample::Lines {
    float const* x;
    long height;
    long width;
    Statistics norm;
};

Downsample::Downsample(Kernels const& kernels, Sizes const& sizes, std::optional<float> epsilon, float const* weights,
                       float const* bias, Scaling const& scaling)
    : kernels_(&kernels),
      sizes_(sizes),
      epsilon_(epsilon),
      stride_(operand_stride(kernels, sizes.kernel * sizes.kernel * sizes.channels)),
      scale_(scaling.in),
      zeros_(aligned_floats(sizes.channels)),
      product_(kernels, {by_pixel(weights, sizes).data(), sizes.kernel * sizes.kernel * sizes.channels, 1}, bias,
               sizes.kernel * sizes.kernel * sizes.channels, sizes.out_channels, scaling) {}

void Downsample::run(Host& host, float const* x, float* y, long samples, long height, long width) const {
    Kernels const& k = *kernels_;
    long const pixels = height * width;
    long const out_height = sizes_.out_of(height);
    long const out_width = sizes_.out_of(width);
    if (out_height * out_width == 0) return;
    long const chunks = chunks_of(k, pixels);
    std::vector<Moments> moments(epsilon_ ? static_cast<std::size_t>(samples * chunks) : 0);
    if (epsilon_) {
        long const step = 4 * k.chunk_rows;  // pixels of a task that measures
        long const parts = (pixels + step - 1) / step;
        for_each(host, samples * parts, [&](long task) {
            long const sample = task / parts;
            long const first = task % parts * step;
            measure(k, x + (sample * pixels + first) * sizes_.channels, std::min(step, pixels - first), sizes_.channels,
                    sizes_.channels, &moments[static_cast<std::size_t>(sample * chunks + first / k.chunk_rows)]);
        });
    }
    long const count_of_task = std::max(1L, kTaskRows / out_width);  // lines of the output
    long const tasks = (out_height + count_of_task - 1) / count_of_task;
    for_each(host, samples * tasks, [&](long task) {
        long const sample = task / tasks;
        long const first = task % tasks * count_of_task;
        long const count = std::min(count_of_task, out_height - first);
        Lines const lines{
            x + sample * pixels * sizes_.channels, height, width,
            epsilon_ ? merge(k, &moments[static_cast<std::size_t>(sample * chunks)], pixels, sizes_.channels, *epsilon_)
                     : kNoNorm};
        Scratch const rows(host, operand_floats(k, count * out_width, stride_));
        gather(lines, first, count, rows.get());
        float* const to = y + (sample * out_height + first) * out_width * sizes_.out_channels;
        product_.multiply(Finish::kStore, rows.get(), stride_, count * out_width, to, sizes_.out_channels);
    });
}

// rows <- what the kernel sees from the output's lines [first, first + count).
void Downsample::gather(Lines const& lines, long first, long count, void* rows) const {
    long const channels = sizes_.channels;
    long const kernel = sizes_.kernel;
    long const padding = sizes_.padding();
    long const out_width = sizes_.out_of(lines.width);
    // The outputs [begin, end) of a line see nothing outside of the image.
    long const begin = std::min((padding + 1) / 2, out_width);
    long const end = std::max(begin, std::min((lines.width + padding - kernel + 2) / 2, out_width));
    for (long line = 0; line < count * kernel; ++line) {
        long const row = line / kernel * out_width;
        long const place = line % kernel * kernel * channels;
        long const y = 2 * (first + line / kernel) + line % kernel - padding;
        // So many pixels of this line of the kernel become operands of so many rows.
        auto const put = [&](float const* from, Statistics const& norm, long out, long column, long pixels, long outs) {
            char* const to = static_cast<char*>(rows) +
                             ((row + out) * stride_ + place + column * channels) * kernels_->operand_bytes;
            kernels_->normalize({from, 2 * channels, outs, pixels * channels, to, stride_, scale_}, norm.mean,
                                norm.factor);
        };
        auto const put_border = [&](long out) {
            for (long column = 0; column < kernel; ++column) {
                long const x = 2 * out + column - padding;
                bool const inside = y >= 0 && y < lines.height && x >= 0 && x < lines.width;
                put(inside ? lines.x + (y * lines.width + x) * channels : zeros_.get(), inside ? lines.norm : kNoNorm,
                    out, column, 1, 1);
            }
        };
        bool const inside = y >= 0 && y < lines.height;
        for (long out = 0; out < (inside ? begin : out_width); ++out) put_border(out);
        if (!inside) continue;
        put(lines.x + (y * lines.width + 2 * begin - padding) * channels, lines.norm, begin, 0, kernel, end - begin);
        for (long out = end; out < out_width; ++out) put_border(out);
    }
}

}  // namespace mlpdeploy::cpu
