#include "choice.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstdlib>
#include <sstream>
#include <system_error>
#include <tuple>

#include "../sha256.h"
#include "../text.h"
#include "mlpdeploy/session.h"

namespace mlpdeploy {

namespace {

namespace fs = std::filesystem;

constexpr const char* target = "tensorrt";
constexpr int ampere = 8;
constexpr const char* library_variable = "MLPDEPLOY_PLUGIN_LIBRARY";
constexpr const char* library_name = "libmlpdeploy_plugins.so";

std::vector<int> numbers_of(const std::string& version) {
  std::vector<int> numbers;
  const char *at = version.data(), *end = at + version.size();
  while (at != end) {
    int number = 0;
    const auto read = std::from_chars(at, end, number);
    if (read.ec == std::errc()) numbers.push_back(number);
    at = read.ec == std::errc() ? read.ptr : at + 1;
  }
  return numbers;
}

// Whether a version runs an engine: its own does, and of a version-compatible one a later one of the same major.
// Python's packages and the library tell more or fewer numbers of the same version (10.7.0.post1 and 10.7.0.23): those
// that both tell are compared.
bool version_fits(const Sidecar& engine, const std::string& version) {
  if (engine.version == version) return true;
  auto built = numbers_of(engine.version.substr(0, engine.version.find(".post")));
  auto here = numbers_of(version);
  const auto common = std::min(built.size(), here.size());
  built.resize(common);
  here.resize(common);
  if (common > 0 && engine.flag("version_compatible")) return built.front() == here.front() && built <= here;
  return common >= 3 && built == here;
}

std::vector<std::string> differences_of(const Sidecar& engine, const Manifest& manifest, const Machine& machine) {
  std::vector<std::string> found;
  if (!version_fits(engine, machine.tensorrt)) {
    found.push_back("it is for TensorRT " + engine.version + ", here is " + machine.tensorrt);
  }
  if (engine.flag("hardware_compatible")) {
    if (machine.major < ampere) found.push_back("it is for GPUs of Ampere and later, " + machine.gpu + " is older");
  } else if (engine.gpu != machine.gpu ||
             engine.compute_capabilities != std::vector<std::string>{machine.compute_capability}) {
    found.push_back("it is for " + engine.gpu + " (" + join(engine.compute_capabilities, " and ") + "), here is " +
                    machine.gpu + " (" + machine.compute_capability + ")");
  }
  if (engine.source_sha256 != manifest.canonical().sha256) {
    found.push_back("it was built from another model than the artifact holds now");
  }
  if (engine.precision != manifest.model.precision) {
    found.push_back("it is " + engine.precision + ", the artifact " + manifest.model.precision);
  }
  if (engine.flag("strip")) found.push_back("it was built without weights (--strip), which only other programs put in");
  return found;
}

// A word for the shell, as Python's shlex.quote writes it.
std::string quoted(const std::string& word) {
  const auto safe = [](unsigned char c) {
    return std::isalnum(c) || std::string_view("@%+=:,./-_").find(static_cast<char>(c)) != std::string_view::npos;
  };
  if (!word.empty() && std::all_of(word.begin(), word.end(), safe)) return word;
  std::string text = "'";
  for (const char c : word) text += c == '\'' ? std::string("'\"'\"'") : std::string(1, c);
  return text + "'";
}

// By what CUDA_VISIBLE_DEVICES names a GPU that has this index here: it may be set already.
std::string name_of_gpu(int index) {
  const char* const set = std::getenv("CUDA_VISIBLE_DEVICES");
  std::istringstream named(set ? set : "");
  std::string name;
  for (int i = 0; std::getline(named, name, ','); ++i) {
    const auto first = name.find_first_not_of(' '), last = name.find_last_not_of(' ');
    if (i == index) return first == std::string::npos ? "" : name.substr(first, last - first + 1);
  }
  return std::to_string(index);
}

// The command that builds an engine for this GPU of the machine, with the shapes of another one.
std::string build_command(const fs::path& folder, int gpu, const Sidecar* like) {
  std::vector<std::string> words = {"mlpdeploy", "build", quoted(folder.string())};
  // TensorRT builds for the first GPU that it may use.
  if (gpu > 0) words.insert(words.begin(), quoted("CUDA_VISIBLE_DEVICES=" + name_of_gpu(gpu)));
  if (!like) return join(words, " ");
  const auto count = like->profiles.items.size();
  for (std::size_t profile = 0; profile < count; ++profile) {
    std::vector<std::string> rows;
    for (std::size_t which = 0; which < 3; ++which) rows.push_back(std::to_string(like->shape(profile, which)[0]));
    words.insert(words.end(), {"--profile", join(rows, ":")});
  }
  if (count == 0) return join(words, " ");
  std::vector<std::string> sizes;
  for (std::size_t which = 0; which < 3; ++which) {
    std::vector<std::string> size;
    const auto shape = like->shape(0, which);
    for (std::size_t axis = 2; axis < shape.size(); ++axis) size.push_back(std::to_string(shape[axis]));
    sizes.push_back(join(size, "x"));
  }
  if (sizes[0] != sizes[1] || sizes[1] != sizes[2]) words.insert(words.end(), {"--image-size", join(sizes, ":")});
  return join(words, " ");
}

std::tuple<bool, std::int64_t, bool, std::string> preference(const Sidecar& engine) {
  std::int64_t rows = 0;
  for (std::size_t i = 0; i < engine.profiles.items.size(); ++i) rows = std::max(rows, engine.shape(i, 2)[0]);
  return {engine.measured, rows, !engine.plugin_sha256.empty(), engine.name};
}

// Where a library may be, apart from the one that is named.
std::vector<fs::path> libraries(const fs::path& folder) {
  const auto variable = [](const char* name) { return fs::path(std::getenv(name) ? std::getenv(name) : ""); };
  fs::path cache = variable("MLPDEPLOY_CACHE");
  if (cache.empty()) {
    cache = variable("XDG_CACHE_HOME");
    cache = (cache.empty() ? variable("HOME") / ".cache" : cache) / "mlpdeploy";
  }
  std::vector<fs::path> found;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(cache / "plugins", none)) {
    // A folder with a dot is a build that has not finished.
    if (entry.path().filename().string()[0] != '.') found.push_back(entry.path() / library_name);
  }
  found.push_back(folder / library_name);
  const auto missing = [](const fs::path& path) {
    std::error_code ignored;
    return !fs::is_regular_file(path, ignored);
  };
  found.erase(std::remove_if(found.begin(), found.end(), missing), found.end());
  std::sort(found.begin(), found.end());
  return found;
}

bool plugin_is_here(const fs::path& folder, const Sidecar& engine) {
  try {
    plugin_for(folder, engine);
    return true;
  } catch (const Error&) {
    return false;
  }
}

}  // namespace

