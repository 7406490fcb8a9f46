// The gates of a block with three branches: softmax over the branches of an MLP of their sum's mean over the image.
#pragma once

#include <vector>

#include "dense.h"
#include "host.h"
#include "kernels.h"

namespace mlpdeploy::cpu {

// Weights as ONNX has them, (out, in); vectors are (out).
struct GateWeights {
    float const* first;
    float const* first_bias;
    float const* second;  // output 3 c + k is branch k's logit for channel c
    float const* second_bias;
};

class BranchGates {
public:
    // Copies the weights. `kernels` are of float. Throws std::bad_alloc.
    BranchGates(Kernels const& kernels, GateWeights const& weights, long channels, long hidden);

    // gates (3, stride) <- the mean over the image of the branches' sum: (channels). Throws std::bad_alloc.
    void compute(Host& host, float const* mean, float* gates, long stride) const;

private:
    long channels_;
    long hidden_stride_;
    long logits_stride_;
    Dense first_;
    Dense second_;  // outputs by branch: (3, channels)
};

// Weights (out, in) in float, multiplied with their steps where they have any.
std::vector<float> in_floats(float const* weights, float const* steps, long out_channels, long in_channels);

}  // namespace mlpdeploy::cpu
