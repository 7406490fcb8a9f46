// The two functions that this library shows to TensorRT;
// IPluginRegistry::loadLibrary() looks them up by name. axial_shift/c_launcher.cpp
// has the third that it shows.
#include <cstdint>

#include "face.h"
#include "guard.h"

#define MLPDEPLOY_EXPORT extern "C" __attribute__((visibility("default")))

#if MLPDEPLOY_PLUGIN_V2
#define MLPDEPLOY_GET_CREATORS getPluginCreators
#else
#define MLPDEPLOY_GET_CREATORS getCreators
#endif

MLPDEPLOY_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { mlpdeploy::set_logger_finder(finder); }

MLPDEPLOY_EXPORT mlpdeploy::Creator* const* MLPDEPLOY_GET_CREATORS(int32_t& count) {
    static mlpdeploy::Creator* const creators[] = {mlpdeploy::axial_shift_creator()};
    count = 1;
    return creators;
}
