// What stands between our code and TensorRT's ABI: no exception crosses it, and
// what went wrong is said in its log.
#pragma once

#include <NvInferRuntime.h>

#include <exception>
#include <utility>

namespace mlpdeploy {

/// Take the finder that TensorRT hands to setLoggerFinder(), unless it is of
/// another major version than the headers.
void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept;

/// Write an error to TensorRT's logger, or to stderr where there is none or it is of another version.
void log_error(char const* where, char const* what) noexcept;

/// Return what `body` returns; if it throws, log that and return `failed`.
/// Every noexcept override that can fail is one call of this.
template <typename Result, typename Body>
Result guard(char const* where, Result failed, Body&& body) noexcept {
    try {
        return std::forward<Body>(body)();
    } catch (std::exception const& error) {
        log_error(where, error.what());
    } catch (...) {
        log_error(where, "unknown exception");
    }
    return failed;
}

}  // namespace mlpdeploy
