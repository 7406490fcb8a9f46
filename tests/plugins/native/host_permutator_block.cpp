// Blocks of Vision Permutator of many shapes, built with sanitizers (host_memory.h).
#include "host_memory.h"
#include "permutator_block.h"

using namespace mlpdeploy::cpu;

namespace {

bool check(long side, long segment, long gate, long hidden, long samples) {
    long const c = side * segment;
    auto w = random_weights({c, c, c * c, c * c, c * c, gate * c, gate, 3 * c * gate, 3 * c, c * c, c, c, c, c * hidden,
                             hidden, hidden * c, c});
    PermutatorWeights weights{
        {w[0].data(), w[1].data(), w[5].data(), w[6].data(), w[7].data(), w[8].data(), w[9].data(), w[10].data(),
         w[11].data(), w[12].data(), w[13].data(), w[14].data(), w[15].data(), w[16].data()},
        w[2].data(),
        w[3].data(),
        w[4].data()};
    in_8_bits(w, {2, 3, 4, 9, 13, 15}, weights);
    PermutatorBlock const block(KERNELS::kKernels, FLOAT_KERNELS::kKernels, {{c, gate, hidden}, side}, 1e-5F, weights);
    long const count = samples * side * side * c;
    std::vector<float> const x = random_floats(count);
    bool const same = reads_what_it_wrote(count, [&](Host& host, float* y) { block.run(host, x.data(), y, samples); });
    if (!same) std::printf("side %ld, segments of %ld: what was never written is read\n", side, segment);
    return same;
}

}  // namespace

int main() {
    ask_for_tiles();
    bool good = true;
    for (long segment = 1; segment <= 35; ++segment)
        good &= check(segment % 5 + 1, segment, 7 * segment % 40 + 1, 3 * segment % 50 + 1, segment % 3 + 1);
    good &= check(3, 5, 4, 8, 60);
    good &= check(7, 8, 8, 32, 4);  // a sample begins within a tile's rows
    good &= check(5, 16, 8, 32, 10);
    good &= check(16, 8, 32, 40, 2);
    good &= check(70, 1, 5, 9, 1);
    if (good) std::puts("ok");
    return good ? 0 : 1;
}
