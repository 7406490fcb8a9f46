// The two functions that this library shows to TensorRT;
// IPluginRegistry::loadLibrary() looks them up by name. axial_shift/c_launcher.cpp
// has the third that it shows.
#include <dlfcn.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "face.h"
#include "guard.h"
#include "plugin_core.h"
#include "sonames.h"

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

namespace {

// For programs that only open a library and expect it to register itself, as Triton does. loadLibrary() refuses what is
// registered already, so it happens only where it is asked for.
__attribute__((constructor)) void register_where_asked() {
    char const* const asked = std::getenv("MLPDEPLOY_REGISTER_PLUGIN");
    if (asked == nullptr || std::strcmp(asked, "1") != 0) return;
    for (char const* name : mlpdeploy::kTENSORRT_SONAMES) {
        void* const tensorrt = dlopen(name, RTLD_NOW | RTLD_NOLOAD);
        void* const entry = tensorrt == nullptr ? nullptr : dlsym(tensorrt, "getPluginRegistry");
        if (entry == nullptr) continue;
        nvinfer1::IPluginRegistry* const registry = reinterpret_cast<nvinfer1::IPluginRegistry* (*)()>(entry)();
        if (registry->registerCreator(*mlpdeploy::axial_shift_creator(), mlpdeploy::kPLUGIN_NAMESPACE)) return;
        return mlpdeploy::log_error("MLPDEPLOY_REGISTER_PLUGIN", "TensorRT's registry refused the plugin");
    }
    mlpdeploy::log_error("MLPDEPLOY_REGISTER_PLUGIN",
                         "this process has not loaded TensorRT " MLPDEPLOY_TEXT(NV_TENSORRT_MAJOR));
}

}  // namespace
