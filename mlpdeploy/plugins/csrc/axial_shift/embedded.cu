// The kernel as PTX for an engine that carries it and needs no library. TensorRT
// launches it itself, so what the launcher works out comes as arguments: the
// plan, worked out by TensorRT from the shapes. engines/embedded.py describes
// it to TensorRT and names the kernels and the arguments in this order.
#include "axial_shift_index.h"

using namespace mlpdeploy;

namespace {

constexpr int kTHREADS = 256;  // EMBEDDED_THREADS in engines/embedded.py

template <typename T>
__device__ __forceinline__ void run(ShiftPlan<int32_t> const& plan, T const* x, T* y_w, T* y_h) {
    constexpr int kCOUNT = kCHUNK_BYTES / sizeof(T);
    auto const divide = dividers_of<Divisor<int32_t>>(plan);
    int32_t const first = (static_cast<int32_t>(blockIdx.x) * kTHREADS + static_cast<int32_t>(threadIdx.x)) * kCOUNT;
    auto const bits =
        reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(y_w) | reinterpret_cast<uintptr_t>(y_h);
    if (bits % kCHUNK_BYTES == 0) {
        if (first < plan.total) {
            shift_chunk<T, kCOUNT>(plan, divide, x, y_w, y_h, first);
        }
        return;
    }
    MLPDEPLOY_NO_UNROLL
    for (int i = 0; i < kCOUNT && first + i < plan.total; ++i) {
        shift_chunk<T, 1>(plan, divide, x, y_w, y_h, first + i);
    }
}

}  // namespace

// One kernel a file, for elements of MLPDEPLOY_ELEMENT_BYTES: an engine carries the text once for each layer.
#if MLPDEPLOY_ELEMENT_BYTES == 1
#define MLPDEPLOY_KERNEL mlpdeploy_axial_shift_1
using Element = uint8_t;
#elif MLPDEPLOY_ELEMENT_BYTES == 2
#define MLPDEPLOY_KERNEL mlpdeploy_axial_shift_2
using Element = uint16_t;
#elif MLPDEPLOY_ELEMENT_BYTES == 4
#define MLPDEPLOY_KERNEL mlpdeploy_axial_shift_4
using Element = uint32_t;
#else
#error "MLPDEPLOY_ELEMENT_BYTES must be 1, 2 or 4"
#endif

extern "C" __global__ void __launch_bounds__(kTHREADS)
    MLPDEPLOY_KERNEL(Element const* x, int32_t total, int32_t channels, int32_t channel_block, int32_t blocks,
                     int32_t block_size, int32_t group_size, int32_t half, int32_t dilation, int32_t stride_w,
                     int32_t size_w, int32_t stride_h, int32_t size_h, int32_t padding, Element* y_w, Element* y_h) {
    ShiftPlan<int32_t> const plan{total,
                                  channels,
                                  channel_block,
                                  blocks,
                                  block_size,
                                  group_size,
                                  half,
                                  dilation,
                                  {stride_w, size_w},
                                  {stride_h, size_h},
                                  static_cast<Padding>(padding)};
    run<Element>(plan, x, y_w, y_h);
}
