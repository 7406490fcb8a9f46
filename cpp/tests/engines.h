// Artifact folders with engines for the simulated GPU.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "json.h"
#include "mlpdeploy/session.h"
#include "scratch.h"

// What a test says about an engine; the rest fits the simulated GPU and the artifact.
struct EngineRequest {
  std::vector<std::string> words;                                   // of the fake plan, e.g. "no-graph"
  std::vector<std::vector<int>> profiles = {{1, 1, 2}, {4, 8, 8}};  // rows: min, opt, max
  std::vector<int> sides = {0, 0};                                  // least and most of open image sizes
  std::function<void(mlpdeploy::Json& fingerprint)> edit{};
};

// A copy of the manifest of one of the test artifacts in a folder of its own, which is removed at the end.
class EngineFolder {
 public:
  explicit EngineFolder(const char* artifact);

  const std::filesystem::path& path() const { return scratch_.path(); }
  // Writes an engine and what it is; returns the engine's path.
  std::filesystem::path add(const EngineRequest& request = {}) const;
  mlpdeploy::Session load(mlpdeploy::LoadOptions options = {}) const;
  std::string refusal(mlpdeploy::LoadOptions options = {}) const;  // what load throws, or ""

 private:
  ScratchFolder scratch_{"engines"};
  mlpdeploy::Json manifest_;

  std::string plan_text(const EngineRequest& request) const;
  mlpdeploy::Json profiles_of(const EngineRequest& request) const;
};

void write_text(const std::filesystem::path& path, const std::string& text);
std::string refusal_of(const std::function<void()>& work);

// The version of the fake TensorRT, as its library tells it.
std::string fake_version();
