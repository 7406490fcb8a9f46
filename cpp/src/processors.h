// How many processors this process may use.
#pragma once

#include <filesystem>

namespace mlpdeploy {

// Its affinity, and no more than its container's limit, rounded down; at least 1.
int usable_processors();

// Processors' time that the control groups of this process grant (`docker run --cpus 2.5`); infinity without a limit.
// `root` is where proc and sys are; tests have their own.
double processors_allowed(const std::filesystem::path& root = "/");

}  // namespace mlpdeploy
