// Convolutions of stride 2 of several shapes, built with sanitizers (host_memory.h).
#include "downsample.h"
#include "host_memory.h"

using namespace mlpdeploy::cpu;

namespace {

bool check(Downsample::Sizes const& sizes, std::optional<float> epsilon, long samples, long height, long width) {
    auto w = random_weights({sizes.kernel * sizes.kernel * sizes.channels * sizes.out_channels, sizes.out_channels});
    Scaling scaling;
#ifdef INT8
    scaling = {whole_numbers(w[0]), kScale, {}};
#endif
    Downsample const downsample(KERNELS::kKernels, sizes, epsilon, w[0].data(), w[1].data(), scaling);
    std::vector<float> const x = random_floats(samples * sizes.channels * height * width);
    long const count = samples * sizes.out_channels * sizes.out_of(height) * sizes.out_of(width);
    bool const same = reads_what_it_wrote(
        count, [&](Host& host, float* y) { downsample.run(host, x.data(), y, samples, height, width); });
    if (!same) {
        std::printf("%ld channels, kernel %ld, %ld x %ld: what was never written is read\n", sizes.channels,
                    sizes.kernel, height, width);
    }
    return same;
}

}  // namespace

int main() {
    ask_for_tiles();
    bool good = true;
    for (long size = 2; size <= 20; size += 2) {
        Downsample::Sizes const sizes{16 * (size % 3 + 1), 32, 2};
        good &= check(sizes, 1e-5F, size % 3 + 1, size, 22 - size);
        good &= check(sizes, std::nullopt, size % 3 + 1, size + 1, 22 - size);
    }
    for (long size = 1; size <= 9; ++size)
        good &= check({32 * (size % 2 + 1), 32, 3}, std::nullopt, size % 3 + 1, size, 10 - size);
    good &= check({16, 64, 2}, 1e-5F, 1, 4, 150);
    good &= check({32, 64, 3}, std::nullopt, 1, 3, 151);
    if (good) std::puts("ok");
    return good ? 0 : 1;
}
