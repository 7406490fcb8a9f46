// A convolution of stride 2 on rows (N, H, W, C), between the stages of every family: AS-MLP's patch merging, which
// normalizes a sample first, and the plain ones of Vision Permutator and CycleMLP.
#pragma once

#include <optional>

#include "dense.h"
#include "host.h"
#include "kernels.h"

namespace mlpdeploy::cpu {

class Downsample {
public:
    struct Sizes {
        long channels;
        long out_channels;
        long kernel;  // of a square; (kernel - 1) / 2 zeros are around the image

        long padding() const { return (kernel - 1) / 2; }
        long out_of(long size) const {
            long const steps = size + 2 * padding() - kernel;
            return size < 1 || steps < 0 ? 0 : steps / 2 + 1;
        }
    };

    // What is read at once, and the outputs, come in whole panels: a line of the kernel, and pixels where some of it
    // may lie outside of the image.
    static bool takes(Kernels const& kernels, Sizes const& sizes) {
        long const run = (sizes.padding() > 0 ? 1 : sizes.kernel) * sizes.channels;
        return run % kernels.panel == 0 && sizes.out_channels % kernels.panel == 0;
    }

    // weights: (out_channels, channels, kernel, kernel), bias: (out_channels); both are copied. epsilon: of the norm
    // over a sample before the convolution, where there is one. Throws std::bad_alloc.
    Downsample(Kernels const& kernels, Sizes const& sizes, std::optional<float> epsilon, float const* weights,
               float const* bias, Scaling const& scaling = {});

    // x: (samples, height, width, channels), y: (samples, out_of(height), out_of(width), out_channels).
    // Throws std::bad_alloc.
    void run(Host& host, float const* x, float* y, long samples, long height, long width) const;

private:
    struct Lines;
    void gather(Lines const& lines, long first, long count, void* rows) const;

    Kernels const* kernels_;
    Sizes sizes_;
    std::optional<float> epsilon_;
    long stride_;  // of the product's rows
    Scale scale_;
    Floats zeros_;   // a pixel
    Dense product_;  // from a kernel's pixels, row by row, to one
};

}  // namespace mlpdeploy::cpu
