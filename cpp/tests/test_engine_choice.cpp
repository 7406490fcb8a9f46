// Which engine and which plugin library are taken, and what is said where none fits: the words of Python's runtime.
#include <doctest/doctest.h>

#include <cstdlib>
#include <string>

#include "engines.h"
#include "fake_gpu.h"
#include "sha256.h"

using namespace mlpdeploy;
namespace fs = std::filesystem;

namespace {

// A fingerprint's field has another value.
EngineRequest with(const char* field, Json value) {
  EngineRequest request;
  request.edit = [field, value](Json& mark) {
    for (auto& [name, known] : mark.members) {
      if (name == field) known = value;
    }
  };
  return request;
}

Json flag(const char* name) {
  Json flags = Json::object();
  flags.set(name, true);
  return flags;
}

std::string command(const EngineFolder& folder, const std::string& more) {
  return "run: mlpdeploy build " + folder.path().string() + more;
}

// An environment variable, within a block.
class Variable {
 public:
  Variable(const char* name, const std::string& value) : name_(name) { setenv(name, value.c_str(), 1); }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;
  ~Variable() { unsetenv(name_); }

 private:
  const char* name_;
};

}  // namespace

TEST_CASE("no engine yet") {
  const EngineFolder folder("asmlp");
  CHECK(folder.refusal() == folder.path().string() + " has no engine for tensorrt yet; " + command(folder, ""));
}

TEST_CASE("an engine of TensorRT-RTX is refused by its name, and passed over beside one of TensorRT's") {
  const EngineFolder folder("asmlp");
  folder.add(with("target", "tensorrt-rtx"));
  CHECK(folder.refusal() == folder.path().string() +
                                " has an engine for tensorrt-rtx, which only Python's session runs; wanted an engine "
                                "for tensorrt; " +
                                command(folder, ""));
  folder.add();
  CHECK(folder.refusal().empty());
}

TEST_CASE("an engine that does not fit says what differs and what to type") {
  Json other = Json::array();
  other.add("7.5");
  const std::string here = fake_version();
  for (const auto& [request, why] :
       {std::pair(with("version", "9.9.9.9"), "it is for TensorRT 9.9.9.9, here is " + here),
        std::pair(with("gpu", "Other GPU"), std::string("it is for Other GPU (8.9), here is Test GPU (8.9)")),
        std::pair(with("compute_capabilities", other), std::string("it is for Test GPU (7.5), here is Test GPU (8.9)")),
        std::pair(with("source_sha256", "0"),
                  std::string("it was built from another model than the artifact holds now")),
        std::pair(with("precision", "fp16"), std::string("it is fp16, the artifact fp32")),
        std::pair(with("flags", flag("strip")),
                  std::string("it was built without weights (--strip), which only other programs put in"))}) {
    const EngineFolder folder("asmlp");
    const auto engine = folder.add(request);
    CHECK(folder.refusal() ==
          engine.string() + " does not fit: " + why + "; " + command(folder, " --profile 1:1:2 --profile 4:8:8"));
  }
}

TEST_CASE("the nearest of several is named, and the one that fits is taken") {
  const EngineFolder folder("features");
  EngineRequest far = with("version", "9.9.9.9");
  const auto edit = far.edit;
  far.edit = [&](Json& mark) {
    edit(mark);
    with("gpu", "Other GPU").edit(mark);
  };
  far.sides = {32, 64};
  folder.add(far);
  EngineRequest near = with("gpu", "Other GPU");
  near.sides = {32, 64};
  const auto engine = folder.add(near);
  CHECK(folder.refusal() ==
        engine.string() + " (the nearest of 2) does not fit: it is for Other GPU (8.9), here is Test GPU (8.9); " +
            command(folder, " --profile 1:1:2 --profile 4:8:8 --image-size 32x32:32x32:64x64"));
  EngineRequest fits;
  fits.sides = {32, 64};
  fits.profiles = {{1, 1, 1}};
  folder.add(fits);
  CHECK(folder.load().max_batch() == 1);
  fits.profiles = {{1, 4, 4}};
  folder.add(fits);
  CHECK(folder.load().max_batch() == 4);
}

