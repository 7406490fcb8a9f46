// A command's options as data: parsed by it, and printed by --help with their defaults.
#pragma once

#include <map>
#include <string>
#include <vector>

struct Option {
  std::string name;       // "--top"
  std::string value;      // what follows it, e.g. "N"; empty for a switch
  std::string otherwise;  // the default, as it would be typed; empty for none
  std::string help;
};

struct Command {
  std::string name;
  std::string operands;  // "FOLDER IMAGE..."
  std::string purpose;
  std::size_t least, most;  // operands
  std::vector<Option> options;
  std::string notes;  // printed last
};

class Arguments {
 public:
  // Throws mlpdeploy::Error (usage).
  Arguments(const Command& command, const std::vector<std::string>& words);

  const std::vector<std::string>& operands() const { return operands_; }
  bool has(const std::string& name) const { return values_.count(name) > 0; }
  std::string text(const std::string& name) const;                // the last value, or the default
  std::vector<std::string> texts(const std::string& name) const;  // all values
  int number(const std::string& name) const;
  double seconds(const std::string& name) const;

 private:
  const Command& command_;
  std::vector<std::string> operands_;
  std::map<std::string, std::vector<std::string>> values_;
};

// Throws mlpdeploy::Error (usage) unless the whole text is an integer.
int integer_from(const std::string& text, const std::string& what);

std::string help_text(const Command& command);
