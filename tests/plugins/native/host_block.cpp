// Blocks of many shapes on the heap, built with sanitizers: each buffer ends with its last element, and whatever is
// read before it is written shows as a difference between two runs.
#include <sanitizer/asan_interface.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "block.h"

namespace mlpdeploy::cpu::KERNELS {
extern Kernels const kKernels;
}

using namespace mlpdeploy::cpu;

namespace {

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
        std::size_t const size = (bytes + kLine - 1) / kLine * kLine;
        void* memory = std::aligned_alloc(kLine, size);
        std::memset(memory, fill_, size);
        ASAN_POISON_MEMORY_REGION(static_cast<char*>(memory) + bytes - kLine, size - bytes + kLine);
        return memory;
    }
    void release(void* memory) noexcept override { std::free(memory); }

private:
    static constexpr std::size_t kLine = 64;
    int fill_;
};

std::vector<float> random_floats(long count) {
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& value : values) value = static_cast<float>(std::rand()) / static_cast<float>(RAND_MAX) - 0.5F;
    return values;
}

bool check(long channels, long hidden, long samples, long height, long width, Shift shift) {
    long const c = channels;
    long const sizes[] = {c * c, c, c, c, c * c, c, c * c, c, c * c, c, hidden * c, hidden, c * hidden, c};
    std::vector<std::vector<float>> w;
    for (long size : sizes) w.push_back(random_floats(size));
    Block const block(KERNELS::kKernels, channels, hidden, shift, 1e-5F,
                      {w[0].data(), w[1].data(), w[2].data(), w[3].data(), w[4].data(), w[5].data(), w[6].data(),
                       w[7].data(), w[8].data(), w[9].data(), w[10].data(), w[11].data(), w[12].data(), w[13].data()});
    std::vector<float> const x = random_floats(samples * channels * height * width);
    std::vector<float> y[2];
    for (int run = 0; run < 2; ++run) {
        y[run].resize(x.size());
        TwoThreads host(run == 0 ? 0 : 0xFF);  // all ones are NaNs
        block.run(host, x.data(), y[run].data(), samples, height, width);
    }
    bool const same = std::memcmp(y[0].data(), y[1].data(), x.size() * sizeof(float)) == 0;
    if (!same) std::printf("%ld channels, %ld x %ld: what was never written is read\n", channels, height, width);
    return same;
}

}  // namespace

int main() {
    bool good = true;
    for (long channels = 1; channels <= 40; ++channels) {
        Shift const shift{2 * (channels % 4) + 1, channels % 2 + 1, static_cast<Padding>(channels % 2 == 0 ? 0 : 3)};
        good &= check(channels, 3 * channels % 50 + 1, channels % 3 + 1, channels % 13 + 1, channels % 17 + 1, shift);
    }
    good &= check(128, 130, 3, 3, 5, {5, 1, Padding::kReflect});
    good &= check(31, 20, 1, 12, 12, {7, 1, Padding::kZero});
    good &= check(20, 24, 1, 46, 46, {3, 1, Padding::kCircular});
    if (good) std::puts("ok");
    return good ? 0 : 1;
}
