// What a product multiplies: floats, or bfloat16 where a file is compiled for instructions that multiply those, or
// floats that are rounded to bfloat16 (MLPDEPLOY_ROUND_OPERANDS).
#pragma once

#include "vector.h"

namespace mlpdeploy::cpu::MLPDEPLOY_ISA {

#ifdef MLPDEPLOY_BFLOAT16

typedef unsigned short Operand;

// Two vectors as operands, rounded to the nearest, ties to even.
MLPDEPLOY_INLINE void store_operands(Operand* to, Vector left, Vector right) {
    __m512bh const both = _mm512_cvtne2ps_pbh(right, left);
    memcpy(to, &both, sizeof both);
}

MLPDEPLOY_INLINE Vector load_operands(Operand const* from) {
    __m256i half;
    memcpy(&half, from, sizeof half);
    return (Vector)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
}

MLPDEPLOY_INLINE __mmask32 first_lanes(long count) { return count < 32 ? (1U << count) - 1 : ~0U; }

// Of a weight, which comes from bfloat16: exact.
MLPDEPLOY_INLINE Operand operand_of(float x) {
    unsigned bits;
    memcpy(&bits, &x, sizeof bits);
    return static_cast<Operand>(bits >> 16);
}

#else

typedef float Operand;

#ifdef MLPDEPLOY_ROUND_OPERANDS
typedef unsigned VectorBits __attribute__((vector_size(MLPDEPLOY_VECTOR * sizeof(float))));

// To the nearest bfloat16, ties to even; what is no number stays none.
MLPDEPLOY_INLINE Vector operands_of(Vector x) {
    VectorBits const bits = (VectorBits)x;
    VectorBits const rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) & 0xffff0000U;
    return x == x ? (Vector)rounded : x;
}
#else
MLPDEPLOY_INLINE Vector operands_of(Vector x) { return x; }
#endif

MLPDEPLOY_INLINE void store_operands(Operand* to, Vector left, Vector right) {
    store(to, operands_of(left));
    store(to + kVector, operands_of(right));
}

MLPDEPLOY_INLINE Vector load_operands(Operand const* from) { return load(from); }
MLPDEPLOY_INLINE Operand operand_of(float x) { return x; }

#endif

// As many operands as fill a register, to be moved and not computed with.
typedef Operand Moved __attribute__((vector_size(MLPDEPLOY_VECTOR * sizeof(float))));
constexpr long kMoved = sizeof(Moved) / sizeof(Operand);

MLPDEPLOY_INLINE Moved take(Operand const* from) {
    Moved value;
    memcpy(&value, from, sizeof value);
    return value;
}

MLPDEPLOY_INLINE void put(Operand* to, Moved value) { memcpy(to, &value, sizeof value); }

// The first `count`, at most all of them; the others become zero, and are not read or written.
#ifdef MLPDEPLOY_BFLOAT16
MLPDEPLOY_INLINE Moved take_first(Operand const* from, long count) {
    return (Moved)_mm512_maskz_loadu_epi16(first_lanes(count), from);
}

MLPDEPLOY_INLINE void put_first(Operand* to, long count, Moved value) {
    _mm512_mask_storeu_epi16(to, first_lanes(count), (__m512i)value);
}
#else
MLPDEPLOY_INLINE Moved take_first(Operand const* from, long count) { return load_first(from, count); }
MLPDEPLOY_INLINE void put_first(Operand* to, long count, Moved value) { store_first(to, count, value); }
#endif

}  // namespace mlpdeploy::cpu::MLPDEPLOY_ISA
