// What a product multiplies: floats, or bfloat16 or 8 bits where a file is compiled for instructions that multiply
// those, or floats that are rounded to bfloat16 (MLPDEPLOY_ROUND_OPERANDS) or to whole numbers of 8 bits
// (MLPDEPLOY_WHOLE_OPERANDS), whose sums are exact up to 2^24.
#pragma once

#include "kernels.h"
#include "vector.h"

namespace mlpdeploy::cpu::MLPDEPLOY_ISA {

// How floats become operands: vectors of a scale.
#if defined(MLPDEPLOY_INT8) || defined(MLPDEPLOY_WHOLE_OPERANDS)
struct Steps {
    Vector inverse;
    Vector zero;
    explicit Steps(Scale const& scale) : inverse(splat(1 / scale.step)), zero(splat(scale.zero)) {}
};

// From 0 to 255, not yet rounded; from above only where a conversion does not cut it off.
MLPDEPLOY_INLINE Vector in_steps(Vector x, Steps const& steps) {
    return greater(x * steps.inverse + steps.zero, splat(0.0F));
}
#else
struct Steps {
    explicit Steps(Scale const&) {}
};
#endif

#if defined(MLPDEPLOY_INT8)

typedef unsigned char Operand;

#if MLPDEPLOY_VECTOR == 16
// To the nearest whole number, ties to even, of at most 255; what is no number becomes the least.
MLPDEPLOY_INLINE __m512i rounded_of(Vector x, Steps const& steps) {
    return _mm512_cvtps_epi32(_mm512_min_ps(splat(255.0F), x * steps.inverse + steps.zero));
}
#endif

// Two vectors as operands, rounded to the nearest, ties to even.
MLPDEPLOY_INLINE void store_operands(Operand* to, Vector left, Vector right, Steps const& steps) {
#if MLPDEPLOY_VECTOR == 16
    // Packing cuts off what is below 0 or above 255. In each quarter of `bytes` are four of the left and four of the
    // right.
    __m512i const words = _mm512_packs_epi32(rounded_of(left, steps), rounded_of(right, steps));
    __m512i const bytes = _mm512_packus_epi16(words, words);
    __m512i const order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 0, 4, 8, 12, 1, 5, 9, 13);
    __m256i const both = _mm512_castsi512_si256(_mm512_permutexvar_epi32(order, bytes));
    memcpy(to, &both, sizeof both);
#else
    Vector const most = splat(255.0F);
    __m256i const words = _mm256_packs_epi32(_mm256_cvtps_epi32(lesser(in_steps(left, steps), most)),
                                             _mm256_cvtps_epi32(lesser(in_steps(right, steps), most)));
    __m256i const ordered = _mm256_permute4x64_epi64(words, 0xd8);
    __m128i const bytes = _mm_packus_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1));
    memcpy(to, &bytes, sizeof bytes);
#endif
}

MLPDEPLOY_INLINE Vector load_operands(Operand const* from) {
    typedef Operand Bytes __attribute__((vector_size(MLPDEPLOY_VECTOR)));
    Bytes bytes;
    memcpy(&bytes, from, sizeof bytes);
    return __builtin_convertvector(bytes, Vector);
}

// Of a weight, which is a whole number.
MLPDEPLOY_INLINE Operand operand_of(float x) { return static_cast<Operand>(static_cast<int>(x)); }

#elif defined(MLPDEPLOY_BFLOAT16)

typedef unsigned short Operand;

// Two vectors as operands, rounded to the nearest, ties to even.
MLPDEPLOY_INLINE void store_operands(Operand* to, Vector left, Vector right, Steps const&) {
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

#if defined(MLPDEPLOY_ROUND_OPERANDS)
typedef unsigned VectorBits __attribute__((vector_size(MLPDEPLOY_VECTOR * sizeof(float))));

// To the nearest bfloat16, ties to even; what is no number stays none.
MLPDEPLOY_INLINE Vector operands_of(Vector x, Steps const&) {
    VectorBits const bits = (VectorBits)x;
    VectorBits const rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) & 0xffff0000U;
    return x == x ? (Vector)rounded : x;
}
#elif defined(MLPDEPLOY_WHOLE_OPERANDS)
// To the nearest whole number, ties to even: adding 1.5 * 2^23 rounds.
MLPDEPLOY_INLINE Vector operands_of(Vector x, Steps const& steps) {
    constexpr float kRound = 12582912.0F;
    return lesser(in_steps(x, steps), splat(255.0F)) + splat(kRound) - splat(kRound);
}
#else
MLPDEPLOY_INLINE Vector operands_of(Vector x, Steps const&) { return x; }
#endif

MLPDEPLOY_INLINE void store_operands(Operand* to, Vector left, Vector right, Steps const& steps) {
    store(to, operands_of(left, steps));
    store(to + kVector, operands_of(right, steps));
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

// Operands that stand for zero, as many as are moved at once.
MLPDEPLOY_INLINE Moved zeros_of(Scale const& scale) {
    Moved value{};
#if defined(MLPDEPLOY_INT8) || defined(MLPDEPLOY_WHOLE_OPERANDS)
    value += static_cast<Operand>(scale.zero);
#else
    (void)scale;
#endif
    return value;
}

// The first `count`, at most all of them; the others become zero, and are not read or written.
#if defined(MLPDEPLOY_INT8) && MLPDEPLOY_VECTOR == 16
MLPDEPLOY_INLINE __mmask64 first_lanes(long count) { return count < 64 ? (1ULL << count) - 1 : ~0ULL; }

MLPDEPLOY_INLINE Moved take_first(Operand const* from, long count) {
    return (Moved)_mm512_maskz_loadu_epi8(first_lanes(count), from);
}

MLPDEPLOY_INLINE void put_first(Operand* to, long count, Moved value) {
    _mm512_mask_storeu_epi8(to, first_lanes(count), (__m512i)value);
}
#elif defined(MLPDEPLOY_INT8)
// In pieces of eight, four, two and one.
MLPDEPLOY_INLINE void copy_first(void* to, void const* from, long count) {
    char* target = static_cast<char*>(to);
    char const* source = static_cast<char const*>(from);
    for (; count >= 8; count -= 8, target += 8, source += 8) memcpy(target, source, 8);
    for (long size = 4; size > 0; size /= 2) {
        if ((count & size) == 0) continue;
        memcpy(target, source, static_cast<size_t>(size));
        target += size;
        source += size;
    }
}

MLPDEPLOY_INLINE Moved take_first(Operand const* from, long count) {
    if (count == kMoved) return take(from);
    Moved value{};
    copy_first(&value, from, count);
    return value;
}

MLPDEPLOY_INLINE void put_first(Operand* to, long count, Moved value) {
    if (count == kMoved) return put(to, value);
    copy_first(to, &value, count);
}
#elif defined(MLPDEPLOY_BFLOAT16)
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
