#include <sched.h>
#include <sys/utsname.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <numeric>
#include <random>
#include <sstream>

#include "commands.h"
#include "json.h"

namespace {

using mlpdeploy::Json;
using Clock = std::chrono::steady_clock;

// As in mlpdeploy/bench/measure.py: a turn is one timed run after at least one, and at least 20 ms, that are not timed.
constexpr int warmup = 2, min_runs = 10;
constexpr std::chrono::milliseconds settle(20);
constexpr const char* ours = "mlpdeploy-cpp";

struct Timing {
  int batch = 0;
  std::vector<double> times_ms;  // sorted

  double percentile(double percent) const {
    const double position = static_cast<double>(times_ms.size() - 1) * percent / 100;
    const auto below = static_cast<std::size_t>(position);
    const auto above = std::min(below + 1, times_ms.size() - 1);
    return times_ms[below] + (times_ms[above] - times_ms[below]) * (position - static_cast<double>(below));
  }

  double images_per_s() const { return batch * 1000 / percentile(50); }

  Json json() const {
    Json value = Json::object();
    value.set("name", ours);
    value.set("batch", batch);
    value.set("runs", static_cast<int>(times_ms.size()));
    for (const int percent : {50, 95, 99}) value.set("p" + std::to_string(percent) + "_ms", percentile(percent));
    value.set("min_ms", times_ms.front());
    value.set("mean_ms", std::accumulate(times_ms.begin(), times_ms.end(), 0.0) / static_cast<double>(times_ms.size()));
    value.set("images_per_s", images_per_s());
    value.set("time_over_baseline", 1.0);
    return value;
  }
};

struct Plan {
  std::vector<int> batches;
  double seconds = 0;
  int height = 0, width = 0;
};

Timing measure(const mlpdeploy::Session& session, const Plan& plan, int batch) {
  const auto& input = session.inputs().front();
  std::vector<std::int64_t> shape;
  std::size_t count = 1;
  for (std::size_t axis = 0; axis < input.shape.size(); ++axis) {
    const int open = input.layout[axis] == 'H' ? plan.height : plan.width;
    shape.push_back(axis == 0 ? batch : input.shape[axis].fixed() ? input.shape[axis].size : open);
    count *= static_cast<std::size_t>(shape.back());
  }
  std::mt19937 generator(0);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(generator);
  const std::vector<mlpdeploy::TensorView> feeds = {
      {input.name, mlpdeploy::DType::float32, shape.data(), shape.size(), values.data()}};
  for (int i = 0; i < warmup; ++i) session.run(feeds);
  Timing timing;
  timing.batch = batch;
  const auto began = Clock::now();
  while (timing.times_ms.size() < min_runs ||
         std::chrono::duration<double>(Clock::now() - began).count() < plan.seconds) {
    const auto entered = Clock::now();
    do {
      session.run(feeds);
    } while (Clock::now() - entered < settle);
    const auto start = Clock::now();
    session.run(feeds);
    timing.times_ms.push_back(std::chrono::duration<double, std::milli>(Clock::now() - start).count());
  }
  std::sort(timing.times_ms.begin(), timing.times_ms.end());
  return timing;
}

Plan plan_of(const Arguments& arguments) {
  Plan plan;
  plan.seconds = arguments.seconds("--seconds");
  for (const std::string& text : arguments.texts("--batch")) {
    plan.batches.push_back(integer_from(text, "--batch"));
    if (plan.batches.back() < 1) {
      throw mlpdeploy::Error(mlpdeploy::ErrorKind::usage, "--batch " + text, "at least 1");
    }
  }
  const std::string size = arguments.text("--image-size");
  const auto cross = size.find('x');
  plan.height = integer_from(size.substr(0, cross), "--image-size");
  plan.width = cross == std::string::npos ? plan.height : integer_from(size.substr(cross + 1), "--image-size");
  constexpr int largest = 1 << 15;
  if (std::min(plan.height, plan.width) < 1 || std::max(plan.height, plan.width) > largest) {
    throw mlpdeploy::Error(mlpdeploy::ErrorKind::usage, "--image-size " + size,
                           "sides of 1 to " + std::to_string(largest) + " pixels");
  }
  return plan;
}

// What the model leaves open comes from the command line, what it fixes from the model.
void resolve(Plan& plan, const mlpdeploy::Session& session, bool size_given) {
  const auto& input = session.inputs().front();
  if (session.inputs().size() != 1 || input.dtype != mlpdeploy::DType::float32 || input.shape.size() != 4) {
    throw mlpdeploy::Error(mlpdeploy::ErrorKind::usage, "a model with other inputs than images",
                           "one float32 input with four axes");
  }
  for (std::size_t axis = 2; axis < 4; ++axis) {
    int& side = input.layout[axis] == 'H' ? plan.height : plan.width;
    if (!input.shape[axis].fixed()) continue;
    if (size_given && side != input.shape[axis].size) {
      throw mlpdeploy::Error(mlpdeploy::ErrorKind::usage, "image size " + std::to_string(side),
                             std::to_string(input.shape[axis].size) + ", which the artifact is fixed to");
    }
    side = static_cast<int>(input.shape[axis].size);
  }
  if (const auto fixed = session.fixed_batch()) {
    for (const int batch : plan.batches) {
      if (batch != *fixed) {
        throw mlpdeploy::Error(mlpdeploy::ErrorKind::usage,
                               "the batch size " + std::to_string(batch) + " for an artifact whose batch is fixed",
                               std::to_string(*fixed));
      }
    }
    plan.batches = {*fixed};
  }
}

std::string text_of_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// The rest of the line in /proc/cpuinfo that begins with `key`.
std::string cpuinfo(const std::string& key) {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind(key, 0) == 0) return line.substr(std::min(line.size(), line.find(':') + 2));
  }
  return "";
}

