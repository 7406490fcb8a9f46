// The artifact's manifest, read and checked as mlpdeploy/manifest.py does.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "json.h"
#include "mlpdeploy/session.h"

namespace mlpdeploy {

struct FileEntry {
  std::string name;
  std::string role;  // `canonical`, a target, `weights` or `calibration`
  std::string sha256;
  std::int64_t bytes = 0;
  std::string shift;
  std::string weights;  // the file beside it that holds its weights; empty where they are inside

  bool is_model() const { return role != "weights" && role != "calibration"; }
};

struct Manifest {
  Json body;  // the whole document
  std::vector<TensorSpec> inputs, outputs;
  std::optional<Preprocessing> preprocessing;
  std::vector<std::string> labels;
  std::vector<FileEntry> files;
  ModelInfo model;

  const FileEntry* file(std::string_view name) const;
  const FileEntry& canonical() const;
  // The file for a target, or the canonical one where there is none. Throws Error (artifact) where there is none and
  // the artifact's precision is not that of its canonical file, float32.
  const FileEntry& file_for(std::string_view role) const;
  std::vector<std::string> roles() const;  // of the models
};

// Throws Error (artifact): no artifact, no JSON, of another version, incomplete, or edited since it was written.
Manifest read_manifest(const std::filesystem::path& folder);

// The same from the file's text; `path` stands in error texts.
Manifest manifest_from(std::string_view text, const std::string& path);

// The path of one of the artifact's files, after comparing its size and SHA-256, and those of its weights.
// Throws Error (artifact).
std::filesystem::path checked_file(const std::filesystem::path& folder, const Manifest& manifest,
                                   const std::string& name);

}  // namespace mlpdeploy
