#include "patch_merging.h"

#include <algorithm>
#include <vector>

#include "sample_norm.h"

namespace mlpdeploy::cpu {
namespace {

// Rows of a product of one task.
constexpr long kTaskRows = 64;

// (out, channels, 2, 2) -> (out, 2, 2, channels), as four pixels' channels follow each other.
std::vector<float> by_pixel(float const* weights, long channels, long out_channels) {
    std::vector<float> ordered(static_cast<std::size_t>(4 * channels * out_channels));
    float* to = ordered.data();
    for (long out = 0; out < out_channels; ++out) {
        for (long pixel = 0; pixel < 4; ++pixel) {
            for (long c = 0; c < channels; ++c) *to++ = weights[(out * channels + c) * 4 + pixel];
        }
    }
    return ordered;
}

}  // namespace

PatchMerging::PatchMerging(Kernels const& kernels, long channels, long out_channels, float epsilon,
                           float const* weights, float const* bias, Scaling const& scaling)
    : kernels_(&kernels),
      channels_(channels),
      out_channels_(out_channels),
      epsilon_(epsilon),
      scale_(scaling.in),
      merge_(kernels, {by_pixel(weights, channels, out_channels).data(), 4 * channels, 1}, bias, 4 * channels,
             out_channels, scaling) {}

void PatchMerging::run(Host& host, float const* x, float* y, long samples, long height, long width) const {
    Kernels const& k = *kernels_;
    long const pixels = height * width;
    if (pixels == 0) return;
    long const chunks = chunks_of(k, pixels);
    long const step = 4 * k.chunk_rows;  // pixels of a task that measures
    long const parts = (pixels + step - 1) / step;
    std::vector<Moments> moments(static_cast<std::size_t>(samples * chunks));
    for_each(host, samples * parts, [&](long task) {
        long const sample = task / parts;
        long const first = task % parts * step;
        measure(k, x + (sample * pixels + first) * channels_, std::min(step, pixels - first), channels_, channels_,
                &moments[static_cast<std::size_t>(sample * chunks + first / k.chunk_rows)]);
    });

    long const out_width = width / 2;
    long const out_height = height / 2;
    long const lines = std::max(1L, kTaskRows / out_width);  // of the output, of a task
    long const tasks = (out_height + lines - 1) / lines;
    long const stride = operand_stride(k, 4 * channels_);
    for_each(host, samples * tasks, [&](long task) {
        long const sample = task / tasks;
        long const first = task % tasks * lines;
        long const count = std::min(lines, out_height - first);
        Statistics const norm =
            merge(k, &moments[static_cast<std::size_t>(sample * chunks)], pixels, channels_, epsilon_);
        Scratch const rows(host, operand_floats(k, count * out_width, stride));
        // Two pixels of a line follow each other: they are one run of a product's row, and the next line's the other.
        for (long line = 0; line < 2 * count; ++line) {
            float const* const from = x + (sample * pixels + (2 * first + line) * width) * channels_;
            long const place = line / 2 * out_width * stride + line % 2 * 2 * channels_;
            k.normalize({from, 2 * channels_, out_width, 2 * channels_,
                         reinterpret_cast<char*>(rows.get()) + place * k.operand_bytes, stride, scale_},
                        norm.mean, norm.factor);
        }
        float* const to = y + (sample * out_height + first) * out_width * out_channels_;
        merge_.multiply(Finish::kStore, rows.get(), stride, count * out_width, to, out_channels_);
    });
}

}  // namespace mlpdeploy::cpu
