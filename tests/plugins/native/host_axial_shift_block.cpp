// Blocks of AS-MLP of many shapes, built with sanitizers (host_memory.h).
#include <cstring>
#include <iterator>

#include "axial_shift_block.h"
#include "host_memory.h"

using namespace mlpdeploy::cpu;

namespace {

bool check(long channels, long hidden, long samples, long height, long width, Shift shift) {
    long const c = channels;
    long const sizes[] = {c * c, c, c, c, c * c, c, c * c, c, c * c, c, hidden * c, hidden, c * hidden, c};
    auto w = random_weights({std::begin(sizes), std::end(sizes)});
    AxialShiftWeights weights{w[0].data(),  w[1].data(),  w[2].data(),  w[3].data(), w[4].data(),
                              w[5].data(),  w[6].data(),  w[7].data(),  w[8].data(), w[9].data(),
                              w[10].data(), w[11].data(), w[12].data(), w[13].data()};
    in_8_bits(w, {0, 4, 6, 8, 10, 12}, weights);
    // As the operators have it: those in bfloat16 or 8 bits are on rows.
    bool const is_float = std::strcmp(KERNELS::kKernels.name, FLOAT_KERNELS::kKernels.name) == 0;
    Layout const layout = is_float ? Layout::kPlanes : Layout::kRows;
    AxialShiftBlock const block(KERNELS::kKernels, layout, channels, hidden, shift, 1e-5F, weights);
    std::vector<float> const x = random_floats(samples * channels * height * width);
    bool const same = reads_what_it_wrote(samples * channels * height * width, [&](Host& host, float* y) {
        block.run(host, x.data(), y, samples, height, width);
    });
    if (!same) std::printf("%ld channels, %ld x %ld: what was never written is read\n", channels, height, width);
    return same;
}

}  // namespace

int main() {
    ask_for_tiles();
    bool good = true;
    for (long channels = 1; channels <= 40; ++channels) {
        Shift const shift{2 * (channels % 4) + 1, channels % 2 + 1, static_cast<Padding>(channels % 2 == 0 ? 0 : 3)};
        good &= check(channels, 3 * channels % 50 + 1, channels % 3 + 1, channels % 13 + 1, channels % 17 + 1, shift);
    }
    good &= check(96, 130, 2, 9, 40, {5, 1, Padding::kZero});
    good &= check(128, 130, 3, 3, 5, {5, 1, Padding::kReflect});
    good &= check(31, 20, 1, 12, 12, {7, 1, Padding::kZero});
    good &= check(20, 24, 1, 46, 46, {3, 1, Padding::kCircular});
    if (good) std::puts("ok");
    return good ? 0 : 1;
}
