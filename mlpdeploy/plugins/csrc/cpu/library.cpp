// What ONNX Runtime sees: RegisterCustomOps, and the name of the kernels.
#include "operator.h"

namespace {

constexpr char const* kDomain = "mlpdeploy";

}  // namespace

// Called by ONNX Runtime when a session registers this library.
extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(
    OrtSessionOptions* options, mlpdeploy::cpu::ort::ApiBase const* base) {
    using namespace mlpdeploy::cpu;
    ort::Table const api = base->get_api(ort::kVersion);
    if (api == nullptr) return nullptr;  // an older ONNX Runtime, which has no way to say why: it runs the functions
    return guard(api, kDomain, [&] {
        if (chosen_kernels() == nullptr) return;  // not for this processor: the functions run
        // Sessions share the domain, and keep pointers into it: it lives as long as the process.
        static ort::CustomOp const ops[] = {axial_shift_op(), permutator_op()};
        static OrtCustomOpDomain* const domain = [api] {
            OrtCustomOpDomain* created = nullptr;
            check(ort::CreateCustomOpDomain::call(api, kDomain, &created));
            for (ort::CustomOp const& op : ops) check(ort::CustomOpDomainAdd::call(api, created, &op));
            return created;
        }();
        check(ort::AddCustomOpDomain::call(api, options, domain));
    });
}

// The name of the kernels that this processor runs, or null.
extern "C" __attribute__((visibility("default"))) const char* mlpdeploy_cpu_kernels() {
    mlpdeploy::cpu::Kernels const* kernels = mlpdeploy::cpu::chosen_kernels();
    return kernels == nullptr ? nullptr : kernels->name;
}
