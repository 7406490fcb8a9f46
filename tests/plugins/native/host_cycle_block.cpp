// Blocks of CycleMLP of many shapes, built with sanitizers (host_memory.h).
#include "cycle_block.h"
#include "host_memory.h"

using namespace mlpdeploy::cpu;

namespace {

bool check(long c, long gate, long hidden, long samples, long height, long width) {
    auto w = random_weights({c, c, c * c, c, c * c, c, c * c, gate * c, gate, 3 * c * gate, 3 * c, c * c, c, c, c,
                             c * hidden, hidden, hidden * c, c});
    CycleWeights weights{
        {w[0].data(), w[1].data(), w[7].data(), w[8].data(), w[9].data(), w[10].data(), w[11].data(), w[12].data(),
         w[13].data(), w[14].data(), w[15].data(), w[16].data(), w[17].data(), w[18].data()},
        w[2].data(),
        w[3].data(),
        w[4].data(),
        w[5].data(),
        w[6].data()};
    in_8_bits(w, {2, 4, 6, 11, 15, 17}, weights);
    CycleBlock const block(KERNELS::kKernels, FLOAT_KERNELS::kKernels, {c, gate, hidden}, 1e-5F, weights);
    long const count = samples * height * width * c;
    std::vector<float> const x = random_floats(count);
    bool const same =
        reads_what_it_wrote(count, [&](Host& host, float* y) { block.run(host, x.data(), y, samples, height, width); });
    if (!same) std::printf("%ld channels, %ldx%ld: what was never written is read\n", c, height, width);
    return same;
}

}  // namespace

int main() {
    ask_for_tiles();
    bool good = true;
    for (long c = 1; c <= 70; ++c)
        good &= check(c, 7 * c % 40 + 1, 3 * c % 50 + 1, c % 3 + 1, c % 5 + 1, 2 * c % 7 + 1);
    good &= check(15, 4, 8, 60, 3, 3);
    good &= check(64, 8, 32, 4, 7, 7);  // whole panels
    good &= check(56, 8, 32, 4, 7, 7);  // a sample begins within a tile's rows
    good &= check(20, 8, 40, 2, 17, 16);
    good &= check(9, 5, 9, 2, 1, 300);
    good &= check(9, 5, 9, 1, 530, 1);
    if (good) std::puts("ok");
    return good ? 0 : 1;
}
