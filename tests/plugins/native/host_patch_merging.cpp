// Patch mergings of several shapes, built with sanitizers (host_memory.h).
#include "host_memory.h"
#include "patch_merging.h"

using namespace mlpdeploy::cpu;

namespace {

bool check(long channels, long out_channels, long samples, long height, long width) {
    auto w = random_weights({4 * channels * out_channels, out_channels});
    Scaling scaling;
#ifdef INT8
    scaling = {whole_numbers(w[0]), kScale, {}};
#endif
    PatchMerging const merging(KERNELS::kKernels, channels, out_channels, 1e-5F, w[0].data(), w[1].data(), scaling);
    std::vector<float> const x = random_floats(samples * channels * height * width);
    bool const same = reads_what_it_wrote(samples * out_channels * height * width / 4, [&](Host& host, float* y) {
        merging.run(host, x.data(), y, samples, height, width);
    });
    if (!same) std::printf("%ld channels, %ld x %ld: what was never written is read\n", channels, height, width);
    return same;
}

}  // namespace

int main() {
    ask_for_tiles();
    bool good = true;
    for (long size = 2; size <= 20; size += 2) good &= check(16 * (size % 3 + 1), 32, size % 3 + 1, size, 22 - size);
    good &= check(16, 64, 1, 4, 150);
    if (good) std::puts("ok");
    return good ? 0 : 1;
}
