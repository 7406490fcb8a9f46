// The norm over a whole sample: mean and variance of all its pixels and channels.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels.h"

namespace mlpdeploy::cpu {

struct Statistics {
    float mean;
    float factor;  // 1 / standard deviation
};

inline long chunks_of(Kernels const& kernels, long pixels) {
    return (pixels + kernels.chunk_rows - 1) / kernels.chunk_rows;
}

// Merge the moments of a sample's chunks in their order (Chan's formula).
inline Statistics merge(Kernels const& kernels, Moments const* chunks, long pixels, long channels, float epsilon) {
    double count = 0;
    double mean = 0;
    double squares = 0;
    for (long first = 0; first < pixels; first += kernels.chunk_rows, ++chunks) {
        long const rows = std::min(kernels.chunk_rows, pixels - first);
        double const more = static_cast<double>(rows) * static_cast<double>(channels);
        double const apart = static_cast<double>(chunks->mean) - mean;
        squares += static_cast<double>(chunks->squares) + apart * apart * count * more / (count + more);
        mean += apart * more / (count + more);
        count += more;
    }
    return {static_cast<float>(mean),
            static_cast<float>(1 / std::sqrt(squares / count + static_cast<double>(epsilon)))};
}

// The moments of the chunks of `count` rows, the first of which begins a chunk.
inline void measure(Kernels const& kernels, float const* rows, long count, long stride, long channels,
                    Moments* chunks) {
    for (long row = 0; row < count; row += kernels.chunk_rows, ++chunks)
        *chunks = kernels.moments(rows + row * stride, std::min(kernels.chunk_rows, count - row), stride, channels);
}

// The norms of some samples, measured in parts of whole chunks by any threads, and merged by one.
class Norms {
public:
    Norms(Kernels const& kernels, long samples, long pixels, long channels, float epsilon)
        : kernels_(kernels),
          pixels_(pixels),
          channels_(channels),
          epsilon_(epsilon),
          chunks_(chunks_of(kernels, pixels)),
          moments_(static_cast<std::size_t>(samples * chunks_)),
          norms_(static_cast<std::size_t>(samples)) {}

    // The rows [first, first + count) of a sample; `first` begins a chunk.
    void measure(long sample, long first, long count, float const* rows, long stride) {
        cpu::measure(kernels_, rows, count, stride, channels_, &moments_of(sample)[first / kernels_.chunk_rows]);
    }

    void merge() {
        for (std::size_t i = 0; i < norms_.size(); ++i)
            norms_[i] = cpu::merge(kernels_, moments_of(static_cast<long>(i)), pixels_, channels_, epsilon_);
    }

    Statistics of(long sample) const { return norms_[static_cast<std::size_t>(sample)]; }

private:
    Moments* moments_of(long sample) { return &moments_[static_cast<std::size_t>(sample * chunks_)]; }

    Kernels const& kernels_;
    long pixels_;
    long channels_;
    float epsilon_;
    long chunks_;
    std::vector<Moments> moments_;
    std::vector<Statistics> norms_;
};

}  // namespace mlpdeploy::cpu
