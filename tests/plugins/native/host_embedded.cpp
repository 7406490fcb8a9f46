// embedded.cu itself on the host: a grid is a loop, and the kernel gets its
// arguments from outside in their order, as TensorRT hands them over.
#include <cstdint>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(threads)

namespace {
struct {
    unsigned x;
} blockIdx, threadIdx;
}  // namespace

#include "embedded.cu"

extern "C" void launch(uint32_t blocks, uint32_t threads, int32_t const* a, Element const* x, Element* y_w,
                       Element* y_h) {
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
        for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) {
            MLPDEPLOY_KERNEL(x, a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12], y_w,
                             y_h);
        }
    }
}