TEST_CASE("hardware-compatible and version-compatible engines run elsewhere") {
  const EngineFolder folder("asmlp");
  EngineRequest request = with("flags", flag("hardware_compatible"));
  const auto edit = request.edit;
  request.edit = [&](Json& mark) {
    edit(mark);
    with("gpu", "Other GPU").edit(mark);
  };
  folder.add(request);
  CHECK(folder.refusal().empty());
  fake_gpu()->major = 7;
  CHECK(folder.refusal().find("it is for GPUs of Ampere and later, Test GPU is older") != std::string::npos);
  fake_gpu()->major = 8;

  const EngineFolder older("asmlp");
  EngineRequest version = with("flags", flag("version_compatible"));
  const auto flags = version.edit;
  const std::string major = fake_version().substr(0, fake_version().find('.'));
  version.edit = [&](Json& mark) {
    flags(mark);
    with("version", major + ".0.0.1").edit(mark);
  };
  older.add(version);
  CHECK(older.refusal().empty());
}

TEST_CASE("the same version is told with more or fewer numbers") {
  const std::string here = fake_version();
  const auto dots = std::count(here.begin(), here.end(), '.');
  const std::string three = dots < 3 ? here : here.substr(0, here.rfind('.'));
  for (const std::string& told : {here + ".post1", three + ".post1", three, three + ".7.post1"}) {
    const bool other_build = dots == 3 && told == three + ".7.post1" && here != three + ".7";
    const EngineFolder folder("asmlp");
    folder.add(with("version", told));
    CHECK_MESSAGE(folder.refusal().empty() != other_build, told);
  }
  const EngineFolder newer("asmlp");
  newer.add(with("version", three.substr(0, three.rfind('.')) + ".99.post1"));
  CHECK(newer.refusal().find("it is for TensorRT") != std::string::npos);
}

TEST_CASE("damaged folders are refused before anything is loaded") {
  const std::string again = "; build the engine again with mlpdeploy build --force";
  const EngineFolder folder("asmlp");
  const auto engine = folder.add();
  auto sidecar = engine;
  sidecar.replace_extension(".json");
  const std::string fix = "; " + command(folder, " --force with the same options");

  const auto whole = fs::file_size(engine);
  fs::resize_file(engine, whole - 1);
  CHECK(folder.refusal() == engine.string() + " is cut off: it has " + std::to_string(whole - 1) + " bytes; wanted " +
                                std::to_string(whole) + fix);
  write_text(engine, std::string(whole, 'x'));
  CHECK(folder.refusal() == engine.string() + " was changed: its checksum differs" + fix);
  fs::remove(engine);
  CHECK(folder.refusal() == engine.string() + " is missing" + fix);

  write_text(sidecar, "{\"format\": \"mlpdeploy-engine\", \"version\": 1}");
  CHECK(folder.refusal() == sidecar.string() + " was edited after it was written: its checksum differs" + again);
  write_text(sidecar, "{}");
  CHECK(folder.refusal() ==
        sidecar.string() + " does not describe an engine; wanted mlpdeploy-engine version 1" + again);
  write_text(sidecar, "{");
  CHECK(folder.refusal().find(sidecar.string() + " cannot be read (") == 0);
}

TEST_CASE("an engine that TensorRT refuses, or with other tensors, is refused") {
  const std::string name = "TensorRT " + fake_version();
  const EngineFolder folder("asmlp");
  EngineRequest request;
  request.words = {"plugin"};
  const auto engine = folder.add(request);
  CHECK(folder.refusal() == name + " cannot load " + engine.string() +
                                ": Cannot find plugin: AxialShift, version: 1, namespace: mlpdeploy; run: mlpdeploy "
                                "doctor; if it finds nothing, build the engine again with mlpdeploy build --force");
  const EngineFolder more("asmlp");
  request.words = {"output surplus -1 3"};
  const auto other = more.add(request);
  CHECK(more.refusal() == other.string() +
                              " has other inputs and outputs than the manifest; build the engine again "
                              "with mlpdeploy build --force");
  fake_gpu()->failing = "runtime";
  CHECK(folder.refusal() == name + " cannot start: CUDA initialization failure with error: 35; run: mlpdeploy doctor");
}

