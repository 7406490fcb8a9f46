// Prints the largest error of the kernels' GELU, relative to max(1, |x|), over floats of all magnitudes up to 1e6.
#include "gelu.h"

#include <cmath>
#include <cstdio>
#include <initializer_list>

namespace kernels = mlpdeploy::cpu::MLPDEPLOY_ISA;

static double worst = 0;

static void check(float const* x) {
    kernels::Vector values[] = {kernels::load(x)};
    kernels::gelu(values);
    for (int i = 0; i < kernels::kVector; ++i) {
        double const exact = 0.5 * static_cast<double>(x[i]) * std::erfc(-static_cast<double>(x[i]) * std::sqrt(0.5));
        double const error = std::fabs(static_cast<double>(values[0][i]) - exact) / std::fmax(1.0, std::fabs(x[i]));
        worst = std::fmax(worst, std::isnan(error) ? 1e9 : error);
    }
}

int main() {
    float x[kernels::kVector];
    int filled = 0;
    auto const add = [&](double value) {
        for (double signed_value : {value, -value}) {
            x[filled++] = static_cast<float>(signed_value);
            if (filled == kernels::kVector) check(x), filled = 0;
        }
    };
    add(0);
    for (double value = 1e-6; value < 1e6; value *= 1.0001) add(value);
    for (double value = 0; value < 8; value += 1e-4) add(value);
    for (int i = filled; i < kernels::kVector; ++i) x[i] = 0;
    check(x);
    std::printf("%.3g\n", worst);
}
