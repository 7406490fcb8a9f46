// x * Phi(x), the exact GELU, where Phi is the normal distribution's function.
#pragma once

#include "vector.h"

namespace mlpdeploy::cpu::MLPDEPLOY_ISA {

#if MLPDEPLOY_VECTOR == 16

// gelu(x) = max(x, 0) - E(|x|) with E(h) = h * erfc(h / sqrt(2)) / 2, which is smooth and below 4e-7 from h = 5.37 on.
// Row k, column i: coefficient of t^(kGeluDegree - k) in E((i + t) / 2.875), |t| <= 0.5. One permutation is a table
// look-up. Error at most 7e-8 * max(1, |x|) with degree 5.
#if defined(MLPDEPLOY_BFLOAT16) || defined(MLPDEPLOY_INT8)
// Results that are rounded to bfloat16 or 8 bits need no more than error 6e-6 * max(1, |x|): a third of the steps less.
constexpr int kGeluDegree = 3;
alignas(64) constexpr float kGeluTerms[kGeluDegree + 1][16] = {
    {0.000927592802F, 0.00351905427F, 0.00532859378F, 0.00490361638F, 0.00305118761F, 0.00106092507F, -0.000218774279F,
     -0.000668318709F, -0.000604275614F, -0.00037924762F, -0.000187611367F, -7.66019948e-05F, -2.64002647e-05F,
     -7.77927562e-06F, -1.97590634e-06F, -4.35003557e-07F},
    {-0.0485329889F, -0.0425032564F, -0.0286833234F, -0.0128424214F, -0.000722678262F, 0.00534234662F, 0.00638840999F,
     0.00488472683F, 0.00289878738F, 0.00141608866F, 0.000584525871F, 0.000206756755F, 6.32045558e-05F, 1.67913804e-05F,
     3.89180605e-06F, 7.89149396e-07F},
    {0.173935041F, 0.0811743364F, 0.00885344669F, -0.0324000493F, -0.0447975881F, -0.0389278531F, -0.0263967849F,
     -0.0148453815F, -0.00710457517F, -0.00293167494F, -0.00105109089F, -0.000329001312F, -9.01949898e-05F,
     -2.17055585e-05F, -4.59274497e-06F, -8.55492829e-07F},
    {0.0F, 0.126597986F, 0.169267178F, 0.154816657F, 0.114183746F, 0.0713179782F, 0.0384976864F, 0.018140262F,
     0.00750206318F, 0.00273160916F, 0.000877407205F, 0.000248924771F, 6.24274035e-05F, 1.38472406e-05F,
     2.71767385e-06F, 4.7205495e-07F},
};
#else
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
#endif

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

template <int Count>
MLPDEPLOY_INLINE void gelu(Vector (&x)[Count]) {
#pragma GCC unroll 16
    for (int i = 0; i < Count; ++i) x[i] = gelu(x[i]);
}

#else

// Phi(x) - 0.5 is x times a polynomial in x^2, fitted over |x| <= 5.2, where Phi is 0 or 1 to single precision.
// Error at most 1.4e-7 * max(1, |x|). Several vectors at once, because a step of one waits for the step before.
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

}  // namespace mlpdeploy::cpu::MLPDEPLOY_ISA
