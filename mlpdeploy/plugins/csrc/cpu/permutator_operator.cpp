// mlpdeploy::PermutatorBlock and PermutatorBlockBf16 in ONNX Runtime; mlpdeploy/ops/permutator_block.py is their
// contract.
#include "operator.h"
#include "permutator_block.h"

namespace mlpdeploy::cpu {
namespace {

constexpr std::size_t kWeights = 17;
constexpr bool kIsMatrix[kWeights] = {false, false, true,  true,  true, false, false, false, false,
                                      true,  false, false, false, true, false, true,  false};

void check_shapes(Tensor const (&weights)[kWeights], PermutatorSizes const& sizes) {
    long const c = sizes.channels;
    long const gate = sizes.gate_hidden;
    long const hidden = sizes.hidden;
    long const wanted[kWeights][2] = {{c, 1},    {c, 1},        {c, c},      {c, c},      {c, c}, {gate, c},
                                      {gate, 1}, {3 * c, gate}, {3 * c, 1},  {c, c},      {c, 1}, {c, 1},
                                      {c, 1},    {c, hidden},   {hidden, 1}, {hidden, c}, {c, 1}};
    for (std::size_t i = 0; i < kWeights; ++i) {
        if (gate < 1 || hidden < 1 || !weights[i].is({wanted[i][0], wanted[i][1]}))
            throw std::invalid_argument("a weight of a wrong shape");
    }
}

template <Operands Kind>
class PermutatorKernel {
public:
    static constexpr bool kBf16 = Kind == Operands::kBfloat16;
    static constexpr char const* kName = kBf16 ? "PermutatorBlockBf16" : "PermutatorBlock";
    static constexpr Operands kOperands = Kind;
    static constexpr std::size_t kInputs = kWeights + 1;  // X, and the weights
    static int input_type(std::size_t i) { return kBf16 && i > 0 && kIsMatrix[i - 1] ? ort::kBfloat16 : ort::kFloat; }

    PermutatorKernel(Node const& node, Kernels const& kernels) : memory_(node.api(), node.info()) {
        sizes_.side = node.integer("segments");
        sizes_.channels = node.integer("channels");
        if (sizes_.side < 1 || sizes_.channels < 1 || node.integer("height") != sizes_.side ||
            node.integer("width") != sizes_.side || sizes_.channels % sizes_.side != 0)
            throw std::invalid_argument("impossible height, width, segments or channels");
        Tensor weights[kWeights];
        node.read_weights(weights, kWeights);
        sizes_.gate_hidden = static_cast<long>(weights[5].sizes[0]);
        sizes_.hidden = static_cast<long>(weights[13].sizes[1]);
        check_shapes(weights, sizes_);
        WeightFloats<kWeights> const w(weights, kBf16 ? kIsMatrix : nullptr);
        block_ =
            std::make_unique<PermutatorBlock>(kernels, kBf16 ? float_kernels() : kernels, sizes_, node.real("epsilon"),
                                              PermutatorWeights{w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8],
                                                                w[9], w[10], w[11], w[12], w[13], w[14], w[15], w[16]});
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

}  // namespace mlpdeploy::cpu
