// Which engine of an artifact runs on this machine, and with which plugin library; where none does, what differs and
// what to type. Everything is compared before anything is loaded, by the rules and with the words of
// mlpdeploy/runtime/trt/choice.py.
#pragma once

#include <filesystem>
#include <string>

#include "../manifest.h"
#include "sidecar.h"

namespace mlpdeploy {

// What decides whether an engine runs here.
struct Machine {
  std::string tensorrt;  // its version
  std::string gpu;       // its name
  int major = 0;         // of its compute capability
  std::string compute_capability;
  int index = 0;  // of the GPU, among those that the process may use
};

// Throws Error (backend) where all engines of the folder are for another target: TensorRT-RTX is not for C++.
// `gpu` is the index of the one that an engine is wanted for.
void check_targets(const std::filesystem::path& folder, int gpu);

// Of several that fit the one that was chosen by its speed, or the one that takes the most rows. Throws Error: backend
// (none fits), artifact (a description is damaged).
Sidecar choose_engine(const std::filesystem::path& folder, const Manifest& manifest, const Machine& machine);

// The engine's bytes. Throws Error (artifact): missing, truncated or changed.
std::string read_engine(const std::filesystem::path& folder, const Sidecar& sidecar);

// The plugin library that an engine was built with, or an empty path where it needs none: the one that
// MLPDEPLOY_PLUGIN_LIBRARY names; else that of the user's cache or of the artifact's folder with the engine's checksum.
// Throws Error (backend).
std::filesystem::path plugin_for(const std::filesystem::path& folder, const Sidecar& sidecar);

}  // namespace mlpdeploy
