// The driver's functions that the library calls, found by name when the driver is loaded.
#pragma once

#include "cuda.h"

// The functions by the names that the driver exports: cuda.h replaces some of them by versioned ones, here as there.
// clang-format off
#define MLPDEPLOY_CUDA_FUNCTIONS(X)                                                                                   \
  X(cuInit) X(cuGetErrorName) X(cuDeviceGetCount) X(cuDeviceGet) X(cuDeviceGetName) X(cuDeviceGetAttribute)           \
  X(cuDevicePrimaryCtxRetain) X(cuCtxPushCurrent) X(cuCtxPopCurrent)                                                  \
  X(cuMemAlloc) X(cuMemFree) X(cuMemHostAlloc) X(cuMemFreeHost)                                                       \
  X(cuStreamCreate) X(cuStreamDestroy) X(cuStreamSynchronize) X(cuMemcpyHtoDAsync) X(cuMemcpyDtoHAsync)               \
  X(cuMemcpy2DAsync) X(cuMemsetD8Async) X(cuModuleLoadData) X(cuModuleGetFunction) X(cuModuleUnload)                  \
  X(cuLaunchKernel) X(cuStreamBeginCapture) X(cuStreamEndCapture)                                                                       \
  X(cuGraphInstantiateWithFlags) X(cuGraphDestroy) X(cuGraphExecDestroy) X(cuGraphLaunch)
// clang-format on

namespace mlpdeploy {

// One pointer for each; a member is called like the function, so cuda.h renames both.
struct CudaFunctions {
#define MLPDEPLOY_MEMBER(name) decltype(&::name) name = nullptr;
  MLPDEPLOY_CUDA_FUNCTIONS(MLPDEPLOY_MEMBER)
#undef MLPDEPLOY_MEMBER
};

}  // namespace mlpdeploy
