// What one axial shift computes, and which requests are refused. Plain data: no
// CUDA, no TensorRT.
#pragma once

#include <cstdint>

namespace mlpdeploy {

/// How the image goes on outside of its border.
enum class Padding : int32_t { kZERO = 0, kCIRCULAR = 1, kREFLECT = 2, kREPLICATE = 3 };

/// The types that the kernel moves; nothing is computed with them, so only
/// their size matters.
enum class ElementType : int32_t { kFLOAT32 = 0, kFLOAT16 = 1, kBFLOAT16 = 2, kINT8 = 3 };

/// `channel_block` of NCHW.
constexpr int64_t kPLANAR = 1;

/// One axial shift over x (n, c, h, w).
///
/// Layouts differ in one number only: memory is (n, ceil(c / channel_block), h,
/// w, channel_block). So 1 is NCHW, c is NHWC, 32 is what TensorRT calls CHW32,
/// and c rounded up to 8 its HWC8. Channels that only fill a block up are
/// written as zero.
struct AxialShiftParams {
    int64_t n;
    int64_t c;
    int64_t h;
    int64_t w;
    int64_t channel_block;
    int64_t shift_size;  // groups of channels, odd
    int64_t dilation;    // pixels per step
    Padding padding;
};

/// No attribute may be larger: so no product of two of them overflows 64 bits.
constexpr int64_t kLARGEST_ATTRIBUTE = INT32_MAX;
/// Elements in a tensor; 2^56 leaves room for every sum of offsets.
constexpr int64_t kLARGEST_TENSOR = int64_t{1} << 56;

/// The largest distance in pixels that a channel moves.
inline int64_t reach_of(AxialShiftParams const& p) { return p.shift_size / 2 * p.dilation; }

/// Multiply `product` by `factor` unless the result would exceed
/// kLARGEST_TENSOR.
inline bool multiply(int64_t& product, int64_t factor) {
    if (product != 0 && factor > kLARGEST_TENSOR / product) {
        return false;
    }
    product *= factor;
    return true;
}

/// Return why the attributes alone are refused, or nullptr.
inline char const* attribute_refusal(int64_t shift_size, int64_t dilation, Padding padding) {
    if (shift_size < 1 || shift_size % 2 == 0 || shift_size > kLARGEST_ATTRIBUTE) {
        return "shift_size must be odd and at least 1";
    }
    if (dilation < 1 || dilation > kLARGEST_ATTRIBUTE) {
        return "dilation must be at least 1";
    }
    switch (padding) {
        case Padding::kZERO:
        case Padding::kCIRCULAR:
        case Padding::kREFLECT:
        case Padding::kREPLICATE:
            return nullptr;
        default:
            return "padding must be zero, circular, reflect or replicate";
    }
}

/// Return why a shift is refused, or nullptr. The sizes are refused that
/// mlpdeploy/ops/axial_shift.py refuses.
inline char const* refusal(AxialShiftParams const& p) {
    if (char const* reason = attribute_refusal(p.shift_size, p.dilation, p.padding)) {
        return reason;
    }
    if (p.n < 0 || p.c < 0 || p.h < 1 || p.w < 1 || p.channel_block < 1 || p.channel_block > kLARGEST_ATTRIBUTE) {
        return "the sizes of x must be positive";
    }
    int64_t const smallest = p.h < p.w ? p.h : p.w;
    if (p.padding == Padding::kCIRCULAR && smallest < reach_of(p)) {
        return "circular padding needs an image of at least shift_size // 2 * "
               "dilation pixels each way";
    }
    if (p.padding == Padding::kREFLECT && smallest < reach_of(p) + 1) {
        return "reflect padding needs an image of at least shift_size // 2 * "
               "dilation + 1 pixels each way";
    }
    int64_t elements = 1;
    // c < 2^56 is checked before it is rounded up, so the sum cannot overflow.
    if (p.c > kLARGEST_TENSOR || !multiply(elements, (p.c + p.channel_block - 1) / p.channel_block) ||
        !multiply(elements, p.channel_block) || !multiply(elements, p.h) || !multiply(elements, p.w) ||
        !multiply(elements, p.n)) {
        return "x has too many elements";
    }
    return nullptr;
}

}  // namespace mlpdeploy
