// mlpdeploy::PatchMergingBf16 and PatchMergingInt8 in ONNX Runtime; mlpdeploy/ops/patch_merging.py is their contract.
#include "operator.h"
#include "patch_merging.h"

namespace mlpdeploy::cpu {
namespace {

template <Operands Kind>
class PatchMergingKernel {
public:
    static constexpr bool kInt8 = Kind == Operands::kInt8;
    static constexpr char const* kName = kInt8 ? "PatchMergingInt8" : "PatchMergingBf16";
    static constexpr Operands kOperands = Kind;
    static constexpr std::size_t kInputs = kInt8 ? 4 : 3;  // X, weights, bias and, for 8 bits, the weights' steps
    static int input_type(std::size_t i) { return i == 1 ? matrix_type(Kind) : ort::kFloat; }

    PatchMergingKernel(Node const& node, Kernels const& kernels) : memory_(node.api(), node.info()) {
        Tensor weights[kInputs - 1];
        node.read_weights(weights, kInputs - 1);
        long const out = static_cast<long>(weights[0].sizes[0]);
        channels_ = static_cast<long>(weights[0].sizes[1]);
        if (channels_ < 1 || out < 1 || !weights[0].is({out, channels_, 2, 2}) || !weights[1].is({out}) ||
            (kInt8 && !weights[kInputs - 2].is({out})) || !PatchMerging::takes(kernels, channels_, out))
            throw std::invalid_argument("a weight of a wrong shape");
        constexpr bool kIsMatrix[] = {true, false, false};
        WeightFloats<kInputs - 1> const w(weights, kIsMatrix, Kind);
        Scaling const scaling = kInt8 ? Scaling{w[kInputs - 2], node.scale("x"), {}} : Scaling{};
        merging_ = std::make_unique<PatchMerging>(kernels, channels_, out, node.real("epsilon"), w[0], w[1], scaling);
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

ort::CustomOp patch_merging_bf16_op() { return make_op<PatchMergingKernel<Operands::kBfloat16>>(); }
ort::CustomOp patch_merging_int8_op() { return make_op<PatchMergingKernel<Operands::kInt8>>(); }

}  // namespace mlpdeploy::cpu
