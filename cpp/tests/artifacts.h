// The artifact folders that tests/cpp/artifacts.py makes; MLPDEPLOY_TEST_ARTIFACTS says where.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <stdexcept>

inline std::filesystem::path artifact(const char* name) {
  const char* folder = std::getenv("MLPDEPLOY_TEST_ARTIFACTS");
  if (!folder) throw std::runtime_error("set MLPDEPLOY_TEST_ARTIFACTS to what tests/cpp/artifacts.py made");
  return std::filesystem::path(folder) / name;
}
