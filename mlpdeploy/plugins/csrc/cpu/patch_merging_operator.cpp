// mlpdeploy::PatchMergingBf16 in ONNX Runtime; mlpdeploy/ops/patch_merging.py is its contract.
#include "operator.h"
#include "patch_merging.h"

namespace mlpdeploy::cpu {
namespace {

class PatchMergingKernel {
public:
    static constexpr char const* kName = "PatchMergingBf16";
    static constexpr Operands kOperands = Operands::kBfloat16;
    static constexpr std::size_t kInputs = 3;  // X, weights, bias
    static int input_type(std::size_t i) { return i == 1 ? ort::kBfloat16 : ort::kFloat; }

    PatchMergingKernel(Node const& node, Kernels const& kernels) : memory_(node.api(), node.info()) {
        Tensor weights[kInputs - 1];
        node.read_weights(weights, kInputs - 1);
        long const out = static_cast<long>(weights[0].sizes[0]);
        channels_ = static_cast<long>(weights[0].sizes[1]);
        if (channels_ < 1 || out < 1 || !weights[0].is({out, channels_, 2, 2}) || !weights[1].is({out}) ||
            !PatchMerging::takes(kernels, channels_, out))
            throw std::invalid_argument("a weight of a wrong shape");
        constexpr bool kIsMatrix[] = {true, false};
        WeightFloats<kInputs - 1> const w(weights, kIsMatrix);
        merging_ = std::make_unique<PatchMerging>(kernels, channels_, out, node.real("epsilon"), w[0], w[1]);
        out_channels_ = out;
    }

    void compute(ort::Table api, OrtKernelContext* context) const {
        Run run(api, memory_, context);
        Tensor const x = run.input();
        if (x.rank != kRank || x.sizes[3] != channels_ || x.sizes[1] % 2 != 0 || x.sizes[2] % 2 != 0)
            throw std::invalid_argument("X does not fit the weights");
        Tensor y = x;
        y.sizes[1] /= 2;
        y.sizes[2] /= 2;
        y.sizes[3] = out_channels_;
        merging_->run(run, x.data, run.output(y).data, static_cast<long>(x.sizes[0]), static_cast<long>(x.sizes[1]),
                      static_cast<long>(x.sizes[2]));
    }

private:
    Memory memory_;
    long channels_;
    long out_channels_;
    std::unique_ptr<PatchMerging> merging_;
};

}  // namespace

ort::CustomOp patch_merging_bf16_op() { return make_op<PatchMergingKernel>(); }

}  // namespace mlpdeploy::cpu
