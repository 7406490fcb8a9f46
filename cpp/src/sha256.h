#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace mlpdeploy {

// Hexadecimal SHA-256 of a text, and of a file's bytes. Both throw std::runtime_error: libcrypto failed, or the file
// cannot be read.
std::string sha256_of(std::string_view text);
std::string sha256_of_file(const std::filesystem::path& path);

}  // namespace mlpdeploy
