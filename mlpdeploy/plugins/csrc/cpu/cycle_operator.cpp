// mlpdeploy::CycleBlock, CycleBlockBf16 and CycleBlockInt8 in ONNX Runtime; mlpdeploy/ops/cycle_block.py is their
// contract.
#include "cycle_block.h"
#include "operator.h"

namespace mlpdeploy::cpu {
namespace {

constexpr std::size_t kMatrices = 6;
constexpr std::size_t kWeights = 19;
constexpr std::size_t kMost = kWeights + kMatrices;  // with the steps of 8-bit matrices behind them
constexpr bool kIsMatrix[kMost] = {false, false, true,  false, true,  false, true,  false, false, false,
                                   false, true,  false, false, false, true,  false, true,  false};

// What the matrices are multiplied with, as the attributes of its scales are called.
constexpr char const* kScales[kMatrices] = {"n", "n", "n", "p", "1", "2"};

template <std::size_t Count>
void check_shapes(Tensor const (&weights)[Count], TokenSizes const& sizes) {
    long const c = sizes.channels;
    long const gate = sizes.gate_hidden;
    long const hidden = sizes.hidden;
    long const wanted[kMost][2] = {{c, 1},    {c, 1},      {c, c},        {c, 1},      {c, c}, {c, 1}, {c, c},
                                   {gate, c}, {gate, 1},   {3 * c, gate}, {3 * c, 1},  {c, c}, {c, 1}, {c, 1},
                                   {c, 1},    {c, hidden}, {hidden, 1},   {hidden, c}, {c, 1}, {c, 1}, {c, 1},
                                   {c, 1},    {c, 1},      {hidden, 1},   {c, 1}};
    for (std::size_t i = 0; i < Count; ++i) {
        if (gate < 1 || hidden < 1 || !weights[i].is({wanted[i][0], wanted[i][1]}))
            throw std::invalid_argument("a weight of a wrong shape");
    }
}

template <Operands Kind>
class CycleKernel {
public:
    static constexpr char const* kName = Kind == Operands::kFloat      ? "CycleBlock"
                                         : Kind == Operands::kBfloat16 ? "CycleBlockBf16"
                                                                       : "CycleBlockInt8";
    static constexpr Operands kOperands = Kind;
    static constexpr std::size_t kCount = Kind == Operands::kInt8 ? kMost : kWeights;
    static constexpr std::size_t kInputs = kCount + 1;  // X, and the weights
    static int input_type(std::size_t i) { return i > 0 && kIsMatrix[i - 1] ? matrix_type(Kind) : ort::kFloat; }

    CycleKernel(Node const& node, Kernels const& kernels) : memory_(node.api(), node.info()) {
        sizes_.channels = node.integer("channels");
        if (sizes_.channels < 1) throw std::invalid_argument("impossible channels");
        Tensor weights[kCount];
        node.read_weights(weights, kCount);
        sizes_.gate_hidden = static_cast<long>(weights[7].sizes[0]);
        sizes_.hidden = static_cast<long>(weights[15].sizes[1]);
        check_shapes(weights, sizes_);
        WeightFloats<kCount> const w(weights, kIsMatrix, Kind);
        CycleWeights all{{w[0], w[1], w[7], w[8], w[9], w[10], w[11], w[12], w[13], w[14], w[15], w[16], w[17], w[18]},
                         w[2],
                         w[3],
                         w[4],
                         w[5],
                         w[6]};
        for (std::size_t i = 0; Kind == Operands::kInt8 && i < kMatrices; ++i) {
            all.steps[i] = w[kWeights + i];
            all.scales[i] = node.scale(kScales[i]);
        }
        block_ = std::make_unique<CycleBlock>(kernels, Kind == Operands::kFloat ? kernels : float_kernels(), sizes_,
                                              node.real("epsilon"), all);
    }

    void compute(ort::Table api, OrtKernelContext* context) const {
        Run run(api, memory_, context);
        Tensor const x = run.input();
        if (x.rank != kRank || x.sizes[3] != sizes_.channels) throw std::invalid_argument("X does not fit the weights");
        block_->run(run, x.data, run.output(x).data, static_cast<long>(x.sizes[0]), static_cast<long>(x.sizes[1]),
                    static_cast<long>(x.sizes[2]));
    }

private:
    Memory memory_;
    TokenSizes sizes_{};
    std::unique_ptr<CycleBlock> block_;
};

}  // namespace

ort::CustomOp cycle_op() { return make_op<CycleKernel<Operands::kFloat>>(); }
ort::CustomOp cycle_bf16_op() { return make_op<CycleKernel<Operands::kBfloat16>>(); }
ort::CustomOp cycle_int8_op() { return make_op<CycleKernel<Operands::kInt8>>(); }

}  // namespace mlpdeploy::cpu
