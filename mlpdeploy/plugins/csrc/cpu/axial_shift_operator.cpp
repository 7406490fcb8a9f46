// mlpdeploy::AxialShiftBlock, AxialShiftBlockBf16 and AxialShiftBlockInt8 in ONNX Runtime;
// mlpdeploy/ops/axial_shift_block.py is their contract.
#include "axial_shift_block.h"
#include "operator.h"

namespace mlpdeploy::cpu {
namespace {

constexpr std::size_t kMatrices = 6;
constexpr std::size_t kWeights = 14;
constexpr std::size_t kMost = kWeights + kMatrices;  // with the steps of 8-bit matrices behind them
constexpr bool kIsMatrix[kMost] = {true,  false, false, false, true,  false, true,
                                   false, true,  false, true,  false, true,  false};
// What the matrices are multiplied with, as the attributes of its scales are called.
constexpr char const* kScales[kMatrices] = {"1", "a", "a", "3", "4", "5"};

Padding padding_of(std::string const& name) {
    constexpr char const* kNames[] = {"zero", "circular", "reflect", "replicate"};
    for (int i = 0; i < 4; ++i) {
        if (name == kNames[i]) return static_cast<Padding>(i);
    }
    throw std::invalid_argument("unknown padding");
}

template <std::size_t Count>
void check_shapes(Tensor const (&weights)[Count], long c, long hidden) {
    // (out, in) of each matrix and (out) of each vector, in the operator's order.
    long const wanted[kMost][2] = {{c, c}, {c, 1}, {c, 1}, {c, 1},      {c, c},      {c, 1},      {c, c},
                                   {c, 1}, {c, c}, {c, 1}, {hidden, c}, {hidden, 1}, {c, hidden}, {c, 1},
                                   {c, 1}, {c, 1}, {c, 1}, {c, 1},      {hidden, 1}, {c, 1}};
    for (std::size_t i = 0; i < Count; ++i) {
        if (c < 1 || hidden < 1 || !weights[i].is({wanted[i][0], wanted[i][1]}))
            throw std::invalid_argument("a weight of a wrong shape");
    }
}

template <Operands Kind>
class AxialShiftKernel {
public:
    static constexpr bool kPlanes = Kind == Operands::kFloat;
    static constexpr char const* kName = kPlanes                       ? "AxialShiftBlock"
                                         : Kind == Operands::kBfloat16 ? "AxialShiftBlockBf16"
                                                                       : "AxialShiftBlockInt8";
    static constexpr Operands kOperands = Kind;
    static constexpr std::size_t kCount = Kind == Operands::kInt8 ? kMost : kWeights;
    // X, the weights, two one-hot kernels that are not needed here and, in float32, X's shape.
    static constexpr std::size_t kInputs = kCount + (kPlanes ? 4 : 3);
    static int input_type(std::size_t i) {
        if (kPlanes && i + 1 == kInputs) return ort::kInt64;
        return i > 0 && i <= kWeights && kIsMatrix[i - 1] ? matrix_type(Kind) : ort::kFloat;
    }

    AxialShiftKernel(Node const& node, Kernels const& kernels)
        : memory_(node.api(), node.info()),
          channels_(node.integer("channels")),
          shift_{node.integer("shift_size"), node.integer("dilation"), padding_of(node.text("padding"))} {
        Tensor weights[kCount];
        node.read_weights(weights, kCount);
        long const hidden = static_cast<long>(weights[10].sizes[0]);
        check_shapes(weights, channels_, hidden);
        if (shift_.size < 1 || shift_.size % 2 == 0 || shift_.dilation < 1)
            throw std::invalid_argument("impossible shift");
        WeightFloats<kCount> const w(weights, kIsMatrix, Kind);
        AxialShiftWeights all{w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8], w[9], w[10], w[11], w[12], w[13]};
        for (std::size_t i = 0; Kind == Operands::kInt8 && i < kMatrices; ++i) {
            all.steps[i] = w[kWeights + i];
            all.scales[i] = node.scale(kScales[i]);
        }
        block_ = std::make_unique<AxialShiftBlock>(kernels, kPlanes ? Layout::kPlanes : Layout::kRows, channels_,
                                                   hidden, shift_, node.real("epsilon"), all);
    }

    void compute(ort::Table api, OrtKernelContext* context) const {
        Run run(api, memory_, context);
        Tensor const x = run.input();
        // (N, C, H, W), or (N, H, W, C)
        long const height = static_cast<long>(x.sizes[kPlanes ? 2 : 1]);
        long const width = static_cast<long>(x.sizes[kPlanes ? 3 : 2]);
        if (x.rank != kRank || x.sizes[kPlanes ? 1 : 3] != channels_)
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
ort::CustomOp axial_shift_int8_op() { return make_op<AxialShiftKernel<Operands::kInt8>>(); }

}  // namespace mlpdeploy::cpu
