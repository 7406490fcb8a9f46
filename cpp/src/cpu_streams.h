// ONNX Runtime on the CPU as a backend. One image, or a few, are computed by all threads together. As many images as
// threads, or more, are computed by one single-threaded model in as many streams; docs/design.md says why. Both give
// the same bits.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>

#include "backend.h"
#include "manifest.h"
#include "thread_pool.h"

namespace mlpdeploy {

struct CpuOptions {
  int threads = 1;
  std::optional<int> max_batch;
};

// Throws Error (artifact). `pool` must outlive it; it has as many threads.
std::unique_ptr<Backend> open_cpu_streams(const std::filesystem::path& file, const Manifest& manifest,
                                          const CpuOptions& options, SharedPool& pool);

}  // namespace mlpdeploy
