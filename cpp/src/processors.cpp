#include "processors.h"

#include <sched.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <locale>
#include <sstream>
#include <string>
#include <thread>

namespace mlpdeploy {

namespace {

namespace fs = std::filesystem;

constexpr double unlimited = std::numeric_limits<double>::infinity();

std::string text_of(const fs::path& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// Of one control group of version 2 (`cpu.max`) or 1 (`cpu.cfs_*`).
double limit_of(const fs::path& group) {
  for (const std::string& text :
       {text_of(group / "cpu.max"), text_of(group / "cpu.cfs_quota_us") + ' ' + text_of(group / "cpu.cfs_period_us")}) {
    std::istringstream words(text);
    words.imbue(std::locale::classic());
    double quota = 0, period = 0;
    if (words >> quota >> period && quota > 0 && period > 0) return quota / period;  // else max or -1: no limit
  }
  return unlimited;
}

bool names_cpu(const std::string& controllers) {
  std::istringstream words(controllers);
  for (std::string word; std::getline(words, word, ',');) {
    if (word == "cpu") return true;
  }
  return false;
}

}  // namespace

double processors_allowed(const fs::path& root) {
  double allowed = unlimited;
  std::istringstream lines(text_of(root / "proc/self/cgroup"));
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string number, controllers, path;
    std::getline(words, number, ':');
    std::getline(words, controllers, ':');
    std::getline(words, path);
    if (!controllers.empty() && !names_cpu(controllers)) continue;
    // A container may see the path from outside, and only its own group, at the top.
    fs::path group = root / "sys/fs/cgroup";
    if (!controllers.empty()) group /= "cpu";
    allowed = std::min(allowed, limit_of(group));
    for (const fs::path& part : fs::path(path).relative_path()) {
      group /= part;
      allowed = std::min(allowed, limit_of(group));
    }
  }
  return allowed;
}

int usable_processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  const int there = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set)
                                                                : static_cast<int>(std::thread::hardware_concurrency());
  return std::max(1, static_cast<int>(std::min(static_cast<double>(there), processors_allowed())));
}

}  // namespace mlpdeploy
