#include "sidecar.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <memory>
#include <system_error>

#include "../sha256.h"
#include "../text.h"
#include "mlpdeploy/session.h"

namespace mlpdeploy {

namespace {

namespace fs = std::filesystem;

constexpr const char* format = "mlpdeploy-engine";
constexpr const char* again = "build the engine again with mlpdeploy build --force";

// A document that is unedited, but not what a sidecar holds.
struct Incomplete {
  std::string why;
};

const Json& member(const Json& object, const char* name, Json::Type type) {
  const Json* found = object.find(name);
  if (!found || !found->is(type)) throw Incomplete{repr(name)};
  return *found;
}

std::string text_of(const Json& object, const char* name) { return member(object, name, Json::Type::string).text; }

std::int64_t integer_of(const Json& value) {
  std::int64_t number = 0;
  const char* end = value.text.data() + value.text.size();
  if (!value.is(Json::Type::integer) || std::from_chars(value.text.data(), end, number).ptr != end) {
    throw Incomplete{"no size"};
  }
  return number;
}

// [min, opt, max], each a list of as many sizes.
void check_shapes(const Json& shapes) {
  if (!shapes.is(Json::Type::array) || shapes.items.size() != 3) throw Incomplete{"'profiles'"};
  for (const Json& shape : shapes.items) {
    if (!shape.is(Json::Type::array) || shape.items.empty()) throw Incomplete{"'profiles'"};
    for (const Json& size : shape.items) integer_of(size);
  }
}

Sidecar from_body(const Json& body) {
  Sidecar sidecar;
  sidecar.file = text_of(body, "file");
  // A name from a file must not lead out of the folder.
  if (sidecar.file.empty() || sidecar.file.find('/') != std::string::npos) throw Incomplete{"'file'"};
  sidecar.sha256 = text_of(body, "sha256");
  sidecar.bytes = integer_of(member(body, "bytes", Json::Type::integer));
  if (const Json* measured = body.find("measured_ms")) sidecar.measured = !measured->members.empty();
  const Json& mark = member(body, "fingerprint", Json::Type::object);
  sidecar.name = sha256_of(canonical_json(mark)).substr(0, 16);
  sidecar.target = text_of(mark, "target");
  sidecar.version = text_of(mark, "version");
  sidecar.gpu = text_of(mark, "gpu");
  sidecar.precision = text_of(mark, "precision");
  sidecar.plugin_sha256 = text_of(mark, "plugin_sha256");
  sidecar.source_sha256 = text_of(mark, "source_sha256");
  for (const Json& one : member(mark, "compute_capabilities", Json::Type::array).items) {
    if (!one.is(Json::Type::string)) throw Incomplete{"'compute_capabilities'"};
    sidecar.compute_capabilities.push_back(one.text);
  }
  sidecar.flags = member(mark, "flags", Json::Type::object);
  sidecar.profiles = member(mark, "profiles", Json::Type::array);
  for (const Json& profile : sidecar.profiles.items) {
    if (!profile.is(Json::Type::object) || profile.members.empty()) throw Incomplete{"'profiles'"};
    for (const auto& [name, shapes] : profile.members) check_shapes(shapes);
  }
  return sidecar;
}

}  // namespace

bool Sidecar::flag(const char* option) const {
  const Json* value = flags.find(option);
  if (!value) return false;
  if (value->is(Json::Type::boolean)) return value->boolean;
  if (value->is(Json::Type::integer)) return value->text != "0";
  return !value->is(Json::Type::null) && !(value->is(Json::Type::string) && value->text.empty());
}

std::vector<std::int64_t> Sidecar::shape(std::size_t profile, std::size_t which) const {
  std::vector<std::int64_t> sizes;
  for (const Json& size : profiles.items[profile].members.front().second.items[which].items) {
    sizes.push_back(integer_of(size));
  }
  return sizes;
}

std::string bytes_of_file(const fs::path& path) {
  errno = 0;
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
  std::string bytes;
  if (file) {
    bytes.reserve(fs::file_size(path));
    std::unique_ptr<char[]> chunk(new char[1 << 20]);
    while (const std::size_t count = std::fread(chunk.get(), 1, 1 << 20, file.get())) bytes.append(chunk.get(), count);
  }
  if (!file || std::ferror(file.get())) throw std::system_error(errno, std::generic_category(), path.string());
  return bytes;
}

Sidecar read_sidecar(const fs::path& path) {
  Json body;
  try {
    body = parse_json(bytes_of_file(path));
  } catch (const std::system_error& error) {
    throw Error(ErrorKind::artifact,
                path.string() + " cannot be read (" + os_error(error.code().value(), path.string()) + ")", "", again);
  } catch (const std::runtime_error& error) {
    throw Error(ErrorKind::artifact, path.string() + " cannot be read (" + error.what() + ")", "", again);
  }
  const Json *kind = body.find("format"), *version = body.find("version");
  if (!kind || kind->text != format || !version || version->text != "1") {
    throw Error(ErrorKind::artifact, path.string() + " does not describe an engine", std::string(format) + " version 1",
                again);
  }
  const Json* checksum = body.find("checksum");
  const std::string sum = checksum ? checksum->text : "";
  auto& members = body.members;
  members.erase(std::remove_if(members.begin(), members.end(), [](auto& one) { return one.first == "checksum"; }),
                members.end());
  if (sum != sha256_of(canonical_json(body))) {
    throw Error(ErrorKind::artifact, path.string() + " was edited after it was written: its checksum differs", "",
                again);
  }
  try {
    return from_body(body);
  } catch (const Incomplete& incomplete) {
    throw Error(ErrorKind::artifact, path.string() + " is incomplete (" + incomplete.why + ")", "", again);
  }
}

std::vector<Sidecar> engines_of(const fs::path& folder) {
  std::vector<fs::path> paths;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(folder / engine_folder, none)) {
    if (entry.path().extension() == ".json") paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  std::vector<Sidecar> engines;
  for (const auto& path : paths) engines.push_back(read_sidecar(path));
  return engines;
}

}  // namespace mlpdeploy
