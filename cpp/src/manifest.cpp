#include "manifest.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <limits>
#include <memory>
#include <system_error>

#include "sha256.h"
#include "text.h"

namespace mlpdeploy {

namespace {

namespace fs = std::filesystem;

constexpr const char* again = "export the model again";
constexpr const char* made_by = "a folder made by mlpdeploy export";

[[noreturn]] void refuse(const std::string& got, const std::string& wanted = "", const std::string& fix = again) {
  throw Error(ErrorKind::artifact, got, wanted, fix);
}

// A document that is JSON and unedited, but not what a manifest holds. Becomes "... is incomplete (why)".
struct Incomplete {
  std::string why;
};

std::string read_text(const fs::path& path) {
  const auto unreadable = [&](int number) {
    refuse(path.string() + " cannot be read (" + os_error(number, path.string()) + ")", "JSON");
  };
  errno = 0;
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
  if (!file) {
    const int number = errno;
    std::error_code ignored;
    const std::string folder = path.parent_path().string();
    if (number == ENOENT) {
      const bool there = fs::is_directory(path.parent_path(), ignored);
      refuse(folder + (there ? " has no manifest.json" : " does not exist"), made_by, "see: mlpdeploy export --help");
    }
    if (number == ENOTDIR) refuse(folder + " is a file", made_by, "");
    unreadable(number);
  }
  std::string text;
  char chunk[1 << 14];
  while (const std::size_t bytes = std::fread(chunk, 1, sizeof chunk, file.get())) text.append(chunk, bytes);
  if (std::ferror(file.get())) unreadable(errno);
  return text;
}

// ------------------------------------------------------------------ fields, with the words of Python's dataclasses

const Json& member(const Json& object, std::string_view name) {
  const Json* found = object.find(name);
  if (!found) throw Incomplete{repr(name)};
  return *found;
}

const Json& typed(const Json& value, Json::Type type, const std::string& what) {
  if (!value.is(type)) throw Incomplete{what};
  return value;
}

const std::string& string_of(const Json& object, std::string_view name) {
  return typed(member(object, name), Json::Type::string, std::string(name) + " is no string").text;
}

double number_of(const Json& value, const std::string& what) {
  if (value.is(Json::Type::number)) return value.number;
  if (!value.is(Json::Type::integer)) throw Incomplete{what + " is no number"};
  double number = 0;
  std::from_chars(value.text.data(), value.text.data() + value.text.size(), number);
  return number;
}

std::int64_t integer_of(const Json& value, const std::string& what, std::int64_t low, std::int64_t high) {
  std::int64_t number = 0;
  const auto* end = value.text.data() + value.text.size();
  const bool whole = value.is(Json::Type::integer) && std::from_chars(value.text.data(), end, number).ptr == end;
  if (!whole || number < low || number > high) throw Incomplete{what + " is no size"};
  return number;
}

void check_fields(const Json& value, const std::string& kind, const std::vector<std::string>& required,
                  const std::vector<std::string>& optional = {}) {
  typed(value, Json::Type::object, kind + " is no object");
  const auto holds = [](const std::vector<std::string>& names, const std::string& name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  for (const auto& [name, ignored] : value.members) {
    if (!holds(required, name) && !holds(optional, name)) {
      throw Incomplete{kind + ".__init__() got an unexpected keyword argument " + repr(name)};
    }
  }
  std::vector<std::string> missing;
  for (const auto& name : required) {
    if (!value.find(name)) missing.push_back(repr(name));
  }
  if (missing.empty()) return;
  const std::size_t count = missing.size();
  std::string names = missing.front();
  for (std::size_t i = 1; i < count; ++i) {
    names += (count > 2 ? ", " : " ") + std::string(i + 1 == count ? "and " : "") + missing[i];
  }
  throw Incomplete{kind + ".__init__() missing " + std::to_string(count) + " required positional argument" +
                   (count > 1 ? "s: " : ": ") + names};
}

DType dtype_of(const std::string& name) {
  for (const DType dtype :
       {DType::float32, DType::float64, DType::float16, DType::int64, DType::int32, DType::uint8, DType::int8}) {
    if (name == dtype_name(dtype)) return dtype;
  }
  throw Incomplete{"dtype " + repr(name) + " is not known"};
}

TensorSpec tensor_spec(const Json& value) {
  check_fields(value, "TensorSpec", {"name", "shape", "dtype", "layout"});
  TensorSpec spec;
  spec.name = string_of(value, "name");
  spec.dtype = dtype_of(string_of(value, "dtype"));
  spec.layout = string_of(value, "layout");
  for (const Json& size : typed(member(value, "shape"), Json::Type::array, "shape is no list").items) {
    Axis axis;
    if (size.is(Json::Type::string) && !size.text.empty()) {
      axis.symbol = size.text;
    } else {
      axis.size = integer_of(size, "an axis of " + spec.name, 1, std::numeric_limits<std::int32_t>::max());
    }
    spec.shape.push_back(std::move(axis));
  }
  if (spec.shape.empty() || spec.layout.size() != spec.shape.size()) throw Incomplete{spec.name + " has no axes"};
  return spec;
}

std::vector<TensorSpec> tensor_specs(const Json& body, std::string_view name) {
  std::vector<TensorSpec> specs;
  for (const Json& value : typed(member(body, name), Json::Type::array, std::string(name) + " is no list").items) {
    specs.push_back(tensor_spec(value));
  }
  return specs;
}

std::optional<Preprocessing> preprocessing_of(const Json& value) {
  if (value.is(Json::Type::null)) return std::nullopt;
  check_fields(value, "Preprocessing", {"height_width", "crop_pct", "interpolation", "mean", "std", "color_order"});
  const auto numbers = [&](std::string_view name) {
    std::vector<double> result;
    const std::string what(name);
    for (const Json& item : typed(member(value, name), Json::Type::array, what + " is no list").items) {
      result.push_back(number_of(item, what));
    }
    return result;
  };
  Preprocessing result;
  const Json& sides = typed(member(value, "height_width"), Json::Type::array, "height_width is no list");
  if (sides.items.size() != 2) throw Incomplete{"height_width has not two sizes"};
  constexpr std::int64_t largest = 1 << 15;
  result.height = static_cast<int>(integer_of(sides.items[0], "height", 1, largest));
  result.width = static_cast<int>(integer_of(sides.items[1], "width", 1, largest));
  result.crop_pct = number_of(member(value, "crop_pct"), "crop_pct");
  result.interpolation = string_of(value, "interpolation");
  result.mean = numbers("mean");
  result.std = numbers("std");
  result.color_order = string_of(value, "color_order");
  return result;
}

FileEntry file_entry(const std::string& name, const Json& value) {
  check_fields(value, "FileEntry", {"role", "sha256", "bytes"}, {"shift", "weights"});
  FileEntry entry;
  entry.name = name;
  entry.role = string_of(value, "role");
  entry.sha256 = string_of(value, "sha256");
  entry.bytes = integer_of(member(value, "bytes"), "bytes", 0, std::numeric_limits<std::int64_t>::max());
  if (value.find("shift")) entry.shift = string_of(value, "shift");
  if (value.find("weights")) entry.weights = string_of(value, "weights");
  return entry;
}

Manifest from_body(Json body) {
  Manifest manifest;
  manifest.inputs = tensor_specs(body, "inputs");
  manifest.outputs = tensor_specs(body, "outputs");
  manifest.preprocessing = preprocessing_of(member(body, "preprocessing"));
  for (const auto& [name, value] : typed(member(body, "files"), Json::Type::object, "files is no object").members) {
    manifest.files.push_back(file_entry(name, value));
  }
  for (const Json& label : typed(member(body, "labels"), Json::Type::array, "labels is no list").items) {
    manifest.labels.push_back(typed(label, Json::Type::string, "a label is no string").text);
  }
  member(body, "passes");
  const std::vector<std::string> optional = {"preprocessing", "labels", "files",  "passes", "verification",
                                             "quantization",  "tools",  "format", "version"};
  check_fields(body, "Manifest", {"model", "inputs", "outputs", "opset", "precision"}, optional);
  const auto canonical = [](const FileEntry& entry) { return entry.role == "canonical"; };
  if (std::none_of(manifest.files.begin(), manifest.files.end(), canonical)) throw Incomplete{"no canonical model"};
  const Json& model = typed(member(body, "model"), Json::Type::object, "model is no object");
  manifest.model.name = string_of(model, "name");
  manifest.model.source = string_of(model, "source");
  manifest.model.precision = string_of(body, "precision");
  if (const Json* random = model.find("random_weights")) manifest.model.random_weights = random->boolean;
  manifest.body = std::move(body);
  return manifest;
}

// The version as Python's str() prints it.
std::string version_text(const Json* version) {
  if (!version || version->is(Json::Type::null)) return "None";
  if (version->is(Json::Type::boolean)) return version->boolean ? "True" : "False";
  return version->is(Json::Type::string) ? version->text : canonical_json(*version);
}

bool is_one(const Json* version) {
  if (!version) return false;
  return (version->is(Json::Type::integer) && version->text == "1") ||
         (version->is(Json::Type::number) && version->number == 1.0) ||
         (version->is(Json::Type::boolean) && version->boolean);
}

fs::path checked_file(const fs::path& folder, const Manifest& manifest, const std::string& name, bool with_weights) {
  const FileEntry* entry = manifest.file(name);
  if (!entry || name.empty() || name.find('/') != std::string::npos || name == "." || name == "..") {
    refuse("the manifest has no file " + name + " in the artifact");
  }
  const fs::path path = folder / name;
  std::error_code failed;
  if (!fs::is_regular_file(path, failed)) {
    refuse(path.string() + " is missing", "", "copy the whole folder, or export the model again");
  }
  const auto size = static_cast<std::int64_t>(fs::file_size(path, failed));
  if (size != entry->bytes) {
    const char* what = size < entry->bytes ? "truncated" : "not the file that was exported";
    refuse(path.string() + " is " + what + ": " + std::to_string(size) + " bytes", std::to_string(entry->bytes),
           "copy it again, or export the model again");
  }
  std::string digest;
  try {
    digest = sha256_of_file(path);
  } catch (const std::runtime_error& error) {
    refuse(path.string() + " cannot be read (" + error.what() + ")", "", "make it readable");
  }
  if (digest != entry->sha256) {
    refuse(path.string() + " was changed after the export: its SHA-256 differs from the manifest's", "",
           "copy it again, or export the model again");
  }
  if (with_weights && !entry->weights.empty()) checked_file(folder, manifest, entry->weights, false);
  return path;
}

}  // namespace

const FileEntry* Manifest::file(std::string_view name) const {
  for (const FileEntry& entry : files) {
    if (entry.name == name) return &entry;
  }
  return nullptr;
}

const FileEntry& Manifest::canonical() const {
  // Its presence was checked when the manifest was read.
  return *std::find_if(files.begin(), files.end(), [](const FileEntry& entry) { return entry.role == "canonical"; });
}

const FileEntry& Manifest::file_for(std::string_view role) const {
  const FileEntry* wanted = nullptr;
  for (const FileEntry& entry : files) {
    if (entry.is_model() && entry.role == role) wanted = &entry;
  }
  if (!wanted && model.precision != "fp32") {
    refuse(
        "this artifact has no " + model.precision + " model for " + std::string(role), "",
        "run: mlpdeploy quantize FLOAT32_ARTIFACT --precision " + model.precision + " --target " + std::string(role));
  }
  return wanted ? *wanted : canonical();
}

std::vector<std::string> Manifest::roles() const {
  std::vector<std::string> found;
  for (const FileEntry& entry : files) {
    if (entry.is_model() && std::find(found.begin(), found.end(), entry.role) == found.end()) {
      found.push_back(entry.role);
    }
  }
  return found;
}

Manifest manifest_from(std::string_view text, const std::string& path) {
  Json body;
  try {
    body = parse_json(text);
  } catch (const std::runtime_error& error) {
    refuse(path + " cannot be read (" + error.what() + ")", "JSON");
  }
  const Json* format = body.find("format");
  if (!format || !format->is(Json::Type::string) || format->text != "mlpdeploy-artifact") {
    refuse(path + " is no mlpdeploy manifest", "format mlpdeploy-artifact");
  }
  const Json* version = body.find("version");
  if (!is_one(version)) {
    refuse(path + " has version " + version_text(version), "version 1", "export the model again with this version");
  }
  std::string sum;
  if (const Json* found = body.find("sha256"); found && found->is(Json::Type::string)) sum = found->text;
  auto& members = body.members;
  members.erase(std::remove_if(members.begin(), members.end(), [](auto& one) { return one.first == "sha256"; }),
                members.end());
  if (sum != sha256_of(canonical_json(body))) {
    refuse(path + " was edited after it was written: its checksum differs");
  }
  try {
    return from_body(std::move(body));
  } catch (const Incomplete& incomplete) {
    refuse(path + " is incomplete (" + incomplete.why + ")");
  }
}

Manifest read_manifest(const fs::path& folder) {
  const fs::path path = folder / "manifest.json";
  return manifest_from(read_text(path), path.string());
}

fs::path checked_file(const fs::path& folder, const Manifest& manifest, const std::string& name) {
  return checked_file(folder, manifest, name, true);
}

}  // namespace mlpdeploy
