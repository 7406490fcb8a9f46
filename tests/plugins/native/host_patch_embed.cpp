// First convolutions of several shapes, built with sanitizers (host_memory.h).
#include "host_memory.h"
#include "patch_embed.h"

using namespace mlpdeploy::cpu;

namespace {

bool check(PatchEmbed::Sizes const& sizes, bool normalized, long samples, long height, long width) {
    auto w = random_weights(
        {sizes.depth() * sizes.out_channels, sizes.out_channels, sizes.out_channels, sizes.out_channels});
    std::optional<PatchEmbed::Norm> norm;
    if (normalized) norm = {1e-5F, w[2].data(), w[3].data()};
    PatchEmbed const embed(KERNELS::kKernels, sizes, w[0].data(), w[1].data(), norm);
    std::vector<float> const x = random_floats(samples * sizes.channels * height * width);
    long const count = samples * sizes.out_channels * sizes.out_of(height) * sizes.out_of(width);
    bool const same =
        reads_what_it_wrote(count, [&](Host& host, float* y) { embed.run(host, x.data(), y, samples, height, width); });
    if (!same) {
        std::printf("kernel %ld, stride %ld, %ld x %ld: what was never written is read\n", sizes.kernel, sizes.stride,
                    height, width);
    }
    return same;
}

}  // namespace

int main() {
    bool good = true;
    for (long size = 8; size <= 40; size += 4) {
        good &= check({3, 32, 4, 4, 0}, size % 8 == 0, size % 3 + 1, size, 48 - size);
        good &= check({size % 5 + 1, 64, 7, 4, 2}, size % 8 == 0, size % 3 + 1, size - 5, 46 - size);
    }
    good &= check({3, 32, 7, 7, 0}, true, 1, 300, 8);
    good &= check({3, 32, 3, 2, 4}, false, 2, 1, 1);
    if (good) std::puts("ok");
    return good ? 0 : 1;
}
