// The embedded kernel for frames, on one GPU.
#pragma once

#include <cstddef>
#include <string>

#include "../frame_index.h"
#include "cuda.h"

namespace mlpdeploy {

// What nvcc made of frame_kernel.cu; no bytes where the library was built without nvcc.
extern const unsigned char frame_kernel_image[];
extern const std::size_t frame_kernel_image_bytes;

// The GPU's context must be current in every call, and at the end.
class FrameKernel {
 public:
  explicit FrameKernel(const Cuda& cuda);
  FrameKernel(const FrameKernel&) = delete;
  FrameKernel& operator=(const FrameKernel&) = delete;
  ~FrameKernel();

  explicit operator bool() const noexcept { return function_; }
  const std::string& note() const noexcept { return note_; }  // "CUDA kernel", or why there is none

  // Puts it into the stream; the addresses are the GPU's. Throws CudaFailure.
  void launch(const Stream& stream, const FrameParams& frame) const;

 private:
  const Cuda& cuda_;
  CUmodule module_ = nullptr;
  CUfunction function_ = nullptr;
  std::string note_;
};

}  // namespace mlpdeploy
