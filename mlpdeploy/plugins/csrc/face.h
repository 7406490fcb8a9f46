// Which plugin interface is compiled: IPluginV3 from TensorRT 10 on,
// IPluginV2DynamicExt for 8.6.
#pragma once

#include <NvInferRuntime.h>

// Defined by hand only to test the older face with newer headers.
#ifndef MLPDEPLOY_PLUGIN_V2
#define MLPDEPLOY_PLUGIN_V2 (NV_TENSORRT_MAJOR < 10)
#endif

#if MLPDEPLOY_PLUGIN_V2
// 8.6 calls this interface deprecated already, and has no other one for a shape that is not fixed.
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
#endif

namespace mlpdeploy {

#if MLPDEPLOY_PLUGIN_V2
using Creator = nvinfer1::IPluginCreator;
#else
using Creator = nvinfer1::IPluginCreatorInterface;
#endif

/// The one creator of each operator; it lives as long as the library.
Creator* axial_shift_creator();

}  // namespace mlpdeploy
