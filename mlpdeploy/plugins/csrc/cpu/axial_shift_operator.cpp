// mlpdeploy::AxialShiftBlock and AxialShiftBlockBf16 in ONNX Runtime; mlpdeploy/ops/axial_shift_block.py is their
// contract.
#include "axial_shift_block.h"
#include "operator.h"

namespace mlpdeploy::cpu {
namespace {

constexpr std::size_t kWeights = 14;
constexpr bool kIsMatrix[kWeights] = {true,  false, false, false, true,  false, true,
                                      false, true,  false, true,  false, true,  false};

Padding padding_of(std::string const& name) {
    constexpr char const* kNames[] = {"zero", "circular", "reflect", "replicate"};
    for (int i = 0; i < 4; ++i) {
        if (name == kNames[i]) return static_cast<Padding>(i);
    }
    throw std::invalid_argument("unknown padding");
}

void check_shapes(Tensor const (&weights)[kWeights], long c, long hidden) {
    // (out, in) of each matrix and (out) of each vector, in the operator's order.
    long const wanted[kWeights][2] = {{c, c}, {c, 1}, {c, 1}, {c, 1},      {c, c},      {c, 1},      {c, c},
                                      {c, 1}, {c, c}, {c, 1}, {hidden, c}, {hidden, 1}, {c, hidden}, {c, 1}};
    for (std::size_t i = 0; i < kWeights; ++i) {
        if (c < 1 || hidden < 1 || !weights[i].is({wanted[i][0], wanted[i][1]}))
            throw std::invalid_argument("a weight of a wrong shape");
    }
}

template <Operands Kind>
class AxialShiftKernel {
public:
    static constexpr bool kBf16 = Kind == Operands::kBfloat16;
    static constexpr char const* kName = kBf16 ? "AxialShiftBlockBf16" : "AxialShiftBlock";
    static constexpr Operands kOperands = Kind;
    // X, the weights, two one-hot kernels that are not needed here and, in float32, X's shape.
    static constexpr std::size_t kInputs = kWeights + (kBf16 ? 3 : 4);
    static int input_type(std::size_t i) {
        if (!kBf16 && i + 1 == kInputs) return ort::kInt64;
        return kBf16 && i > 0 && i <= kWeights && kIsMatrix[i - 1] ? ort::kBfloat16 : ort::kFloat;
    }

    AxialShiftKernel(Node const& node, Kernels const& kernels)
        : memory_(node.api(), node.info()),
          channels_(node.integer("channels")),
          shift_{node.integer("shift_size"), node.integer("dilation"), padding_of(node.text("padding"))} {
        Tensor weights[kWeights];
        node.read_weights(weights, kWeights);
        long const hidden = static_cast<long>(weights[10].sizes[0]);
        check_shapes(weights, channels_, hidden);
        if (shift_.size < 1 || shift_.size % 2 == 0 || shift_.dilation < 1)
            throw std::invalid_argument("impossible shift");
        WeightFloats<kWeights> const w(weights, kBf16 ? kIsMatrix : nullptr);
        block_ = std::make_unique<AxialShiftBlock>(
            kernels, kBf16 ? Layout::kRows : Layout::kPlanes, channels_, hidden, shift_, node.real("epsilon"),
            AxialShiftWeights{w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8], w[9], w[10], w[11], w[12], w[13]});
    }

    void compute(ort::Table api, OrtKernelContext* context) const {
        Run run(api, memory_, context);
        Tensor const x = run.input();
        // (N, C, H, W), or (N, H, W, C)
        long const height = static_cast<long>(x.sizes[kBf16 ? 1 : 2]);
        long const width = static_cast<long>(x.sizes[kBf16 ? 2 : 3]);
        if (x.rank != kRank || x.sizes[kBf16 ? 3 : 1] != channels_)
            throw std::invalid_argument("X does not fit the weights");
        check_size(height);
        check_size(width);
        block_->run(run, x.data, run.output(x).data, static_cast<long>(x.sizes[0]), height, width);
    }

private:
    // Padding that reads pixels needs so many; ONNX's Pad refuses the same.
    void check_size(std::int64_t size) const {
        long const reach = shift_.size / 2 * shift_.dilation;
        if ((shift_.padding == Padding::kReflect && reach >= size) ||
            (shift_.padding == Padding::kCircular && reach > size)) {
            throw std::invalid_argument("the shift reaches farther than the image");
        }
    }

    Memory memory_;
    long channels_;
    Shift shift_;
    std::unique_ptr<AxialShiftBlock> block_;
};

}  // namespace

ort::CustomOp axial_shift_op() { return make_op<AxialShiftKernel<Operands::kFloat>>(); }
ort::CustomOp axial_shift_bf16_op() { return make_op<AxialShiftKernel<Operands::kBfloat16>>(); }

}  // namespace mlpdeploy::cpu
