// What an engine is, from the JSON file beside it, read and checked as mlpdeploy/engines/sidecar.py does.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "../json.h"

namespace mlpdeploy {

constexpr const char* engine_folder = "engines";

struct Sidecar {
  std::string file;  // the engine's name in the same folder
  std::string sha256;
  std::int64_t bytes = 0;
  bool measured = false;  // chosen by its speed

  // The fingerprint.
  std::string name;  // 16 hexadecimal digits
  std::string target, version, gpu, precision, plugin_sha256, source_sha256;
  std::vector<std::string> compute_capabilities;
  Json profiles;  // [{input name: [min, opt, max shapes]}]
  Json flags;     // {builder option: value}

  bool flag(const char* option) const;  // whether it was set to anything but false, 0, null or ""
  // The sizes of the first input in a profile: which is 0, 1 or 2 for min, opt or max.
  std::vector<std::int64_t> shape(std::size_t profile, std::size_t which) const;
};

// Throws Error (artifact): it is missing, no sidecar, of another version, incomplete, or edited since it was written.
Sidecar read_sidecar(const std::filesystem::path& path);

// An artifact's engines by name; none for an artifact without engines. Throws Error (artifact).
std::vector<Sidecar> engines_of(const std::filesystem::path& folder);

// A whole file; throws std::system_error.
std::string bytes_of_file(const std::filesystem::path& path);

}  // namespace mlpdeploy
