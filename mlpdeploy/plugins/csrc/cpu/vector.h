// The vector of the instruction set that a file is compiled for, in the vector extension of GCC and Clang.
#pragma once

#include <string.h>

// Clang 14 spells two of the compilers' names in another way.
#if defined(__AMX_INT8__) || defined(__AMXINT8__)
#define MLPDEPLOY_ISA amxint8
#define MLPDEPLOY_TILES
#define MLPDEPLOY_VECTOR 16
#define MLPDEPLOY_ROWS 16
#define MLPDEPLOY_INT8
#elif defined(__AVX512VNNI__)
#define MLPDEPLOY_ISA avx512vnni
#define MLPDEPLOY_VECTOR 16
#define MLPDEPLOY_ROWS 14
#define MLPDEPLOY_INT8
#elif defined(__AVXVNNI__)
#define MLPDEPLOY_ISA avxvnni
#define MLPDEPLOY_VECTOR 8
#define MLPDEPLOY_ROWS 6
#define MLPDEPLOY_INT8
#elif defined(__AMX_BF16__) || defined(__AMXBF16__)
#define MLPDEPLOY_ISA amx
#define MLPDEPLOY_TILES
#define MLPDEPLOY_VECTOR 16
#define MLPDEPLOY_ROWS 16
#define MLPDEPLOY_BFLOAT16
#elif defined(__AVX512BF16__)
#define MLPDEPLOY_ISA avx512bf16
#define MLPDEPLOY_VECTOR 16
#define MLPDEPLOY_ROWS 14
#define MLPDEPLOY_BFLOAT16
#elif defined(__AVX512F__) && defined(MLPDEPLOY_ROUND_OPERANDS)
#define MLPDEPLOY_ISA avx512round
#define MLPDEPLOY_VECTOR 16
#define MLPDEPLOY_ROWS 14
#elif defined(__AVX512F__)
#define MLPDEPLOY_ISA avx512
#define MLPDEPLOY_VECTOR 16
#define MLPDEPLOY_ROWS 14
#elif defined(__AVX2__) && defined(__FMA__) && defined(MLPDEPLOY_WHOLE_OPERANDS)
#define MLPDEPLOY_ISA avx2int8
#define MLPDEPLOY_VECTOR 8
#define MLPDEPLOY_ROWS 6
#elif defined(__AVX2__) && defined(__FMA__)
#define MLPDEPLOY_ISA avx2
#define MLPDEPLOY_VECTOR 8
#define MLPDEPLOY_ROWS 6
#else
#define MLPDEPLOY_ISA portable
#define MLPDEPLOY_VECTOR 4
#define MLPDEPLOY_ROWS 6
#endif

#if MLPDEPLOY_VECTOR >= 8
#include <immintrin.h>
#endif

#define MLPDEPLOY_METHOD inline __attribute__((always_inline))
#define MLPDEPLOY_INLINE static MLPDEPLOY_METHOD
// What each kind of tile has in it, so that the values stay in registers; one copy for all kinds compiles faster.
#ifndef MLPDEPLOY_TILE_PART
#define MLPDEPLOY_TILE_PART MLPDEPLOY_INLINE
#endif

namespace mlpdeploy::cpu::MLPDEPLOY_ISA {

constexpr long kVector = MLPDEPLOY_VECTOR;
#ifndef MLPDEPLOY_MOST_ROWS
#define MLPDEPLOY_MOST_ROWS MLPDEPLOY_ROWS  // fewer compile faster
#endif
// Two vectors of columns, and so many rows, fill the registers with sums.
constexpr long kPanel = 2 * kVector;
constexpr int kRows = MLPDEPLOY_MOST_ROWS;
// See Kernels.
#if defined(MLPDEPLOY_BFLOAT16) || defined(MLPDEPLOY_INT8)
constexpr long kChunkRows = 16;
constexpr long kFewPixels = 256;
constexpr long kGroupPixels = 512;
#else
constexpr long kChunkRows = 14;
constexpr long kFewPixels = 128;
constexpr long kGroupPixels = 256;
#endif

typedef float Vector __attribute__((vector_size(MLPDEPLOY_VECTOR * sizeof(float))));

MLPDEPLOY_INLINE Vector load(float const* from) {
    Vector value;
    memcpy(&value, from, sizeof value);
    return value;
}

MLPDEPLOY_INLINE void store(float* to, Vector value) { memcpy(to, &value, sizeof value); }

// The first `count` lanes, at most all of them; the others become zero, and are not read or written.
#if MLPDEPLOY_VECTOR == 16
MLPDEPLOY_INLINE Vector load_first(float const* from, long count) {
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1U << count) - 1), from);
}

MLPDEPLOY_INLINE void store_first(float* to, long count, Vector value) {
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1U << count) - 1), value);
}
#elif MLPDEPLOY_VECTOR == 8
// Four, two and one at a time.
MLPDEPLOY_INLINE Vector load_first(float const* from, long count) {
    if (count == kVector) return load(from);
    __m128 const whole = count & 4 ? _mm_loadu_ps(from) : _mm_setzero_ps();
    float const* const rest = from + (count & 4);
    __m128 part = _mm_setzero_ps();
    if (count & 2) {
        part = _mm_castsi128_ps(_mm_loadl_epi64(reinterpret_cast<__m128i const*>(rest)));
        if (count & 1) part = _mm_insert_ps(part, _mm_load_ss(rest + 2), 0x20);
    } else if (count & 1) {
        part = _mm_load_ss(rest);
    }
    return (Vector)(count & 4 ? _mm256_set_m128(part, whole) : _mm256_zextps128_ps256(part));
}

MLPDEPLOY_INLINE void store_first(float* to, long count, Vector value) {
    if (count == kVector) return store(to, value);
    __m128 part = _mm256_castps256_ps128((__m256)value);
    if (count & 4) {
        _mm_storeu_ps(to, part);
        part = _mm256_extractf128_ps((__m256)value, 1);
        to += 4;
    }
    if (count & 2) {
        _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_castps_si128(part));
        part = _mm_movehl_ps(part, part);
        to += 2;
    }
    if (count & 1) _mm_store_ss(to, part);
}
#else
MLPDEPLOY_INLINE Vector load_first(float const* from, long count) {
    Vector value{};
    for (long i = 0; i < count; ++i) value[i] = from[i];
    return value;
}

MLPDEPLOY_INLINE void store_first(float* to, long count, Vector value) {
    for (long i = 0; i < count; ++i) to[i] = value[i];
}
#endif

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