void check_targets(const fs::path& folder, int gpu) {
  const auto engines = engines_of(folder);
  const auto ours = [](const Sidecar& engine) { return engine.target == target; };
  if (engines.empty() || std::any_of(engines.begin(), engines.end(), ours)) return;
  throw Error(ErrorKind::backend,
              folder.string() + " has an engine for " + engines.front().target + ", which only Python's session runs",
              "an engine for tensorrt", "run: " + build_command(folder, gpu, nullptr));
}

Sidecar choose_engine(const fs::path& folder, const Manifest& manifest, const Machine& machine) {
  auto engines = engines_of(folder);
  const auto foreign = [](const Sidecar& engine) { return engine.target != target; };
  engines.erase(std::remove_if(engines.begin(), engines.end(), foreign), engines.end());
  if (engines.empty()) {
    throw Error(ErrorKind::backend, folder.string() + " has no engine for tensorrt yet", "",
                "run: " + build_command(folder, machine.index, nullptr));
  }
  // One whose plugin library is not here is taken only where there is no other, so that the error names the library.
  const auto ranked = [&](const Sidecar& engine) {
    return std::pair(plugin_is_here(folder, engine), preference(engine));
  };
  const Sidecar *best = nullptr, *nearest = nullptr;
  std::vector<std::string> least;
  for (const Sidecar& engine : engines) {
    const auto differences = differences_of(engine, manifest, machine);
    if (differences.empty() && (!best || ranked(engine) > ranked(*best))) best = &engine;
    if (!nearest || differences.size() < least.size()) nearest = &engine, least = differences;
  }
  if (best) return *best;
  const std::string others =
      engines.size() > 1 ? " (the nearest of " + std::to_string(engines.size()) + ")" : std::string();
  throw Error(ErrorKind::backend,
              (folder / engine_folder / nearest->file).string() + others + " does not fit: " + join(least, "; "), "",
              "run: " + build_command(folder, machine.index, nearest));
}

std::string read_engine(const fs::path& folder, const Sidecar& sidecar) {
  const fs::path path = folder / engine_folder / sidecar.file;
  const std::string again = "run: mlpdeploy build " + folder.string() + " --force with the same options";
  std::error_code failed;
  if (!fs::is_regular_file(path, failed)) throw Error(ErrorKind::artifact, path.string() + " is missing", "", again);
  std::string plan;
  try {
    plan = bytes_of_file(path);
  } catch (const std::system_error& error) {
    throw Error(ErrorKind::artifact,
                path.string() + " cannot be read (" + os_error(error.code().value(), path.string()) + ")", "",
                "make it readable");
  }
  if (static_cast<std::int64_t>(plan.size()) != sidecar.bytes) {
    throw Error(ErrorKind::artifact, path.string() + " is cut off: it has " + std::to_string(plan.size()) + " bytes",
                std::to_string(sidecar.bytes), again);
  }
  if (sha256_of(plan) != sidecar.sha256) {
    throw Error(ErrorKind::artifact, path.string() + " was changed: its checksum differs", "", again);
  }
  return plan;
}

fs::path plugin_for(const fs::path& folder, const Sidecar& sidecar) {
  if (sidecar.plugin_sha256.empty()) return {};
  const std::string needs = sidecar.file + " needs the plugin library: ";
  std::vector<fs::path> candidates;
  if (const char* named = std::getenv(library_variable); named && *named) {
    std::error_code failed;
    if (!fs::is_regular_file(named, failed)) {
      throw Error(ErrorKind::backend, needs + library_variable + " is " + named + ", and there is no such file",
                  "the path of a plugin library");
    }
    candidates.push_back(fs::canonical(named));
  } else {
    candidates = libraries(folder);
  }
  for (const fs::path& path : candidates) {
    try {
      if (sha256_of_file(path) == sidecar.plugin_sha256) return path;
    } catch (const std::runtime_error&) {
      continue;  // one that cannot be read is none
    }
  }
  if (candidates.empty()) {
    throw Error(ErrorKind::backend, needs + "the CUDA plugin is not built", "",
                std::string("run: mlpdeploy plugin build, or name a library built elsewhere in ") + library_variable);
  }
  throw Error(ErrorKind::backend,
              sidecar.file + " was built with another plugin library than " + candidates.back().string(), "",
              std::string("build the engine again with mlpdeploy build, or name its library in ") + library_variable);
}

}  // namespace mlpdeploy
