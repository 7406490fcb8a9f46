// What a caller says about the GPU: "cuda", or "cuda:1" for the second one.
#pragma once

#include <string>

namespace mlpdeploy {

bool names_gpu(const std::string& device) noexcept;

// The index of a device that names a GPU. Throws Error (usage).
int gpu_index(const std::string& device);

}  // namespace mlpdeploy