Json machine() {
  Json value = Json::object();
  value.set("cpu", cpuinfo("model name"));
  Json features = Json::array();
  const std::string flags = " " + cpuinfo("flags") + " ";
  for (const char* name :
       {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8"}) {
    if (flags.find(" " + std::string(name) + " ") != std::string::npos) features.add(name);
  }
  value.set("cpu_features", std::move(features));
  cpu_set_t set;
  CPU_ZERO(&set);
  sched_getaffinity(0, sizeof set, &set);
  value.set("cpu_count", CPU_COUNT(&set));
  utsname system{};
  uname(&system);
  value.set("architecture", system.machine);
  value.set("system", std::string(system.sysname) + " " + system.release);
  double load[1] = {0};
  getloadavg(load, 1);
  value.set("load_average_1min", load[0]);
  return value;
}

std::string date_utc() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[40];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S+00:00", &parts);
  return text;
}

Json artifact_of(const Json& manifest, const std::string& file, const std::string& kernels) {
  Json value = Json::object();
  value.set("precision", *manifest.find("precision"));
  value.set("opset", *manifest.find("opset"));
  value.set("file", file);
  value.set("kernels", kernels.rfind("none", 0) == 0 ? "" : kernels);
  // An engine is not among the artifact's files.
  if (const Json* entry = manifest.find("files")->find(file)) {
    for (const auto& [name, field] : entry->members) value.set(name, field);
  }
  return value;
}

Json options_of(const Plan& plan, const mlpdeploy::Session& session) {
  Json batches = Json::array(), sides = Json::array();
  for (const int batch : plan.batches) batches.add(batch);
  for (const int side : {plan.height, plan.width}) sides.add(side);
  Json value = Json::object();
  value.set("batches", std::move(batches));
  value.set("threads", session.threads());
  value.set("seconds", plan.seconds);
  value.set("warmup", warmup);
  value.set("min_runs", min_runs);
  value.set("height_width", std::move(sides));
  value.set("peers", Json::array());
  value.set("memory", false);
  value.set("backend", session.backend());
  value.set("precision", Json());
  value.set("callers", Json::array());
  value.set("seed", 0);
  return value;
}

