// 16 bytes of a tensor in registers: what a thread of the kernel moves at once.
#pragma once

#include <cstdint>

#include "axial_shift_host_device.h"

#ifndef __CUDA_ARCH__
#include <cassert>
#include <cstring>
#endif

namespace mlpdeploy {

constexpr int kCHUNK_BYTES = 16;
constexpr int kCHUNK_WORDS = 4;

/// 16 bytes in four registers; little-endian on every device that CUDA runs on.
struct Chunk {
    uint32_t word[kCHUNK_WORDS];
};

/// Read 16 bytes; `address` is a multiple of 16.
MLPDEPLOY_HD Chunk load_chunk(void const* address) {
#ifdef __CUDA_ARCH__
    uint4 const words = __ldg(static_cast<uint4 const*>(address));
    return {{words.x, words.y, words.z, words.w}};
#else
    assert(reinterpret_cast<uintptr_t>(address) % kCHUNK_BYTES == 0);
    Chunk chunk;
    std::memcpy(&chunk, address, sizeof(chunk));
    return chunk;
#endif
}

/// Write 16 bytes; `address` is a multiple of 16.
MLPDEPLOY_HD void store_chunk(void* address, Chunk const& chunk) {
#ifdef __CUDA_ARCH__
    *static_cast<uint4*>(address) = make_uint4(chunk.word[0], chunk.word[1], chunk.word[2], chunk.word[3]);
#else
    assert(reinterpret_cast<uintptr_t>(address) % kCHUNK_BYTES == 0);
    std::memcpy(address, &chunk, sizeof(chunk));
#endif
}

/// Return the low 32 bits of (high:low) >> bits; bits is below 32.
MLPDEPLOY_HD uint32_t funnel_shift(uint32_t low, uint32_t high, uint32_t bits) {
#ifdef __CUDA_ARCH__
    return __funnelshift_r(low, high, bits);
#else
    return static_cast<uint32_t>(((static_cast<uint64_t>(high) << 32) | low) >> bits);
#endif
}

/// Return the 16 bytes that begin `bytes` (0..15) into two chunks. No register
/// is indexed by a variable.
MLPDEPLOY_HD Chunk joined(Chunk const& low, Chunk const& high, uint32_t bytes) {
    uint32_t word[2 * kCHUNK_WORDS];
    MLPDEPLOY_UNROLL
    for (int i = 0; i < kCHUNK_WORDS; ++i) {
        word[i] = low.word[i];
        word[i + kCHUNK_WORDS] = high.word[i];
    }
    if (bytes & 8) {
        MLPDEPLOY_UNROLL
        for (int i = 0; i < 6; ++i) {
            word[i] = word[i + 2];
        }
    }
    if (bytes & 4) {
        MLPDEPLOY_UNROLL
        for (int i = 0; i < 5; ++i) {
            word[i] = word[i + 1];
        }
    }
    Chunk result;
    MLPDEPLOY_UNROLL
    for (int i = 0; i < kCHUNK_WORDS; ++i) {
        result.word[i] = funnel_shift(word[i], word[i + 1], bytes % 4 * 8);
    }
    return result;
}

/// Return a word with all bits of those elements of type T that have a bit in
/// `bits`, from the lowest on.
template <typename T>
MLPDEPLOY_HD uint32_t word_mask(uint32_t bits) {
    if constexpr (sizeof(T) == 4) {
        return 0u - (bits & 1);
    } else if constexpr (sizeof(T) == 2) {
        return ((bits & 1) | (bits & 2) << 15) * 0xFFFFu;
    } else {
        return ((bits & 15) * 0x00204081u & 0x01010101u) * 0xFFu;  // bit i to bit 8 * i
    }
}

/// Make the elements zero that have a bit in `bits`.
template <typename T>
MLPDEPLOY_HD void clear_elements(Chunk& chunk, uint32_t bits) {
    MLPDEPLOY_UNROLL
    for (int i = 0; i < kCHUNK_WORDS; ++i) {
        chunk.word[i] &= ~word_mask<T>(bits >> (i * 4 / static_cast<int>(sizeof(T))));
    }
}

/// Replace element `place`. No register is indexed by a variable.
template <typename T>
MLPDEPLOY_HD void set_element(Chunk& chunk, int place, T value) {
    int const byte = place * static_cast<int>(sizeof(T));
    uint32_t const mask = static_cast<uint32_t>(static_cast<T>(~T{0})) << (byte % 4 * 8);
    uint32_t const bits = static_cast<uint32_t>(value) << (byte % 4 * 8);
    MLPDEPLOY_UNROLL
    for (int i = 0; i < kCHUNK_WORDS; ++i) {
        chunk.word[i] = byte / 4 == i ? (chunk.word[i] & ~mask) | bits : chunk.word[i];
    }
}

/// Return the place of the lowest bit that is set; one is.
MLPDEPLOY_HD int lowest_bit(uint32_t bits) {
#ifdef __CUDA_ARCH__
    return __ffs(static_cast<int>(bits)) - 1;
#else
    int place = 0;
    while ((bits >> place & 1) == 0) {
        ++place;
    }
    return place;
#endif
}

/// Replace the bytes of `chunk` from `begin` on.
MLPDEPLOY_HD void replace_from(Chunk& chunk, Chunk const& other, int begin) {
    MLPDEPLOY_UNROLL
    for (int i = 0; i < kCHUNK_WORDS; ++i) {
        int const bytes = begin - 4 * i;  // of this word that stay
        uint32_t const mask = bytes <= 0 ? ~0u : bytes >= 4 ? 0u : ~0u << (8 * bytes);
        chunk.word[i] = (chunk.word[i] & ~mask) | (other.word[i] & mask);
    }
}

}  // namespace mlpdeploy
