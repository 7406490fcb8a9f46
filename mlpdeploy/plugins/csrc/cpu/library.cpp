// What ONNX Runtime sees: RegisterCustomOps, and the names of the kernels.
#include "operator.h"

namespace {

constexpr char const* kDomain = "mlpdeploy";

// The operators that this processor has kernels for, in a domain that lives as long as the process: sessions share it,
// and keep pointers into it.
OrtCustomOpDomain* make_domain(mlpdeploy::cpu::ort::Table api) {
    using namespace mlpdeploy::cpu;
    static ort::CustomOp const float_ops[] = {axial_shift_op(), cycle_op(), normalized_patch_embed_op(),
                                              patch_embed_op(), permutator_op()};
    static ort::CustomOp const int8_ops[] = {axial_shift_int8_op(), cycle_int8_op(), downsample_int8_op(),
                                             patch_merging_int8_op(), permutator_int8_op()};
    static ort::CustomOp const bfloat16_ops[] = {axial_shift_bf16_op(), cycle_bf16_op(), downsample_bf16_op(),
                                                 patch_merging_bf16_op(), permutator_bf16_op()};
    OrtCustomOpDomain* domain = nullptr;
    check(ort::CreateCustomOpDomain::call(api, kDomain, &domain));
    if (chosen_kernels(Operands::kFloat) != nullptr) {
        for (ort::CustomOp const& op : float_ops) check(ort::CustomOpDomainAdd::call(api, domain, &op));
    }
    if (chosen_kernels(Operands::kBfloat16) != nullptr) {
        for (ort::CustomOp const& op : bfloat16_ops) check(ort::CustomOpDomainAdd::call(api, domain, &op));
    }
    if (chosen_kernels(Operands::kInt8) != nullptr) {
        for (ort::CustomOp const& op : int8_ops) check(ort::CustomOpDomainAdd::call(api, domain, &op));
    }
    return domain;
}

char const* name_of(mlpdeploy::cpu::Operands operands) {
    mlpdeploy::cpu::Kernels const* kernels = mlpdeploy::cpu::chosen_kernels(operands);
    return kernels == nullptr ? nullptr : kernels->name;
}

}  // namespace

// Called by ONNX Runtime when a session registers this library.
extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(
    OrtSessionOptions* options, mlpdeploy::cpu::ort::ApiBase const* base) {
    using namespace mlpdeploy::cpu;
    ort::Table const api = base->get_api(ort::kVersion);
    if (api == nullptr) return nullptr;  // an older ONNX Runtime, which has no way to say why: it runs the functions
    return guard(api, kDomain, [&] {
        if (chosen_kernels(Operands::kFloat) == nullptr && chosen_kernels(Operands::kBfloat16) == nullptr &&
            chosen_kernels(Operands::kInt8) == nullptr)
            return;
        static OrtCustomOpDomain* const domain = make_domain(api);
        check(ort::AddCustomOpDomain::call(api, options, domain));
    });
}

// The names of the kernels that this processor runs, or null: in float32, in bfloat16, and in 8 bits.
extern "C" __attribute__((visibility("default"))) const char* mlpdeploy_cpu_kernels() {
    return name_of(mlpdeploy::cpu::Operands::kFloat);
}

extern "C" __attribute__((visibility("default"))) const char* mlpdeploy_cpu_bf16_kernels() {
    return name_of(mlpdeploy::cpu::Operands::kBfloat16);
}

extern "C" __attribute__((visibility("default"))) const char* mlpdeploy_cpu_int8_kernels() {
    return name_of(mlpdeploy::cpu::Operands::kInt8);
}