TEST_CASE("an engine that needs no library runs where there is none") {
  const EngineFolder folder("asmlp");
  const std::string library = "plugin";
  EngineRequest request = with("plugin_sha256", sha256_of(library));
  request.words = {"plugin"};
  request.profiles = {{1, 8, 32}};
  folder.add(request);
  EngineRequest native;
  native.profiles = {{1, 1, 1}};
  folder.add(native);
  const Variable cache("MLPDEPLOY_CACHE", (folder.path() / "cache").string());
  CHECK(folder.load().max_batch() == 1);
  write_text(folder.path() / "libmlpdeploy_plugins.so", library);
  CHECK(folder.load().max_batch() == 32);
}

TEST_CASE("the plugin library is found by its checksum, and loaded before the engine") {
  const EngineFolder folder("asmlp");
  const std::string library = "plugin";  // what the fake registry takes for one
  EngineRequest request = with("plugin_sha256", sha256_of(library));
  request.words = {"plugin"};
  const std::string file = folder.add(request).filename().string();
  const Variable cache("MLPDEPLOY_CACHE", (folder.path() / "cache").string());
  const fs::path built = folder.path() / "cache" / "plugins" / "one";
  CHECK(folder.refusal() ==
        file +
            " needs the plugin library: the CUDA plugin is not built; run: mlpdeploy plugin build, or name a library "
            "built elsewhere in MLPDEPLOY_PLUGIN_LIBRARY");
  fs::create_directories(built);
  write_text(built / "libmlpdeploy_plugins.so", "another");
  const std::string another = " was built with another plugin library than ";
  const std::string fix =
      "; build the engine again with mlpdeploy build, or name its library in MLPDEPLOY_PLUGIN_LIBRARY";
  CHECK(folder.refusal() == file + another + (built / "libmlpdeploy_plugins.so").string() + fix);

  SUBCASE("in the cache") { write_text(built / "libmlpdeploy_plugins.so", library); }
  SUBCASE("beside the artifact") { write_text(folder.path() / "libmlpdeploy_plugins.so", library); }
  CHECK(folder.refusal().empty());

  const Variable named("MLPDEPLOY_PLUGIN_LIBRARY", (folder.path() / "mine.so").string());
  CHECK(folder.refusal() == file + " needs the plugin library: MLPDEPLOY_PLUGIN_LIBRARY is " +
                                (folder.path() / "mine.so").string() +
                                ", and there is no such file; wanted the path of a plugin library");
  write_text(folder.path() / "mine.so", "another");
  CHECK(folder.refusal() == file + another + fs::canonical(folder.path() / "mine.so").string() + fix);
  write_text(folder.path() / "mine.so", library);
  CHECK(folder.refusal().empty());
}

TEST_CASE("devices and roles that there are not") {
  const EngineFolder folder("asmlp");
  folder.add();
  const auto refusal = [&](const char* device, const char* role = "") {
    LoadOptions options;
    options.device = device;
    options.role = role;
    return folder.refusal(options);
  };
  CHECK(refusal("cuda:0").empty());
  CHECK(refusal("cpu") == "device cpu on the backend tensorrt; wanted cuda; leave the device out");
  CHECK(refusal("cuda:x") == "device 'cuda:x'; wanted cuda, or cuda:1 for the second GPU");
  CHECK(refusal("cuda:1").find("the NVIDIA driver finds no GPU 1 (CUDA error 0, 1 GPUs); wanted a GPU for the target "
                               "tensorrt") == 0);
  CHECK(refusal("", "canonical").find("the file for canonical on tensorrt") == 0);
  fake_gpu()->count = 0;
  CHECK(folder.refusal().find("the NVIDIA driver finds no GPU 0 (CUDA error 100, 0 GPUs)") == 0);
  fake_gpu()->count = 1;
}
