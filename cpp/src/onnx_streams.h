// ONNX Runtime as a backend. On the CPU one image, or a few, are computed by all threads together. As many images as
// threads, or more, are computed by one single-threaded model in as many streams; docs/design.md says why. Both give
// the same bits. On a GPU a batch is one run, and its tensors go through pinned memory.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "backend.h"
#include "manifest.h"
#include "thread_pool.h"

namespace mlpdeploy {

// Throws Error: usage (an option), artifact (a damaged or misfitting file), backend (no GPU). `pool` must outlive it.
// `file` becomes the name of the model in the folder. In a library without ONNX Runtime, opening it says so.
std::unique_ptr<Backend> open_onnxruntime(const std::filesystem::path& folder, const Manifest& manifest,
                                          const LoadOptions& options, SharedPool& pool, std::string& file);

}  // namespace mlpdeploy
