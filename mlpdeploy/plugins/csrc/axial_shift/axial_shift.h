// The axial shift on a GPU: the one function that the plugin and the tests
// call. CUDA only.
#pragma once

#include <cuda_runtime_api.h>

#include "axial_shift_params.h"

namespace mlpdeploy {

/// Write both outputs of one axial shift, asynchronously on `stream`, in one
/// pass over x.
///
/// x, y_w, y_h: device memory in the layout of `params.channel_block`,
/// contiguous, and none of them overlaps another. Aligned to 16 bytes they are
/// moved by 16 bytes, otherwise element by element.
///
/// Returns cudaErrorInvalidValue, and launches nothing, for what refusal()
/// refuses, an unknown type or a null pointer; otherwise what the launch
/// returned.
cudaError_t launch_axial_shift(AxialShiftParams const& params, void const* x, void* y_w, void* y_h, ElementType type,
                               cudaStream_t stream);

}  // namespace mlpdeploy
