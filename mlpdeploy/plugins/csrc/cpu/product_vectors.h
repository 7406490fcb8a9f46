// Products in vector registers: some rows times two vectors of columns at a time. Included by product.h.
#pragma once

namespace mlpdeploy::cpu::MLPDEPLOY_ISA {

#if defined(MLPDEPLOY_INT8)
// One step of the depth is four operands, as the instruction takes them.
constexpr long kDepthUnit = 4;
typedef Sums Factors;
MLPDEPLOY_INLINE Sums add_product(Sums sum, char const* row, Factors weights) {
    int four;
    memcpy(&four, row, sizeof four);
#if MLPDEPLOY_VECTOR == 16
    return (Sums)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32(four), (__m512i)weights);
#else
    return (Sums)_mm256_dpbusd_avx_epi32((__m256i)sum, _mm256_set1_epi32(four), (__m256i)weights);
#endif
}
#elif defined(MLPDEPLOY_BFLOAT16)
// One step of the depth is a pair of operands, as the instruction takes them.
constexpr long kDepthUnit = 2;
typedef __m512bh Factors;
MLPDEPLOY_INLINE Vector add_product(Vector sum, char const* row, Factors weights) {
    int pair;
    memcpy(&pair, row, sizeof pair);
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(pair), weights);
}
#else
constexpr long kDepthUnit = 1;
typedef Vector Factors;
MLPDEPLOY_INLINE Vector add_product(Vector sum, char const* row, Factors weights) {
    float x;
    memcpy(&x, row, sizeof x);
    return sum + splat(x) * weights;
}
#endif

// A panel is (depth / unit, kPanel, unit): each step of the depth is the bytes of kPanel floats.
MLPDEPLOY_INLINE long packed_place(long column, long k) {
    return k / kDepthUnit * kPanel * kDepthUnit + column * kDepthUnit + k % kDepthUnit;
}

constexpr long kStepBytes = kPanel * static_cast<long>(sizeof(float));
// Bytes of the panel from those that are used to those that are fetched. They may lie behind the panel: in the next
// one.
constexpr long kAhead = 32 * kStepBytes;
constexpr long kLine = 64;

MLPDEPLOY_INLINE Factors factors_at(char const* from) {
    Factors value;
    memcpy(&value, from, sizeof value);
    return value;
}

// What one of the tiles of a product fetches of the next panel into the second cache: an even share of it, so that it
// comes in the time of all tiles, and not in that of the first.
struct Fetch {
    char const* at;
    long step;  // bytes, for each step of the depth
};

// The heart: Rows x 2 vectors of sums in registers.
template <int Rows>
MLPDEPLOY_TILE_PART void sums_of(Operand const* rows, long row_stride, long steps, char const* panel, Fetch fetch,
                                 Sums (&sums)[Rows][2]) {
    for (int r = 0; r < Rows; ++r) sums[r][0] = sums[r][1] = Sums{};
    // Three row addresses and two strides reach 14 rows; compilers left alone keep 14 addresses, and spill them.
    long stride = row_stride * static_cast<long>(sizeof(Operand));
    long stride3 = 3 * stride;
    char const* bases[] = {reinterpret_cast<char const*>(rows), reinterpret_cast<char const*>(rows) + 5 * stride,
                           reinterpret_cast<char const*>(rows) + 10 * stride};
    asm("" : "+r"(bases[0]), "+r"(bases[1]), "+r"(bases[2]), "+r"(stride), "+r"(stride3));
#pragma GCC unroll 2
    for (long step = 0; step < steps; ++step) {
        for (long line = 0; line < kStepBytes; line += kLine) __builtin_prefetch(panel + kAhead + line);
        __builtin_prefetch(fetch.at, 0, 2);
        fetch.at += fetch.step;
        Factors left = factors_at(panel);
        Factors right = factors_at(panel + kStepBytes / 2);
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r) {
            char const* base = bases[r / 5];
            char const* at = r % 5 == 0   ? base
                             : r % 5 == 1 ? base + stride
                             : r % 5 == 2 ? base + 2 * stride
                             : r % 5 == 3 ? base + stride3
                                          : base + 4 * stride;
            sums[r][0] = add_product(sums[r][0], at, left);
            sums[r][1] = add_product(sums[r][1], at, right);
        }
        for (char const*& base : bases) base += sizeof(float);  // of one step: a float, or two or four operands
        panel += kStepBytes;
    }
}

// As many rows as have their GELU at once.
constexpr int kRowsTogether = kVector == 16 ? 1 : 2;

template <Finish Kind, int From, int Rows>
MLPDEPLOY_INLINE void finish_from(Product const& p, Columns const& columns, long first, Sums (&sums)[Rows][2]) {
    if constexpr (From < Rows) {
        constexpr int kCount = Rows - From < kRowsTogether ? Rows - From : kRowsTogether;
        Vector some[2 * kCount];
#pragma GCC unroll 16
        for (int r = 0; r < kCount; ++r) {
            some[2 * r] = columns.value(sums[From + r][0], 0);
            some[2 * r + 1] = columns.value(sums[From + r][1], 1);
        }
        finish<Kind>(p, columns, first + From, some);
        finish_from<Kind, From + kCount>(p, columns, first, sums);
    }
}

template <Finish Kind, int Rows>
__attribute__((noinline)) void tile(Product const& p, char const* panel, long column, long first, Fetch fetch) {
    Sums sums[Rows][2];
    sums_of<Rows>(static_cast<Operand const*>(p.rows) + first * p.row_stride, p.row_stride,
                  (p.depth + kDepthUnit - 1) / kDepthUnit, panel, fetch, sums);
    finish_from<Kind, 0>(p, Columns(p, column), first, sums);
}

template <Finish Kind, int Rows = kRows>
MLPDEPLOY_INLINE void tile_of(Product const& p, char const* panel, long column, long first, long count, Fetch fetch) {
    if constexpr (Rows > 0) {
        if (count == Rows) return tile<Kind, Rows>(p, panel, column, first, fetch);
        tile_of<Kind, Rows - 1>(p, panel, column, first, count, fetch);
    }
}

// As few tiles as possible, and then as even as possible: a last tile of one row would wait for its own sums.
template <Finish Kind>
void multiply_as(Product const& p) {
    char const* panel = static_cast<char const*>(p.panels);
    long const steps = (p.depth + kDepthUnit - 1) / kDepthUnit;
    long const bytes = steps * kStepBytes;
    for (long i = 0; i < p.panel_count; ++i, panel += bytes) {
        long first = 0;
        long tiles = (p.row_count + kRows - 1) / kRows;
        // Behind the last panel there may be nothing: it is fetched again.
        Fetch fetch{panel + (i + 1 < p.panel_count ? bytes : 0), kStepBytes / (tiles > 0 ? tiles : 1)};
        for (; tiles > 0; --tiles) {
            long const count = (p.row_count - first + tiles - 1) / tiles;
            tile_of<Kind>(p, panel, i * kPanel, first, count, fetch);
            first += count;
            fetch.at += steps * fetch.step;
        }
    }
}

constexpr long kRowUnit = 1;

}  // namespace mlpdeploy::cpu::MLPDEPLOY_ISA
