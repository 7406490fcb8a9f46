// The axial shift behind a C function, for callers that have pointers and a
// stream but no TensorRT: the torch operator, and the benchmark. CUDA only.
#include "axial_shift.h"

/// Return 0, or a cudaError_t; see launch_axial_shift() for what the arguments
/// must be. `padding` and `type` are the numbers in axial_shift_params.h.
extern "C" __attribute__((visibility("default"))) int32_t mlpdeploy_axial_shift(
    int64_t n, int64_t c, int64_t h, int64_t w, int64_t channel_block, int64_t shift_size, int64_t dilation,
    int32_t padding, int32_t type, void const* x, void* y_w, void* y_h, void* stream) {
    mlpdeploy::AxialShiftParams const params{
        n, c, h, w, channel_block, shift_size, dilation, static_cast<mlpdeploy::Padding>(padding)};
    return mlpdeploy::launch_axial_shift(params, x, y_w, y_h, static_cast<mlpdeploy::ElementType>(type),
                                         static_cast<cudaStream_t>(stream));
}
