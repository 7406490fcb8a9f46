#include "frame_kernel.h"

#include <algorithm>

#include "cuda_functions.h"

namespace mlpdeploy {

namespace {

constexpr unsigned threads_per_block = 256;
// Enough to fill a GPU; a thread goes on with further pixels beyond them.
constexpr std::int64_t most_blocks = 4096;

}  // namespace

FrameKernel::FrameKernel(const Cuda& cuda) : cuda_(cuda) {
  if (frame_kernel_image_bytes == 0) {
    note_ = "processor: the library was built without nvcc";
    return;
  }
  try {
    cuda.check(cuda.functions().cuModuleLoadData(&module_, frame_kernel_image), "cuModuleLoadData");
    cuda.check(cuda.functions().cuModuleGetFunction(&function_, module_, "mlpdeploy_frame_to_row"),
               "cuModuleGetFunction");
    note_ = "CUDA kernel";
  } catch (const CudaFailure& failure) {
    note_ = "processor: " + failure.message;
  }
}

FrameKernel::~FrameKernel() {
  if (module_) cuda_.functions().cuModuleUnload(module_);
}

void FrameKernel::launch(const Stream& stream, const FrameParams& frame) const {
  const std::int64_t pixels = std::int64_t{frame.height} * frame.width;
  const std::int64_t blocks = std::min((pixels + threads_per_block - 1) / threads_per_block, most_blocks);
  FrameParams copy = frame;  // the driver reads it before it returns
  void* arguments[] = {&copy};
  cuda_.check(cuda_.functions().cuLaunchKernel(function_, static_cast<unsigned>(blocks), 1, 1, threads_per_block, 1, 1,
                                               0, stream.handle(), arguments, nullptr),
              "cuLaunchKernel");
}

}  // namespace mlpdeploy
