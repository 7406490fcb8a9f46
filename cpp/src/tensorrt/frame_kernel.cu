// The kernel that makes a row of the input tensor of a frame. Compiled by nvcc into a fat binary that is embedded in
// the library; frame_kernel.cpp loads it with the driver.
#include "../frame_index.h"

extern "C" __global__ void mlpdeploy_frame_to_row(mlpdeploy::FrameParams const frame) {
  const std::int64_t pixels = static_cast<std::int64_t>(frame.height) * frame.width;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; index < pixels;
       index += step) {
    mlpdeploy::convert_pixel(frame, index);
  }
}
