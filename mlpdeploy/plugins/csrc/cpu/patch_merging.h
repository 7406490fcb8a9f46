// AS-MLP's patch merging on rows (N, H, W, C): the norm of a sample, and a 2x2 convolution of stride 2.
#pragma once

#include "dense.h"
#include "host.h"
#include "kernels.h"

namespace mlpdeploy::cpu {

class PatchMerging {
public:
    // Inputs and outputs come in whole panels.
    static bool takes(Kernels const& kernels, long channels, long out_channels) {
        return 2 * channels % kernels.panel == 0 && out_channels % kernels.panel == 0;
    }

    // weights: (out_channels, channels, 2, 2), bias: (out_channels); both are copied. Throws std::bad_alloc.
    PatchMerging(Kernels const& kernels, long channels, long out_channels, float epsilon, float const* weights,
                 float const* bias, Scaling const& scaling = {});

    // x: (samples, height, width, channels), y: (samples, height / 2, width / 2, out_channels); height and width are
    // even. Throws std::bad_alloc.
    void run(Host& host, float const* x, float* y, long samples, long height, long width) const;

private:
    Kernels const* kernels_;
    long channels_;
    long out_channels_;
    float epsilon_;
    Scale scale_;
    Dense merge_;  // from four pixels, row by row, to one
};

}  // namespace mlpdeploy::cpu
