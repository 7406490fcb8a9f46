// Makes the plugin write an error with a finder set, and prints whether the finder was asked.
#include <NvInferRuntime.h>

#include <cstdio>

#include "harness.h"

using namespace nvinfer1;

namespace {

struct Finder : ILoggerFinder {
    ILogger* findLogger() override {
        asked = true;
        return nullptr;
    }
    bool asked = false;
};
Finder finder;

}  // namespace

int main(int argc, char** argv) {
    void* const library = open_library(argc, argv);
    exported<void(ILoggerFinder*)>(library, "setLoggerFinder")(&finder);
    int32_t count = 0;
    auto* const* const creators = exported<IPluginCreatorInterface* const*(int32_t&)>(library, "getCreators")(count);
    PluginFieldCollection const none{0, nullptr};
    CHECK(!static_cast<IPluginCreatorV3One*>(creators[0])->createPlugin("bad", &none, TensorRTPhase::kBUILD));
    std::puts(finder.asked ? "asked" : "not asked");
}
