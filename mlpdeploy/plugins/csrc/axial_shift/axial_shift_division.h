// Quotients by numbers that are known only when the kernel is launched.
#pragma once

#include <cstdint>
#include <type_traits>

#include "axial_shift_host_device.h"

namespace mlpdeploy {

/// Divides by a number that only the launch knows, as the device does it: some
/// 20 instructions with 32 bits, three of them in the slow unit for conversions.
template <typename Index>
struct Divisor {
    Index number;

    static MLPDEPLOY_HD Divisor of(Index number) { return {number}; }

    /// dividend: 0 or more.
    MLPDEPLOY_HD Index quotient(Index dividend) const {
        using Unsigned = std::make_unsigned_t<Index>;  // cheaper than with signs
        return static_cast<Index>(static_cast<Unsigned>(dividend) / static_cast<Unsigned>(number));
    }
};

/// The same in three instructions, for a host that prepares the launch: a
/// product and a shift, right for every dividend and number below 2^31.
///
/// With 2^(s-1) < number <= 2^s the factor is 2^(31+s) / number rounded up,
/// which 32 bits hold. It is too large by e / number, e < number <= 2^s; so
/// what is rounded down in the end is too large by
/// dividend * e / number / 2^(31+s) < 1 / number: never enough to reach the next
/// whole number.
struct Reciprocal {
    uint32_t factor;
    uint32_t bits;  // s

    static MLPDEPLOY_HD Reciprocal of(int32_t number) {
        auto const divisor = static_cast<uint64_t>(number);
        uint32_t bits = 0;
        while ((uint64_t{1} << bits) < divisor) {
            ++bits;
        }
        return {static_cast<uint32_t>(((uint64_t{1} << (31 + bits)) + divisor - 1) / divisor), bits};
    }

    /// dividend: 0 or more.
    MLPDEPLOY_HD int32_t quotient(int32_t dividend) const {
        uint32_t const doubled = static_cast<uint32_t>(dividend) * 2;
#ifdef __CUDA_ARCH__
        return static_cast<int32_t>(__umulhi(doubled, factor) >> bits);
#else
        return static_cast<int32_t>(static_cast<uint64_t>(doubled) * factor >> 32 >> bits);
#endif
    }
};

}  // namespace mlpdeploy
