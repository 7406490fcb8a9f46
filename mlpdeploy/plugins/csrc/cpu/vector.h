// The vector of the instruction set that a file is compiled for, in the vector extension of GCC and Clang.
#pragma once

#include <string.h>

#if defined(__AVX512F__)
#define MLPDEPLOY_ISA avx512
#define MLPDEPLOY_VECTOR 16
#define MLPDEPLOY_ROWS 14
#elif defined(__AVX2__) && defined(__FMA__)
#define MLPDEPLOY_ISA avx2
#define MLPDEPLOY_VECTOR 8
#define MLPDEPLOY_ROWS 6
#else
#define MLPDEPLOY_ISA portable
#define MLPDEPLOY_VECTOR 4
#define MLPDEPLOY_ROWS 6
#endif

#define MLPDEPLOY_INLINE static inline __attribute__((always_inline))

namespace mlpdeploy::cpu::MLPDEPLOY_ISA {

constexpr long kVector = MLPDEPLOY_VECTOR;
constexpr long kPanel = 2 * kVector;   // two vectors of columns and
constexpr int kRows = MLPDEPLOY_ROWS;  // so many rows fill the registers with sums

typedef float Vector __attribute__((vector_size(MLPDEPLOY_VECTOR * sizeof(float))));

MLPDEPLOY_INLINE Vector load(const float* from) {
    Vector value;
    memcpy(&value, from, sizeof value);
    return value;
}

MLPDEPLOY_INLINE void store(float* to, Vector value) { memcpy(to, &value, sizeof value); }

MLPDEPLOY_INLINE Vector splat(float x) {
#if MLPDEPLOY_VECTOR == 16
    return Vector{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
#elif MLPDEPLOY_VECTOR == 8
    return Vector{x, x, x, x, x, x, x, x};
#else
    return Vector{x, x, x, x};
#endif
}

MLPDEPLOY_INLINE Vector lesser(Vector a, Vector b) { return a < b ? a : b; }
MLPDEPLOY_INLINE Vector greater(Vector a, Vector b) { return a > b ? a : b; }

}  // namespace mlpdeploy::cpu::MLPDEPLOY_ISA
