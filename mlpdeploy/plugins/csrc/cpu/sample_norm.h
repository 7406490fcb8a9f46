// The norm over a whole sample: mean and variance of all its pixels and channels.
#pragma once

#include <algorithm>
#include <cmath>

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

}  // namespace mlpdeploy::cpu
