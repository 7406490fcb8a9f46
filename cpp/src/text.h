// Pieces of error texts, worded and spelled as Python's.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace mlpdeploy {

std::string join(const std::vector<std::string>& parts, std::string_view separator);
std::string repr(std::string_view text);  // repr() of a str

// "did you mean X?" with the nearest of `known` (difflib's measure, cutoff 0.5), or "one of: ..." with all of them.
std::string closest(std::string_view name, std::vector<std::string> known);

// "[Errno 13] Permission denied: 'path'", as an OSError prints itself.
std::string os_error(int number, std::string_view path);

}  // namespace mlpdeploy
