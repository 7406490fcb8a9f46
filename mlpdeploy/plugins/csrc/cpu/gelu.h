// x * Phi(x), the exact GELU, where Phi is the normal distribution's function.
#pragma once

#include "vector.h"

namespace mlpdeploy::cpu::MLPDEPLOY_ISA {

#if MLPDEPLOY_VECTOR == 16 && (defined(MLPDEPLOY_BFLOAT16) || defined(MLPDEPLOY_INT8))

// For results that are rounded to bfloat16 or 8 bits: 9 instructions in place of 18. Row k, columns 0 to 15 and 16 to
// 31: coefficient of x^(kGeluDegree - k) where x is nearest to (column - 16) / 3.0625. Columns 1 and 31 have all that
// lies further out too: 0 and x. Error at most 9e-6 * max(1, |x|), and gelu(0) is 0. What is no number stays none, and
// an infinity becomes none.
constexpr int kGeluDegree = 3;
alignas(64) constexpr float kGeluTerms[kGeluDegree + 1][2][16] = {
    {{0.0F, 0.0F, -0.000152820721F, -0.000493657135F, -0.00139139371F, -0.00338973617F, -0.00702884933F, -0.0120577505F,
      -0.01605496F, -0.0133829284F, 0.0034496584F, 0.0384455286F, 0.0847390518F, 0.121892132F, 0.12443088F,
      0.0794521943F},
     {0.0F, -0.0794521943F, -0.12443088F, -0.121892132F, -0.0847390518F, -0.0384455286F, -0.0034496584F, 0.0133829284F,
      0.01605496F, 0.0120577505F, 0.00702884933F, 0.00338973617F, 0.0013913936F, 0.000493657135F, 0.000152820721F,
      0.0F}},
    {{0.0F, 0.0F, -0.00220887549F, -0.00668819109F, -0.0176177192F, -0.040016897F, -0.0773067623F, -0.124049149F,
      -0.157589808F, -0.138786942F, -0.0330005959F, 0.154170573F, 0.35797894F, 0.48714307F, 0.496949792F, 0.434531391F},
     {0.397479296F, 0.434531391F, 0.496949792F, 0.48714307F, 0.35797894F, 0.154170573F, -0.0330005959F, -0.138786942F,
      -0.157589808F, -0.124049149F, -0.0773067623F, -0.040016897F, -0.0176177192F, -0.00668819109F, -0.00220887573F,
      0.0F}},
    {{0.0F, 0.0F, -0.0106649008F, -0.0302914921F, -0.0746563971F, -0.15837127F, -0.285787165F, -0.43067193F,
      -0.524528861F, -0.480468035F, -0.258669376F, 0.0754616037F, 0.375152498F, 0.525280058F, 0.536238372F,
      0.506874979F},
     {0.5F, 0.493124992F, 0.463761657F, 0.474719942F, 0.624847531F, 0.924538374F, 1.25866938F, 1.48046803F, 1.52452886F,
      1.43067193F, 1.28578722F, 1.15837133F, 1.07465637F, 1.03029144F, 1.01066494F, 1.0F}},
    {{0.0F, 0.0F, -0.0172034036F, -0.0458746813F, -0.105917998F, -0.21024172F, -0.355417937F, -0.505182385F,
      -0.592768967F, -0.558389604F, -0.403240204F, -0.204146162F, -0.0569581874F, 0.00137236726F, 0.00516692083F,
      0.000477066962F},
     {0.0F, 0.000477066962F, 0.00516692083F, 0.00137236726F, -0.0569581874F, -0.204146162F, -0.403240204F,
      -0.558389604F, -0.592768967F, -0.505182385F, -0.355417937F, -0.21024172F, -0.105917998F, -0.0458746813F,
      -0.0172034036F, 0.0F}},
};

MLPDEPLOY_INLINE Vector gelu(Vector x) {
    constexpr float kScale = 3.0625F;
    constexpr float kZero = 12582912.0F + 16;  // adding 1.5 * 2^23 rounds, and leaves the integer in the lowest bits
    constexpr int kSmallerWithSignOfFirst = 2;
    Vector const near = _mm512_range_ps(x, splat(15.25F / kScale), kSmallerWithSignOfFirst);
    __m512i const column = _mm512_castps_si512(near * splat(kScale) + splat(kZero));
    Vector sum = _mm512_permutex2var_ps(load(kGeluTerms[0][0]), column, load(kGeluTerms[0][1]));
#pragma GCC unroll 8
    for (int term = 1; term <= kGeluDegree; ++term)
        sum = sum * x + _mm512_permutex2var_ps(load(kGeluTerms[term][0]), column, load(kGeluTerms[term][1]));
    return sum;
}

#elif MLPDEPLOY_VECTOR == 16

// gelu(x) = max(x, 0) - E(|x|) with E(h) = h * erfc(h / sqrt(2)) / 2, which is smooth and below 4e-7 from h = 5.37 on.
// Row k, column i: coefficient of t^(kGeluDegree - k) in E((i + t) / 2.875), |t| <= 0.5. One permutation is a table
// look-up. Error at most 7e-8 * max(1, |x|).
constexpr int kGeluDegree = 5;
alignas(64) constexpr float kGeluTerms[kGeluDegree + 1][16] = {
    {-2.62151607e-05F, -9.17143407e-05F, -0.000118539923F, -7.36079674e-05F, -4.36884011e-06F, 3.92778857e-05F,
     4.35501352e-05F, 2.56702133e-05F, 7.18539241e-06F, -2.37937888e-06F, -4.31544095e-06F, -3.05685421e-06F,
     -1.51923905e-06F, -5.9247202e-07F, -1.89401135e-07F, -5.0756082e-08F},
    {0.000987880281F, 0.00072132115F, 0.00016259437F, -0.000339693273F, -0.000532466569F, -0.000428861269F,
     -0.000207946563F, -3.08741292e-05F, 4.85152414e-05F, 5.66513518e-05F, 3.77343349e-05F, 1.87761125e-05F,
     7.51919015e-06F, 2.50358994e-06F, 7.05370667e-07F, 1.69985796e-07F},
    {-3.79082053e-06F, 0.00355342124F, 0.00537281716F, 0.00493117981F, 0.00305282488F, 0.00104620389F, -0.000235096799F,
     -0.000677899923F, -0.00060696603F, -0.000378355879F, -0.000185993675F, -7.54559369e-05F, -2.58306118e-05F,
     -7.55709698e-06F, -1.90487174e-06F, -4.15965189e-07F},
    {-0.0482647866F, -0.0426834971F, -0.0287236627F, -0.0127576031F, -0.000589602278F, 0.005449533F, 0.00644036848F,
     0.00489238044F, 0.00288667204F, 0.00140192942F, 0.00057509396F, 0.000202063573F, 6.13251323e-05F, 1.6165628e-05F,
     3.7155105e-06F, 7.46665933e-07F},
    {0.173913032F, 0.0811714754F, 0.0088497987F, -0.0324023403F, -0.0447977223F, -0.0389266275F, -0.0263954252F,
     -0.0148445908F, -0.00710435165F, -0.00293174922F, -0.0010512257F, -0.000329096802F, -9.02424508e-05F,
     -2.1724074e-05F, -4.59866578e-06F, -8.57079954e-07F},
    {0.0F, 0.126603618F, 0.169268414F, 0.154814005F, 0.114179589F, 0.0713146329F, 0.0384960659F, 0.0181400273F,
     0.00750244036F, 0.0027320513F, 0.000877701794F, 0.000249071338F, 6.24860986e-05F, 1.3866782e-05F, 2.7231788e-06F,
     4.73381363e-07F},
};

MLPDEPLOY_INLINE Vector gelu(Vector x) {
    constexpr float kScale = 2.875F;
    constexpr float kLast = 15.4375F / kScale;
    constexpr float kRound = 12582912.0F;  // adding 1.5 * 2^23 rounds, and leaves the integer in the lowest bits
    Vector h = _mm512_min_ps(_mm512_abs_ps(x), splat(kLast));
    Vector rounded = h * splat(kScale) + splat(kRound);
    Vector t = h * splat(kScale) - (rounded - splat(kRound));
    __m512i interval = _mm512_castps_si512(rounded);
    Vector sum = _mm512_permutexvar_ps(interval, load(kGeluTerms[0]));
#pragma GCC unroll 8
    for (int term = 1; term <= kGeluDegree; ++term)
        sum = sum * t + _mm512_permutexvar_ps(interval, load(kGeluTerms[term]));
    return _mm512_max_ps(splat(0.0F), x) - sum;  // in this order a NaN stays one
}

#else

// Phi(x) - 0.5 is x times a polynomial in x^2, fitted over |x| <= 5.2, where Phi is 0 or 1 to single precision.
// Error at most 1.6e-7 * max(1, |x|). Several vectors at once, because a step of one waits for the step before.
template <int Count>
MLPDEPLOY_INLINE void gelu(Vector (&x)[Count]) {
    constexpr float kLimit = 5.2F;
    constexpr float kTerms[] = {0.000198370064F, -0.000561992405F, 0.000615465571F, -0.000980165903F, 0.00264169555F,
                                -0.00506461272F, 0.00802435726F,   -0.0123553323F,  0.0181289688F,    -0.0247628093F,
                                0.0319631286F,   -0.0399254821F,   0.0500260629F,   -0.0677438006F,   0.135949984F};
    Vector near[Count];
    Vector t[Count];
    Vector sum[Count];
#pragma GCC unroll 16
    for (int i = 0; i < Count; ++i) {
        near[i] = lesser(greater(x[i], splat(-kLimit)), splat(kLimit));
        t[i] = near[i] * near[i] * splat(2 / (kLimit * kLimit)) - splat(1.0F);
        sum[i] = splat(kTerms[0]);
    }
#pragma GCC unroll 16
    for (int term = 1; term < 15; ++term) {
#pragma GCC unroll 16
        for (int i = 0; i < Count; ++i) sum[i] = sum[i] * t[i] + splat(kTerms[term]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < Count; ++i) x[i] *= near[i] * sum[i] + splat(0.5F);
}

MLPDEPLOY_INLINE Vector gelu(Vector x) {
    Vector one[] = {x};
    gelu(one);
    return one[0];
}

#endif

#if MLPDEPLOY_VECTOR == 16
template <int Count>
MLPDEPLOY_INLINE void gelu(Vector (&x)[Count]) {
#pragma GCC unroll 16
    for (int i = 0; i < Count; ++i) x[i] = gelu(x[i]);
}
#endif

}  // namespace mlpdeploy::cpu::MLPDEPLOY_ISA
