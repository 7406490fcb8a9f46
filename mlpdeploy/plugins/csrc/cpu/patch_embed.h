// The first convolution of a model, from planes (N, C, H, W) to rows (N, P, Q, O), and the norm over a sample that
// AS-MLP has behind it. In float32.
#pragma once

#include <optional>

#include "dense.h"
#include "host.h"
#include "kernels.h"

namespace mlpdeploy::cpu {

class PatchEmbed {
public:
    struct Sizes {
        long channels;
        long out_channels;
        long kernel;  // of a square
        long stride;
        long padding;  // zeros around the image

        long depth() const { return channels * kernel * kernel; }
        long out_of(long size) const {
            long const steps = size + 2 * padding - kernel;
            return size < 1 || steps < 0 ? 0 : steps / stride + 1;
        }
    };

    // With an affine part for each output.
    struct Norm {
        float epsilon;
        float const* scale;   // (out_channels)
        float const* offset;  // (out_channels)
    };

    // Outputs come in whole panels.
    static bool takes(Kernels const& kernels, Sizes const& sizes) { return sizes.out_channels % kernels.panel == 0; }

    // kernels: for floats. weights: (out_channels, channels, kernel, kernel), bias: (out_channels); these and the
    // norm's are copied. Throws std::bad_alloc.
    PatchEmbed(Kernels const& kernels, Sizes const& sizes, float const* weights, float const* bias,
               std::optional<Norm> const& norm);

    // x: (samples, channels, height, width), y: (samples, out_of(height), out_of(width), out_channels).
    // Throws std::bad_alloc.
    void run(Host& host, float const* x, float* y, long samples, long height, long width) const;

private:
    void gather(float const* x, long height, long width, long first, long count, float* rows) const;

    Kernels const* kernels_;
    Sizes sizes_;
    long stride_;   // of the product's rows
    Floats zeros_;  // a line of the kernel
    Dense product_;
    std::optional<float> epsilon_;
    Floats scale_;
    Floats offset_;
};

}  // namespace mlpdeploy::cpu
