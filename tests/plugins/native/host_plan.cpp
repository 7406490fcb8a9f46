// Prints the plan of each shift that stdin names, in the order of its fields:
// what TensorRT must hand to the kernel that an engine carries.
#include <cstdio>

#include "axial_shift_index.h"

using namespace mlpdeploy;

int main() {
    long long f[8];
    while (std::scanf("%lld %lld %lld %lld %lld %lld %lld %lld", f, f + 1, f + 2, f + 3, f + 4, f + 5, f + 6, f + 7) ==
           8) {
        AxialShiftParams const params{f[0], f[1], f[2], f[3], f[4], f[5], f[6], static_cast<Padding>(f[7])};
        if (refusal(params) != nullptr) {
            std::printf("refused\n");
            continue;
        }
        auto const plan = plan_of<int32_t>(params);
        static_assert(sizeof(plan) == 13 * sizeof(int32_t), "a field that the embedded kernel is not given");
        std::printf("%d %d %d %d %d %d %d %d %d %d %d %d %d\n", plan.total, plan.channels, plan.channel_block,
                    plan.blocks, plan.block_size, plan.group_size, plan.half, plan.dilation, plan.along_w.stride,
                    plan.along_w.size, plan.along_h.stride, plan.along_h.size, static_cast<int>(plan.padding));
    }
    return 0;
}
