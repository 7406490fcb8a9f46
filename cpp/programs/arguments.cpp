#include "arguments.h"

#include <charconv>
#include <cmath>
#include <cstdlib>

#include "mlpdeploy/session.h"

namespace {

[[noreturn]] void refuse(const std::string& got, const std::string& wanted = "", const std::string& fix = "") {
  throw mlpdeploy::Error(mlpdeploy::ErrorKind::usage, got, wanted, fix);
}

const Option* find(const Command& command, const std::string& name) {
  for (const Option& option : command.options) {
    if (option.name == name) return &option;
  }
  return nullptr;
}

std::string see(const Command& command) { return "see: mlpdeploy-infer " + command.name + " --help"; }

}  // namespace

Arguments::Arguments(const Command& command, const std::vector<std::string>& words) : command_(command) {
  bool only_operands = false;
  for (std::size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (only_operands || word.size() < 2 || word[0] != '-') {
      operands_.push_back(word);
      continue;
    }
    if (word == "--") {
      only_operands = true;
      continue;
    }
    const auto equals = word.find('=');
    const std::string name = word.substr(0, equals);
    const Option* option = find(command, name);
    if (!option) refuse("unknown option " + name, "", see(command));
    std::string value;
    if (option->value.empty()) {
      if (equals != std::string::npos) refuse(name + " with a value", "a switch without one");
    } else if (equals != std::string::npos) {
      value = word.substr(equals + 1);
    } else if (i + 1 < words.size()) {
      value = words[++i];
    } else {
      refuse(name + " without a value", name + " " + option->value);
    }
    values_[name].push_back(value);
  }
  if (operands_.size() < command.least || operands_.size() > command.most) {
    refuse(std::to_string(operands_.size()) + " operands", command.operands, see(command));
  }
}

std::string Arguments::text(const std::string& name) const {
  const auto found = values_.find(name);
  return found == values_.end() ? find(command_, name)->otherwise : found->second.back();
}

std::vector<std::string> Arguments::texts(const std::string& name) const {
  const auto found = values_.find(name);
  return found == values_.end() ? std::vector<std::string>() : found->second;
}

int Arguments::number(const std::string& name) const { return integer_from(text(name), name); }

double Arguments::seconds(const std::string& name) const {
  const std::string value = text(name);
  char* end = nullptr;
  const double number = std::strtod(value.c_str(), &end);
  if (value.empty() || *end || !std::isfinite(number) || number < 0) {
    refuse(name + " " + value, "a finite number that is not negative");
  }
  return number;
}

int integer_from(const std::string& text, const std::string& what) {
  int number = 0;
  const char* end = text.data() + text.size();
  const auto read = std::from_chars(text.data(), end, number);
  if (text.empty() || read.ec != std::errc() || read.ptr != end) refuse(what + " " + text, "a whole number");
  return number;
}

std::string help_text(const Command& command) {
  std::string text = "Usage: mlpdeploy-infer " + command.name + " " + command.operands + " [options]\n\n" +
                     command.purpose + "\n\nOptions:\n";
  for (const Option& option : command.options) {
    std::string head = "  " + option.name + (option.value.empty() ? "" : " " + option.value);
    head.resize(std::max<std::size_t>(head.size() + 2, 24), ' ');
    text += head + option.help + (option.otherwise.empty() ? "" : "  [default: " + option.otherwise + "]") + "\n";
  }
  return text + (command.notes.empty() ? "" : "\n" + command.notes + "\n");
}
