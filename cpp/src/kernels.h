// The library of CPU kernels for AS-MLP blocks, chosen as mlpdeploy/plugins/cpu.py chooses it.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "manifest.h"

namespace mlpdeploy {

struct Kernels {
  std::filesystem::path library;  // empty: ONNX Runtime computes the blocks
  std::string note;               // the kernels' name, e.g. "avx512"; or "none", and why where that is news
};

// For the file of a role. Throws Error (usage): MLPDEPLOY_NATIVE names kernels that there are not.
Kernels find_kernels(const Manifest& manifest, std::string_view role);

}  // namespace mlpdeploy
