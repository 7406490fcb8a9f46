#include "engines.h"

#include <NvInferVersion.h>

#include <fstream>
#include <sstream>

#include "artifacts.h"
#include "fake_gpu.h"
#include "sha256.h"

using namespace mlpdeploy;
namespace fs = std::filesystem;

namespace {

std::string text_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

Json texts(std::initializer_list<const char*> values) {
  Json list = Json::array();
  for (const char* value : values) list.add(value);
  return list;
}

const Json* only_input(const Json& manifest) { return &manifest.find("inputs")->items.front(); }

}  // namespace

void write_text(const fs::path& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

std::string refusal_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

std::string fake_version() {
  std::string text = std::to_string(NV_TENSORRT_MAJOR) + "." + std::to_string(NV_TENSORRT_MINOR) + "." +
                     std::to_string(NV_TENSORRT_PATCH);
  if (NV_TENSORRT_MAJOR >= 10) text += "." + std::to_string(NV_TENSORRT_BUILD);
  return text;
}

EngineFolder::EngineFolder(const char* name) {
  fs::create_directory(path() / "engines");
  fs::copy_file(artifact(name) / "manifest.json", path() / "manifest.json");
  manifest_ = parse_json(text_of(path() / "manifest.json"));
}

std::string EngineFolder::plan_text(const EngineRequest& request) const {
  std::string text = "fake-engine\n";
  for (const char* side : {"input", "output"}) {
    for (const Json& tensor : manifest_.find(std::string(side) + "s")->items) {
      text += std::string(side) + " " + tensor.find("name")->text;
      for (const Json& size : tensor.find("shape")->items) {
        text += size.is(Json::Type::integer) ? " " + size.text : " -1";
      }
      text += "\n";
    }
  }
  for (const auto& rows : request.profiles) {
    text += "profile";
    for (const int value : rows) text += " " + std::to_string(value);
    for (const int value : request.sides) text += " " + std::to_string(value);
    text += "\n";
  }
  for (const std::string& word : request.words) text += word + "\n";
  return text;
}

Json EngineFolder::profiles_of(const EngineRequest& request) const {
  Json profiles = Json::array();
  for (const auto& rows : request.profiles) {
    Json shapes = Json::array();
    for (std::size_t which = 0; which < 3; ++which) {
      Json shape = Json::array();
      const auto& sizes = only_input(manifest_)->find("shape")->items;
      for (std::size_t axis = 0; axis < sizes.size(); ++axis) {
        const int open = axis ? request.sides[which / 2] : rows[which];
        shape.add(sizes[axis].is(Json::Type::integer) ? sizes[axis] : Json(open));
      }
      shapes.add(std::move(shape));
    }
    Json profile = Json::object();
    profile.set(only_input(manifest_)->find("name")->text, std::move(shapes));
    profiles.add(std::move(profile));
  }
  return profiles;
}

fs::path EngineFolder::add(const EngineRequest& request) const {
  const std::string plan = plan_text(request);
  const Json* canonical = nullptr;
  for (const auto& [name, entry] : manifest_.find("files")->members) {
    if (entry.find("role")->text == "canonical") canonical = &entry;
  }
  Json mark = Json::object();
  mark.set("target", "tensorrt");
  mark.set("version", fake_version());
  mark.set("gpu", fake_gpu()->name);
  mark.set("compute_capabilities", texts({"8.9"}));
  mark.set("precision", *manifest_.find("precision"));
  mark.set("shift", "slice");
  mark.set("profiles", profiles_of(request));
  mark.set("flags", Json::object());
  mark.set("plugin_sha256", "");
  mark.set("source_sha256", *canonical->find("sha256"));
  mark.set("network_sha256", sha256_of(plan));
  if (request.edit) request.edit(mark);
  const std::string name = sha256_of(canonical_json(mark)).substr(0, 16);
  Json body = Json::object();
  body.set("format", "mlpdeploy-engine");
  body.set("version", 1);
  body.set("fingerprint", std::move(mark));
  body.set("file", name + ".plan");
  body.set("sha256", sha256_of(plan));
  body.set("bytes", static_cast<int>(plan.size()));
  body.set("driver", "");
  for (const char* seconds : {"parse_seconds", "build_seconds"}) body.set(seconds, 0.25);
  for (const char* counts : {"network_layers", "network_types"}) body.set(counts, Json::object());
  body.set("engine_layers", Json());
  body.set("warnings", Json::array());
  body.set("measured_ms", Json::object());
  body.set("checksum", sha256_of(canonical_json(body)));
  write_text(path() / "engines" / (name + ".json"), indented_json(body) + "\n");
  write_text(path() / "engines" / (name + ".plan"), plan);
  return path() / "engines" / (name + ".plan");
}

Session EngineFolder::load(LoadOptions options) const {
  options.backend = "tensorrt";
  return Session::load(path(), options);
}

std::string EngineFolder::refusal(LoadOptions options) const {
  return refusal_of([&] { load(std::move(options)); });
}
