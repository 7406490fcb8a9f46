// The libraries of TensorRT that a program may have loaded, in the major version of the headers: another one's tables
// of virtual functions are other ones.
#pragma once

#include <NvInferRuntime.h>

#define MLPDEPLOY_TEXT_OF(value) #value
#define MLPDEPLOY_TEXT(value) MLPDEPLOY_TEXT_OF(value)
#define MLPDEPLOY_SONAME(name) name ".so." MLPDEPLOY_TEXT(NV_TENSORRT_MAJOR)

namespace mlpdeploy {

constexpr char const* kTENSORRT_SONAMES[] = {MLPDEPLOY_SONAME("libnvinfer"), MLPDEPLOY_SONAME("libnvinfer_lean"),
                                             MLPDEPLOY_SONAME("libnvinfer_dispatch")};

}  // namespace mlpdeploy
