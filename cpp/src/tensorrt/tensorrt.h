// TensorRT as a backend: an engine of the artifact's folder. In a library without it, opening it says so.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "../backend.h"
#include "../manifest.h"

namespace mlpdeploy {

constexpr const char* tensorrt_name = "tensorrt";

// Throws Error: usage (an option), artifact (a damaged description or engine), backend (no TensorRT, GPU or engine that
// fits). `file` becomes the engine's name in the folder.
std::unique_ptr<Backend> open_tensorrt(const std::filesystem::path& folder, const Manifest& manifest,
                                       const LoadOptions& options, std::string& file);

}  // namespace mlpdeploy
