#include <cstring>

#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#if defined(MLPDEPLOY_WITH_AMX) || defined(MLPDEPLOY_WITH_AMXINT8)
#include <sys/syscall.h>
#include <unistd.h>
#endif

// Which sets there are follows from the compiler: MLPDEPLOY_WITH_... is defined for each that it has.
namespace mlpdeploy::cpu {

#define MLPDEPLOY_DECLARE(isa)     \
    namespace isa {                \
    extern Kernels const kKernels; \
    }
#ifdef MLPDEPLOY_WITH_AMX
MLPDEPLOY_DECLARE(amx)
#endif
#ifdef MLPDEPLOY_WITH_AVX512BF16
MLPDEPLOY_DECLARE(avx512bf16)
#endif
#ifdef MLPDEPLOY_WITH_AVX512ROUND
MLPDEPLOY_DECLARE(avx512round)
#endif
#ifdef MLPDEPLOY_WITH_AMXINT8
MLPDEPLOY_DECLARE(amxint8)
#endif
#ifdef MLPDEPLOY_WITH_AVX512VNNI
MLPDEPLOY_DECLARE(avx512vnni)
#endif
#ifdef MLPDEPLOY_WITH_AVXVNNI
MLPDEPLOY_DECLARE(avxvnni)
#endif
#ifdef MLPDEPLOY_WITH_AVX2INT8
MLPDEPLOY_DECLARE(avx2int8)
#endif
#ifdef MLPDEPLOY_WITH_AVX512
MLPDEPLOY_DECLARE(avx512)
#endif
#ifdef MLPDEPLOY_WITH_AVX2
MLPDEPLOY_DECLARE(avx2)
#endif
MLPDEPLOY_DECLARE(portable)

namespace {

#if defined(__x86_64__)
// Features that compilers which have their instructions may have no name for: leaf 7 of cpuid, subleaf, register, bit.
struct Feature {
    unsigned subleaf;
    int place;  // eax, ebx, ecx, edx
    int bit;
};
[[maybe_unused]] constexpr Feature kAmxBf16{0, 3, 22}, kAmxInt8{0, 3, 25}, kAvxVnni{1, 0, 4};

[[maybe_unused]] bool has_feature(Feature feature) {
    unsigned of[4] = {};
    if (!__get_cpuid_count(7, 0, &of[0], &of[1], &of[2], &of[3]) || of[0] < feature.subleaf) return false;
    return __get_cpuid_count(7, feature.subleaf, &of[0], &of[1], &of[2], &of[3]) &&
           (of[feature.place] >> feature.bit & 1U) != 0;
}
#endif

#if defined(MLPDEPLOY_WITH_AMX) || defined(MLPDEPLOY_WITH_AMXINT8)
// Linux gives a process the tiles' registers when it asks for them.
bool may_use_tiles() {
    constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
    constexpr long kTileData = 18;               // XFEATURE_XTILEDATA
    static bool const may = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
    return may;
}
#endif

#if defined(__x86_64__)
// What files for 16 floats and smaller operands are compiled with.
[[maybe_unused]] bool has_small_operands() {
    return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
}
#endif

// Whether the instruction that multiplies pairs of bfloat16 is worth it. On an Intel Xeon without AMX it was slower
// than float32's products (benchmarks/results/earlier/precision_avx512bf16.json), on an AMD Zen 5 1.8 to 2.0 times as
// fast (precision_zen5.json there).
[[maybe_unused]] bool may_multiply_pairs() { return !__builtin_cpu_is("intel"); }

}  // namespace

Kernels const* choose_kernels(Operands operands, char const* only) {
    auto const is_named = [only](Kernels const& kernels) {
        return only != nullptr && std::strcmp(only, kernels.name) == 0;
    };
    [[maybe_unused]] auto const may_be = [&](Kernels const& kernels) { return only == nullptr || is_named(kernels); };
    // The compiler's runtime also asks whether the system saves the wide registers.
    if (operands == Operands::kBfloat16) {
#ifdef MLPDEPLOY_WITH_AMX
        if (may_be(amx::kKernels) && has_feature(kAmxBf16) && __builtin_cpu_supports("avx512bf16") &&
            has_small_operands() && may_use_tiles()) {
            return &amx::kKernels;
        }
#endif
#ifdef MLPDEPLOY_WITH_AVX512BF16
        bool const may_be_pairs = only == nullptr ? may_multiply_pairs() : is_named(avx512bf16::kKernels);
        if (may_be_pairs && __builtin_cpu_supports("avx512bf16") && has_small_operands()) return &avx512bf16::kKernels;
#endif
#ifdef MLPDEPLOY_WITH_AVX512ROUND
        if (may_be(avx512round::kKernels) && __builtin_cpu_supports("avx512f")) return &avx512round::kKernels;
#endif
        return nullptr;
    }
    if (operands == Operands::kInt8) {
#ifdef MLPDEPLOY_WITH_AMXINT8
        if (may_be(amxint8::kKernels) && has_feature(kAmxInt8) && has_small_operands() && may_use_tiles()) {
            return &amxint8::kKernels;
        }
#endif
#ifdef MLPDEPLOY_WITH_AVX512VNNI
        if (may_be(avx512vnni::kKernels) && __builtin_cpu_supports("avx512vnni") && has_small_operands())
            return &avx512vnni::kKernels;
#endif
#ifdef MLPDEPLOY_WITH_AVXVNNI
        if (may_be(avxvnni::kKernels) && has_feature(kAvxVnni) && __builtin_cpu_supports("fma"))
            return &avxvnni::kKernels;
#endif
#ifdef MLPDEPLOY_WITH_AVX2INT8
        if (is_named(avx2int8::kKernels) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
            return &avx2int8::kKernels;
#endif
        return nullptr;
    }
#ifdef MLPDEPLOY_WITH_AVX512
    if (may_be(avx512::kKernels) && __builtin_cpu_supports("avx512f")) return &avx512::kKernels;
#endif
#ifdef MLPDEPLOY_WITH_AVX2
    if (may_be(avx2::kKernels) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return &avx2::kKernels;
#endif
    return is_named(portable::kKernels) ? &portable::kKernels : nullptr;
}

}  // namespace mlpdeploy::cpu
