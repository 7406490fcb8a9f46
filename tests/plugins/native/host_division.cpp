// Reciprocal against the processor's own division, where rounding can go wrong:
// around multiples of the number, from 0 to the largest dividend, 2^31 - 1.
#include <cstdint>
#include <cstdio>
#include <random>

#include "axial_shift_division.h"

using mlpdeploy::Divisor;
using mlpdeploy::Reciprocal;

namespace {

bool check_one(Reciprocal reciprocal, int64_t dividend, int32_t number) {
    if (dividend < 0 || dividend > INT32_MAX) {
        return true;
    }
    auto const at = static_cast<int32_t>(dividend);
    int32_t const got = reciprocal.quotient(at);
    if (got == at / number && Divisor<int32_t>::of(number).quotient(at) == got) {
        return true;
    }
    std::printf("%d / %d gave %d\n", at, number, got);
    return false;
}

bool check(int32_t number, std::mt19937& random) {
    Reciprocal const reciprocal = Reciprocal::of(number);
    int64_t const most = INT32_MAX / number;
    for (int i = 0; i < 1000; ++i) {
        int64_t const wanted[] = {i, most - i, static_cast<int64_t>(random()) % (most + 1)};
        for (int64_t quotient : wanted) {
            for (int64_t near = -1; near <= 1; ++near) {
                if (!check_one(reciprocal, quotient * number + near, number)) {
                    return false;
                }
            }
        }
        if (!check_one(reciprocal, INT32_MAX - i, number) ||
            !check_one(reciprocal, static_cast<int64_t>(random() >> 1), number)) {
            return false;
        }
    }
    return true;
}

}  // namespace

int main() {
    std::mt19937 random(1);
    for (int32_t number = 1; number <= 5000; ++number) {
        if (!check(number, random)) {
            return 1;
        }
    }
    for (int bit = 1; bit < 31; ++bit) {
        for (int32_t near = -1; near <= 1; ++near) {
            if (!check((int32_t{1} << bit) + near, random)) {
                return 1;
            }
        }
        for (int i = 0; i < 100; ++i) {
            auto const number = static_cast<int32_t>(random() >> (32 - bit - 1)) | int32_t{1} << (bit - 1);
            if (!check(number & INT32_MAX, random)) {
                return 1;
            }
        }
    }
    if (!check(INT32_MAX, random)) {
        return 1;
    }
    std::puts("ok");
}
