#include <string>

#include "mlpdeploy/session.h"

namespace mlpdeploy {

namespace {

std::string stripped(const std::string& part) {
  const char* spaces = " \t\r\n\v\f";
  const auto first = part.find_first_not_of(spaces);
  if (first == std::string::npos) return "";
  std::string text = part.substr(first, part.find_last_not_of(spaces) - first + 1);
  while (!text.empty() && text.back() == '.') text.pop_back();
  return text;
}

std::string sentence(const std::string& got, const std::string& wanted, const std::string& fix) {
  std::string text;
  for (const std::string& part : {got, wanted.empty() ? "" : "wanted " + wanted, fix}) {
    if (part.empty()) continue;
    if (!text.empty()) text += "; ";
    text += stripped(part);
  }
  return text;
}

}  // namespace

Error::Error(ErrorKind kind, const std::string& got, const std::string& wanted, const std::string& fix)
    : std::runtime_error(sentence(got, wanted, fix)), kind_(kind), got_(got), wanted_(wanted), fix_(fix) {}

}  // namespace mlpdeploy
