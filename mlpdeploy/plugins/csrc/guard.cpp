#include "guard.h"

#include <dlfcn.h>

#include <atomic>
#include <cstdio>

#include "sonames.h"

namespace mlpdeploy {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

/// Return whether this process has loaded a TensorRT of the headers' major version.
bool tensorrt_is_ours() noexcept {
    for (char const* name : kTENSORRT_SONAMES) {
        if (void* const library = dlopen(name, RTLD_NOW | RTLD_NOLOAD)) {
            dlclose(library);
            return true;
        }
    }
    return false;
}

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept {
    // Of finder and logger TensorRT 11 has the functions in other places than 10. The rest of this library can be
    // driven by both, so it stays, and speaks to stderr.
    logger_finder = tensorrt_is_ours() ? finder : nullptr;
}

void log_error(char const* where, char const* what) noexcept {
    char line[512];
    std::snprintf(line, sizeof(line), "mlpdeploy %s: %s", where, what);
    nvinfer1::ILoggerFinder* const finder = logger_finder;
    nvinfer1::ILogger* const logger = finder ? finder->findLogger() : nullptr;
    if (logger) {
        logger->log(nvinfer1::ILogger::Severity::kERROR, line);
    } else {
        std::fprintf(stderr, "%s\n", line);
    }
}

}  // namespace mlpdeploy
