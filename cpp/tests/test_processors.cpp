#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "processors.h"
#include "scratch.h"

namespace fs = std::filesystem;

namespace {

constexpr double none = std::numeric_limits<double>::infinity();

using Files = std::vector<std::pair<std::string, std::string>>;

double allowed(const Files& files) {
  const ScratchFolder scratch("processors");
  const fs::path& root = scratch.path();
  for (const auto& [name, text] : files) {
    fs::create_directories((root / name).parent_path());
    std::ofstream(root / name) << text;
  }
  return mlpdeploy::processors_allowed(root);
}

const std::string version_1 = "9:name=systemd:/\n4:memory:/a\n2:cpu,cpuacct:/a\n0::/\n";

}  // namespace

TEST_CASE("limits of containers") {
  CHECK(allowed({}) == none);
  CHECK(allowed({{"proc/self/cgroup", "0::/\n"}}) == none);
  CHECK(allowed({{"proc/self/cgroup", "0::/\n"}, {"sys/fs/cgroup/cpu.max", "max 100000\n"}}) == none);
  CHECK(allowed({{"proc/self/cgroup", "0::/\n"}, {"sys/fs/cgroup/cpu.max", "what"}}) == none);
  CHECK(allowed({{"proc/self/cgroup", "0::/\n"}, {"sys/fs/cgroup/cpu.max", "250000 100000\n"}}) == 2.5);
  CHECK(allowed({{"proc/self/cgroup", "0::/a/b\n"},
                 {"sys/fs/cgroup/a/cpu.max", "300000 100000\n"},
                 {"sys/fs/cgroup/a/b/cpu.max", "max 100000\n"}}) == 3);
  const auto first = [](const std::string& folder, const std::string& quota) {
    return allowed({{"proc/self/cgroup", version_1},
                    {"sys/fs/cgroup/" + folder + "/cpu.cfs_quota_us", quota},
                    {"sys/fs/cgroup/" + folder + "/cpu.cfs_period_us", "100000\n"}});
  };
  CHECK(first("cpu/a", "-1\n") == none);
  CHECK(first("cpu/a", "50000\n") == 0.5);
  CHECK(first("cpu", "400000\n") == 4);  // in a container that sees the path from outside
}

TEST_CASE("at least one processor may be used") { CHECK(mlpdeploy::usable_processors() >= 1); }
