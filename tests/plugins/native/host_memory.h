// Memory and threads for blocks that are built with sanitizers: each buffer ends with its last element, and whatever is
// read before it is written shows as a difference between two runs.
#pragma once

#include <sanitizer/asan_interface.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "host.h"
#include "kernels.h"

namespace mlpdeploy::cpu::KERNELS {
extern Kernels const kKernels;
}
namespace mlpdeploy::cpu::FLOAT_KERNELS {
extern Kernels const kKernels;
}

namespace mlpdeploy::cpu {

// Linux gives a process the registers of tiles when it asks for them.
inline void ask_for_tiles() {
#if defined(__AMX_BF16__) || defined(__AMX_INT8__)
    constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
    constexpr long kTileData = 18;               // XFEATURE_XTILEDATA
    if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0) std::abort();
#endif
}

// Memory filled with `fill`, and two threads that share the tasks out.
class TwoThreads final : public Host {
public:
    explicit TwoThreads(int fill) : fill_(fill) {}
    void for_each(long count, void (*task)(void*, std::size_t), void* data) override {
        auto const every_second = [=](long first) {
            for (long i = first; i < count; i += 2) task(data, static_cast<std::size_t>(i));
        };
        std::thread other(every_second, 1);
        every_second(0);
        other.join();
    }
    void* allocate(std::size_t bytes) noexcept override {
        // On a cache line already: the room that the caller asks for to get there must stay untouched.
        // Behind it is a page that cannot be read: the sanitizer does not see what is loaded to tiles.
        std::size_t const size = (bytes + kLine - 1) / kLine * kLine - kLine;
        std::size_t const pages = (size + kPage - 1) / kPage * kPage;
        void* const mapped = mmap(nullptr, pages + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (mapped == MAP_FAILED) std::abort();
        char* const end = static_cast<char*>(mapped) + pages;
        if (mprotect(end, kPage, PROT_NONE) != 0) std::abort();
        char* const memory = end - size;
        std::memset(memory, fill_, size);
        ASAN_POISON_MEMORY_REGION(memory + bytes - kLine, size - (bytes - kLine));
        return memory;
    }
    void release(void* memory, std::size_t bytes) noexcept override {
        std::size_t const size = (bytes + kLine - 1) / kLine * kLine - kLine;
        std::size_t const pages = (size + kPage - 1) / kPage * kPage;
        char* const mapped = static_cast<char*>(memory) + size - pages;
        ASAN_UNPOISON_MEMORY_REGION(mapped, pages);
        munmap(mapped, pages + kPage);
    }

private:
    static constexpr std::size_t kLine = 64, kPage = 4096;
    int fill_;
};

inline std::vector<float> random_floats(long count) {
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& value : values) value = static_cast<float>(std::rand()) / static_cast<float>(RAND_MAX) - 0.5F;
    return values;
}

inline std::vector<std::vector<float>> random_weights(std::vector<long> const& sizes) {
    std::vector<std::vector<float>> weights;
    for (long size : sizes) weights.push_back(random_floats(size));
    return weights;
}

// Of kernels with products of 8 bits: make whole numbers of some of the weights, and give them steps and scales.
[[maybe_unused]] constexpr Scale kScale{0.02F, 117};
inline float const* whole_numbers(std::vector<float>& weights) {
    static std::vector<float> const steps(1 << 12, 0.004F);
    for (float& value : weights) value = std::rint(value * 254);
    return steps.data();
}
template <typename Weights>
void in_8_bits(std::vector<std::vector<float>>& w, std::vector<int> const& matrices, Weights& weights) {
#ifdef INT8
    for (std::size_t i = 0; i < matrices.size(); ++i) {
        weights.steps[i] = whole_numbers(w[static_cast<std::size_t>(matrices[i])]);
        weights.scales[i] = kScale;
    }
#else
    (void)w, (void)matrices, (void)weights;
#endif
}

// Whether run(host, y), which writes `count` floats, does not depend on what its memory held.
template <typename Run>
bool reads_what_it_wrote(long count, Run const& run) {
    std::vector<float> y[2];
    for (int i = 0; i < 2; ++i) {
        y[i].resize(static_cast<std::size_t>(count));
        TwoThreads host(i == 0 ? 0 : 0xFF);  // all ones are NaNs
        run(host, y[i].data());
    }
    return std::memcmp(y[0].data(), y[1].data(), y[0].size() * sizeof(float)) == 0;
}

}  // namespace mlpdeploy::cpu
