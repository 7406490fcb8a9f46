// ONNX Runtime as a backend. On the CPU one image, or a few, are computed by all threads together. As many images as
// threads, or more, are computed by one single-threaded model in as many streams; docs/design.md says why. Both give
// the same bits. On a GPU a batch is one run, and its tensors go through pinned memory.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>

#include "backend.h"
#include "manifest.h"
#include "thread_pool.h"

namespace mlpdeploy {

struct OnnxOptions {
  int threads = 1;
  std::optional<int> max_batch;
  std::optional<int> gpu;  // its index; none: the CPU
};

// Throws Error (artifact, backend). `pool` must outlive it; it has as many threads.
std::unique_ptr<Backend> open_onnx_streams(const std::filesystem::path& file, const Manifest& manifest,
                                           const OnnxOptions& options, SharedPool& pool);

}  // namespace mlpdeploy
