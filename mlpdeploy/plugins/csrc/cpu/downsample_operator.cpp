// mlpdeploy::PatchMergingBf16, DownsampleBf16 and those with Int8 in ONNX Runtime; mlpdeploy/ops/downsample.py is their
// contract.
#include "downsample.h"
#include "operator.h"

namespace mlpdeploy::cpu {
namespace {

template <Operands Kind, bool Merging>
class DownsampleKernel {
public:
    static constexpr bool kInt8 = Kind == Operands::kInt8;
    static constexpr char const* kName =
        Merging ? (kInt8 ? "PatchMergingInt8" : "PatchMergingBf16") : (kInt8 ? "DownsampleInt8" : "DownsampleBf16");
    static constexpr Operands kOperands = Kind;
    static constexpr std::size_t kInputs = kInt8 ? 4 : 3;  // X, weights, bias and, for 8 bits, the weights' steps
    static int input_type(std::size_t i) { return i == 1 ? matrix_type(Kind) : ort::kFloat; }

    DownsampleKernel(Node const& node, Kernels const& kernels) : memory_(node.api(), node.info()) {
        Tensor weights[kInputs - 1];
        node.read_weights(weights, kInputs - 1);
        sizes_ = {static_cast<long>(weights[0].sizes[1]), static_cast<long>(weights[0].sizes[0]),
                  static_cast<long>(weights[0].sizes[2])};
        auto const [channels, out, kernel] = sizes_;
        if (channels < 1 || out < 1 || kernel < 1 || (Merging && kernel != 2) ||
            !weights[0].is({out, channels, kernel, kernel}) || !weights[1].is({out}) ||
            (kInt8 && !weights[kInputs - 2].is({out})) || !Downsample::takes(kernels, sizes_))
            throw std::invalid_argument("a weight of a wrong shape");
        constexpr bool kIsMatrix[] = {true, false, false};
        WeightFloats<kInputs - 1> const w(weights, kIsMatrix, Kind);
        Scaling const scaling = kInt8 ? Scaling{w[kInputs - 2], node.scale("x"), {}} : Scaling{};
        std::optional<float> const epsilon = Merging ? std::optional(node.real("epsilon")) : std::nullopt;
        downsample_ = std::make_unique<Downsample>(kernels, sizes_, epsilon, w[0], w[1], scaling);
    }

    void compute(ort::Table api, OrtKernelContext* context) const {
        Run run(api, memory_, context);
        Tensor const x = run.input();
        if (x.rank != kRank || x.sizes[3] != sizes_.channels ||
            (Merging && (x.sizes[1] % 2 != 0 || x.sizes[2] % 2 != 0)))
            throw std::invalid_argument("X does not fit the weights");
        long const height = static_cast<long>(x.sizes[1]);
        long const width = static_cast<long>(x.sizes[2]);
        Tensor y = x;
        y.sizes[1] = sizes_.out_of(height);
        y.sizes[2] = sizes_.out_of(width);
        y.sizes[3] = sizes_.out_channels;
        downsample_->run(run, x.data, run.output(y).data, static_cast<long>(x.sizes[0]), height, width);
    }

private:
    Memory memory_;
    Downsample::Sizes sizes_;
    std::unique_ptr<Downsample> downsample_;
};

}  // namespace

ort::CustomOp patch_merging_bf16_op() { return make_op<DownsampleKernel<Operands::kBfloat16, true>>(); }
ort::CustomOp patch_merging_int8_op() { return make_op<DownsampleKernel<Operands::kInt8, true>>(); }
ort::CustomOp downsample_bf16_op() { return make_op<DownsampleKernel<Operands::kBfloat16, false>>(); }
ort::CustomOp downsample_int8_op() { return make_op<DownsampleKernel<Operands::kInt8, false>>(); }

}  // namespace mlpdeploy::cpu