// The fields of mlpdeploy/bench/report.py, so that its readers and plots take it.
Json report(const mlpdeploy::Session& session, const std::string& folder, const Plan& plan,
            const std::vector<Timing>& timings, Json head) {
  const Json manifest = mlpdeploy::parse_json(text_of_file(folder + "/manifest.json"));
  Json labels = Json::object();
  labels.set(ours, "mlpdeploy (C++)");
  head.set("labels", std::move(labels));
  Json tools = Json::object();
  tools.set("mlpdeploy", MLPDEPLOY_VERSION);
  tools.set(session.backend(), session.backend_version());
  head.set("tools", std::move(tools));
  head.set("model", *manifest.find("model"));
  head.set("artifact", artifact_of(manifest, session.model().file, session.kernels()));
  head.set("options", options_of(plan, session));
  Json results = Json::array();
  for (const Timing& timing : timings) {
    Json result = Json::object();
    result.set("name", ours);
    result.set("batch", timing.batch);
    result.set("status", "measured");
    result.set("reason", "");
    result.set("output_error", 0.0);
    result.set("timing", timing.json());
    result.set("gpu_ms", Json());  // of engines, which only Python asks for
    results.add(std::move(result));
  }
  head.set("results", std::move(results));
  head.set("memory", Json::array());
  head.set("concurrent", Json::array());
  return head;
}

}  // namespace

Command bench_command() {
  return {"bench",
          "FOLDER",
          "Measure an artifact: time of a run and images per second.",
          1,
          1,
          {{"--batch", "N", "1 and 8", "rows of one run; repeat for a sweep"},
           {"--seconds", "S", "20", "measuring time per batch size"},
           {"--image-size", "PIXELS", "224", "one number or HEIGHTxWIDTH, where the model leaves it open"},
           backend_option(),
           device_option(),
           threads_option(),
           {"--json", "", "", "print JSON with the fields of `mlpdeploy bench --json`"}},
          "Example: mlpdeploy-infer bench asmlp_s --batch 1 --batch 8 --json > cpp.json"};
}

int run_bench(const Arguments& arguments) {
  Plan plan = plan_of(arguments);
  Json head = Json::object();
  head.set("format", "mlpdeploy-bench");
  head.set("version", 1);
  head.set("baseline", ours);
  head.set("date_utc", date_utc());
  head.set("git_commit", Json());
  head.set("machine", machine());
  const int largest = plan.batches.empty() ? 8 : *std::max_element(plan.batches.begin(), plan.batches.end());
  const auto session = loaded(arguments, largest);
  if (plan.batches.empty() && !session.fixed_batch()) plan.batches = {1, 8};
  resolve(plan, session, arguments.has("--image-size"));
  std::vector<Timing> timings;
  for (const int batch : plan.batches) timings.push_back(measure(session, plan, batch));
  for (const auto& [shapes, note] : session.graphs()) {
    if (note.rfind("no CUDA graph", 0) == 0) {
      std::fprintf(stderr, "mlpdeploy-infer: %s runs with %s\n", shapes.c_str(), note.c_str());
    }
  }
  if (arguments.has("--json")) {
    const Json document = report(session, arguments.operands().front(), plan, timings, std::move(head));
    std::puts(mlpdeploy::indented_json(document).c_str());
    return 0;
  }
  std::printf("%s (%s), %s, %dx%d, %d threads\n", session.model().name.c_str(), session.model().source.c_str(),
              session.model().precision.c_str(), plan.height, plan.width, session.threads());
  std::puts("batch  images/s   p50 ms   p95 ms   p99 ms   runs");
  for (const Timing& timing : timings) {
    std::printf("%5d %9.1f %8.2f %8.2f %8.2f %6zu\n", timing.batch, timing.images_per_s(), timing.percentile(50),
                timing.percentile(95), timing.percentile(99), timing.times_ms.size());
  }
  return 0;
}
