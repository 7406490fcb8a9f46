#include <cstring>

#include "kernels.h"

namespace mlpdeploy::cpu {

#if defined(__x86_64__)
namespace avx512 {
extern Kernels const kKernels;
}
namespace avx2 {
extern Kernels const kKernels;
}
#endif
namespace portable {
extern Kernels const kKernels;
}

Kernels const* choose_kernels(char const* only) {
    auto const is_named = [only](Kernels const& kernels) {
        return only != nullptr && std::strcmp(only, kernels.name) == 0;
    };
#if defined(__x86_64__)
    // The compiler's runtime also asks whether the system saves the wide registers.
    if ((only == nullptr || is_named(avx512::kKernels)) && __builtin_cpu_supports("avx512f")) return &avx512::kKernels;
    if (is_named(avx2::kKernels) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return &avx2::kKernels;
#endif
    return is_named(portable::kKernels) ? &portable::kKernels : nullptr;
}

}  // namespace mlpdeploy::cpu
