#include "guard.h"

#include <atomic>
#include <cstdio>

namespace mlpdeploy {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept { logger_finder = finder; }

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
