#include "text.h"

#include <algorithm>
#include <cstring>

namespace mlpdeploy {

namespace {

// Characters in common: the longest common block, and the same again to its left and to its right.
std::size_t matches(std::string_view one, std::string_view other) {
  std::size_t best = 0, best_one = 0, best_other = 0;
  for (std::size_t i = 0; i < one.size(); ++i) {
    for (std::size_t j = 0; j < other.size(); ++j) {
      std::size_t length = 0;
      while (i + length < one.size() && j + length < other.size() && one[i + length] == other[j + length]) ++length;
      if (length > best) best = length, best_one = i, best_other = j;
    }
  }
  if (best == 0) return 0;
  return best + matches(one.substr(0, best_one), other.substr(0, best_other)) +
         matches(one.substr(best_one + best), other.substr(best_other + best));
}

double likeness(std::string_view one, std::string_view other) {
  const std::size_t total = one.size() + other.size();
  return total ? 2.0 * static_cast<double>(matches(one, other)) / static_cast<double>(total) : 1.0;
}

}  // namespace

std::string join(const std::vector<std::string>& parts, std::string_view separator) {
  std::string text;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (i) text += separator;
    text += parts[i];
  }
  return text;
}

std::string repr(std::string_view text) {
  const bool single = text.find('\'') == std::string_view::npos || text.find('"') != std::string_view::npos;
  const char quote = single ? '\'' : '"';
  std::string result(1, quote);
  for (const char character : text) {
    if (character == quote || character == '\\') result += '\\';
    if (character == '\n') {
      result += "\\n";
    } else {
      result += character;
    }
  }
  return result + quote;
}

std::string closest(std::string_view name, std::vector<std::string> known) {
  std::sort(known.begin(), known.end());
  // A name of a user's whole file would take cubic time; nothing is near to it anyway.
  constexpr std::size_t longest = 200;
  double best = 0.5;
  const std::string* near = nullptr;
  for (const auto& candidate : known) {
    const double value = name.size() > longest ? 0.0 : likeness(candidate, name);
    if (value >= best) best = value, near = &candidate;  // of equal ones the last, as difflib
  }
  return near ? "did you mean " + *near + "?" : "one of: " + join(known, ", ");
}

std::string os_error(int number, std::string_view path) {
  return "[Errno " + std::to_string(number) + "] " + std::strerror(number) + ": " + repr(path);
}

}  // namespace mlpdeploy
