#include "kernels.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <optional>

#include "onnxruntime.h"
#include "text.h"

// Of the kernels' sources as Python names them, from CMake; empty where the sources are not beside ours.
#ifndef MLPDEPLOY_CPU_SOURCES
#define MLPDEPLOY_CPU_SOURCES ""
#endif

namespace mlpdeploy {

namespace fs = std::filesystem;

namespace {

constexpr const char* library_name = "libmlpdeploy_cpu.so";

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

Kernels none(const std::string& why = "") { return {{}, why.empty() ? "none" : "none: " + why}; }

// As has_blocks in mlpdeploy/runtime/onnxruntime.py.
bool has_blocks(const Manifest& manifest, std::string_view role) {
  const Json* const passes = manifest.body.find("passes");
  if (!passes) return false;
  const auto text_is = [](const Json* value, std::string_view wanted) { return value && value->text == wanted; };
  return std::any_of(passes->items.begin(), passes->items.end(), [&](const Json& report) {
    const Json* const changed = report.find("changed");
    const bool did = changed && (changed->boolean || (changed->is(Json::Type::integer) && changed->text != "0"));
    const Json* const name = report.find("name");
    return did && name && name->text.rfind("form_", 0) == 0 && text_is(report.find("target"), role);
  });
}

// The folder where Python builds them; none for a user without a home.
std::optional<fs::path> cache() {
  if (const std::string named = variable("MLPDEPLOY_CACHE"); !named.empty()) return fs::path(named) / "cpu";
  if (const std::string user = variable("XDG_CACHE_HOME"); !user.empty()) return fs::path(user) / "mlpdeploy" / "cpu";
  const std::string home = variable("HOME");
  return home.empty() ? std::nullopt : std::optional<fs::path>(fs::path(home) / ".cache" / "mlpdeploy" / "cpu");
}

// The newest build of the very sources that this library was compiled beside; empty where there is none.
fs::path newest_build() {
  const std::string start = std::string(MLPDEPLOY_CPU_SOURCES) + "-";
  const auto folder = cache();
  if (!folder || start.size() == 1) return {};
  std::error_code error;
  fs::path newest;
  fs::file_time_type time;
  for (fs::directory_iterator entry(*folder, error), end; !error && entry != end; entry.increment(error)) {
    if (entry->path().filename().string().rfind(start, 0) != 0) continue;
    const fs::path library = entry->path() / library_name;
    std::error_code absent;
    const auto written = fs::last_write_time(library, absent);
    if (absent || (!newest.empty() && written <= time)) continue;
    newest = library;
    time = written;
  }
  return newest;
}

// What the library says that this processor runs; empty where that is nothing. It stays loaded: it keeps what it makes
// for ONNX Runtime as long as the process lives, and ONNX Runtime would unload it with its last session.
std::string name_of(const fs::path& library, std::string_view precision) {
  void* const handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) return "";
  const char* const question = precision == "bf16"   ? "mlpdeploy_cpu_bf16_kernels"
                               : precision == "int8" ? "mlpdeploy_cpu_int8_kernels"
                                                     : "mlpdeploy_cpu_kernels";
  const auto function = reinterpret_cast<const char* (*)()>(dlsym(handle, question));
  const char* const name = function ? function() : nullptr;
  return name ? name : "";
}

}  // namespace

Kernels find_kernels(const Manifest& manifest, std::string_view role) {
  if (!has_blocks(manifest, role)) return none();
  const std::string wanted = variable("MLPDEPLOY_NATIVE");
  if (wanted == "0") return none("MLPDEPLOY_NATIVE is 0");
  const std::vector<std::string> sets = {"avx512",      "avx2",    "portable",   "amx",     "avx512bf16",
                                         "avx512round", "amxint8", "avx512vnni", "avxvnni", "avx2int8"};
  if (!wanted.empty() && std::find(sets.begin(), sets.end(), wanted) == sets.end()) {
    throw Error(ErrorKind::usage, "MLPDEPLOY_NATIVE is " + repr(wanted),
                "0 or a set of kernels: " + closest(wanted, sets));
  }
  fs::path library = variable("MLPDEPLOY_CPU_LIBRARY");
  if (library.empty()) library = newest_build();
  if (library.empty()) return none("not built from these sources; run: mlpdeploy plugin build --cpu");
  // First: from now on it is never unloaded, and made only once.
  const std::string name = name_of(library, manifest.model.precision);
  if (const std::string refusal = OnnxModel::refusal(library); !refusal.empty()) {
    return none(library.string() + " cannot be loaded (" + refusal + ")");
  }
  return name.empty() ? none("not for this processor") : Kernels{library, name};
}

}  // namespace mlpdeploy
