// mlpdeploy::PatchEmbed and NormalizedPatchEmbed in ONNX Runtime; mlpdeploy/ops/patch_embed.py is their contract.
#include "operator.h"
#include "patch_embed.h"

namespace mlpdeploy::cpu {
namespace {

template <bool Normalized>
class PatchEmbedKernel {
public:
    static constexpr char const* kName = Normalized ? "NormalizedPatchEmbed" : "PatchEmbed";
    static constexpr Operands kOperands = Operands::kFloat;
    static constexpr std::size_t kWeights = Normalized ? 4 : 2;  // with scale and offset of the norm
    static constexpr std::size_t kInputs = 1 + kWeights;
    static int input_type(std::size_t) { return ort::kFloat; }

    PatchEmbedKernel(Node const& node, Kernels const& kernels) : memory_(node.api(), node.info()) {
        Tensor weights[kWeights];
        node.read_weights(weights, kWeights);
        auto const size = [&](std::size_t axis) { return static_cast<long>(weights[0].sizes[axis]); };
        sizes_ = {size(1), size(0), size(2), node.integer("stride"), node.integer("padding")};
        if (sizes_.stride < 1 || sizes_.padding < 0) throw std::invalid_argument("impossible stride or padding");
        bool good = sizes_.channels > 0 && sizes_.out_channels > 0 && sizes_.kernel > 0 &&
                    weights[0].is({sizes_.out_channels, sizes_.channels, sizes_.kernel, sizes_.kernel});
        for (std::size_t i = 1; i < kWeights; ++i) good = good && weights[i].is({sizes_.out_channels});
        if (!good || !PatchEmbed::takes(kernels, sizes_)) throw std::invalid_argument("a weight of a wrong shape");
        constexpr bool kIsMatrix[kWeights] = {};
        WeightFloats<kWeights> const w(weights, kIsMatrix, kOperands);
        std::optional<PatchEmbed::Norm> norm;
        if (Normalized) norm = {node.real("epsilon"), w[kWeights - 2], w[kWeights - 1]};
        embed_ = std::make_unique<PatchEmbed>(kernels, sizes_, w[0], w[1], norm);
    }

    void compute(ort::Table api, OrtKernelContext* context) const {
        Run run(api, memory_, context);
        Tensor const x = run.input();
        if (x.rank != kRank || x.sizes[1] != sizes_.channels) throw std::invalid_argument("X does not fit the weights");
        long const height = static_cast<long>(x.sizes[2]);
        long const width = static_cast<long>(x.sizes[3]);
        Tensor y = x;
        y.sizes[1] = sizes_.out_of(height);
        y.sizes[2] = sizes_.out_of(width);
        y.sizes[3] = sizes_.out_channels;
        embed_->run(run, x.data, run.output(y).data, static_cast<long>(x.sizes[0]), height, width);
    }

private:
    Memory memory_;
    PatchEmbed::Sizes sizes_;
    std::unique_ptr<PatchEmbed> embed_;
};

}  // namespace

ort::CustomOp patch_embed_op() { return make_op<PatchEmbedKernel<false>>(); }
ort::CustomOp normalized_patch_embed_op() { return make_op<PatchEmbedKernel<true>>(); }

}  // namespace mlpdeploy::cpu
