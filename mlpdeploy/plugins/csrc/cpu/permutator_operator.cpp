// mlpdeploy::PermutatorBlock, PermutatorBlockBf16 and PermutatorBlockInt8 in ONNX Runtime;
// mlpdeploy/ops/permutator_block.py is their contract.
#include "operator.h"
#include "permutator_block.h"

namespace mlpdeploy::cpu {
namespace {

constexpr std::size_t kMatrices = 6;
constexpr std::size_t kWeights = 17;
constexpr std::size_t kMost = kWeights + kMatrices;  // with the steps of 8-bit matrices behind them
constexpr bool kIsMatrix[kMost] = {false, false, true,  true,  true, false, false, false, false,
                                   true,  false, false, false, true, false, true,  false};

// What the matrices are multiplied with, as the attributes of its scales are called.
constexpr char const* kScales[kMatrices] = {"n", "n", "n", "p", "1", "2"};

template <std::size_t Count>
void check_shapes(Tensor const (&weights)[Count], PermutatorSizes const& sizes) {
    long const c = sizes.channels;
    long const gate = sizes.gate_hidden;
    long const hidden = sizes.hidden;
    long const wanted[kMost][2] = {{c, 1},     {c, 1}, {c, c}, {c, c}, {c, c}, {gate, c},   {gate, 1},   {3 * c, gate},
                                   {3 * c, 1}, {c, c}, {c, 1}, {c, 1}, {c, 1}, {c, hidden}, {hidden, 1}, {hidden, c},
                                   {c, 1},     {c, 1}, {c, 1}, {c, 1}, {c, 1}, {hidden, 1}, {c, 1}};
    for (std::size_t i = 0; i < Count; ++i) {
        if (gate < 1 || hidden < 1 || !weights[i].is({wanted[i][0], wanted[i][1]}))
            throw std::invalid_argument("a weight of a wrong shape");
    }
}

template <Operands Kind>
class PermutatorKernel {
public:
    static constexpr char const* kName = Kind == Operands::kFloat      ? "PermutatorBlock"
                                         : Kind == Operands::kBfloat16 ? "PermutatorBlockBf16"
                                                                       : "PermutatorBlockInt8";
    static constexpr Operands kOperands = Kind;
    static constexpr std::size_t kCount = Kind == Operands::kInt8 ? kMost : kWeights;
    static constexpr std::size_t kInputs = kCount + 1;  // X, and the weights
    static int input_type(std::size_t i) { return i > 0 && kIsMatrix[i - 1] ? matrix_type(Kind) : ort::kFloat; }

    PermutatorKernel(Node const& node, Kernels const& kernels) : memory_(node.api(), node.info()) {
        sizes_.side = node.integer("segments");
        sizes_.channels = node.integer("channels");
        if (sizes_.side < 1 || sizes_.channels < 1 || node.integer("height") != sizes_.side ||
            node.integer("width") != sizes_.side || sizes_.channels % sizes_.side != 0)
            throw std::invalid_argument("impossible height, width, segments or channels");
        Tensor weights[kCount];
        node.read_weights(weights, kCount);
        sizes_.gate_hidden = static_cast<long>(weights[5].sizes[0]);
        sizes_.hidden = static_cast<long>(weights[13].sizes[1]);
        check_shapes(weights, sizes_);
        WeightFloats<kCount> const w(weights, kIsMatrix, Kind);
        PermutatorWeights all{
            {w[0], w[1], w[5], w[6], w[7], w[8], w[9], w[10], w[11], w[12], w[13], w[14], w[15], w[16]},
            w[2],
            w[3],
            w[4]};
        for (std::size_t i = 0; Kind == Operands::kInt8 && i < kMatrices; ++i) {
            all.steps[i] = w[kWeights + i];
            all.scales[i] = node.scale(kScales[i]);
        }
        block_ = std::make_unique<PermutatorBlock>(kernels, Kind == Operands::kFloat ? kernels : float_kernels(),
                                                   sizes_, node.real("epsilon"), all);
    }

    void compute(ort::Table api, OrtKernelContext* context) const {
        Run run(api, memory_, context);
        Tensor const x = run.input();
        if (x.rank != kRank || !x.is({x.sizes[0], sizes_.side, sizes_.side, sizes_.channels}))
            throw std::invalid_argument("X does not fit the weights");
        block_->run(run, x.data, run.output(x).data, static_cast<long>(x.sizes[0]));
    }

private:
    Memory memory_;
    PermutatorSizes sizes_{};
    std::unique_ptr<PermutatorBlock> block_;
};

}  // namespace

ort::CustomOp permutator_op() { return make_op<PermutatorKernel<Operands::kFloat>>(); }
ort::CustomOp permutator_bf16_op() { return make_op<PermutatorKernel<Operands::kBfloat16>>(); }
ort::CustomOp permutator_int8_op() { return make_op<PermutatorKernel<Operands::kInt8>>(); }

}  // namespace mlpdeploy::cpu
