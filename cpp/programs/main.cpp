// mlpdeploy-infer: data goes to stdout, talk to stderr; exit 0, 1 (failure) or 2 (usage).

#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "commands.h"

namespace {

struct Entry {
  Command command;
  int (*run)(const Arguments&);
};

const std::vector<Entry>& entries() {
  static const std::vector<Entry> all = {
      {classify_command(), run_classify}, {bench_command(), run_bench}, {serve_command(), run_serve}};
  return all;
}

std::string overview() {
  std::string text =
      "Usage: mlpdeploy-infer COMMAND ...\n\nRun an artifact folder that `mlpdeploy export` made.\n\nCommands:\n";
  for (const Entry& entry : entries()) {
    std::string head = "  " + entry.command.name;
    head.resize(14, ' ');
    text += head + entry.command.purpose + "\n";
  }
  return text + "\nOptions of each command: mlpdeploy-infer COMMAND --help. Version: mlpdeploy-infer --version\n";
}

int run(const std::vector<std::string>& words) {
  if (words.empty()) {
    std::fputs(overview().c_str(), stderr);
    return 2;
  }
  if (words[0] == "--help" || words[0] == "-h") return std::fputs(overview().c_str(), stdout) < 0;
  if (words[0] == "--version") return std::puts("mlpdeploy-infer " MLPDEPLOY_VERSION) < 0;
  for (const Entry& entry : entries()) {
    if (entry.command.name != words[0]) continue;
    for (const std::string& word : words) {
      if (word == "--") break;
      if (word == "--help" || word == "-h") return std::fputs(help_text(entry.command).c_str(), stdout) < 0;
    }
    return entry.run(Arguments(entry.command, {words.begin() + 1, words.end()}));
  }
  throw mlpdeploy::Error(mlpdeploy::ErrorKind::usage, "no command " + words[0], "", "see: mlpdeploy-infer --help");
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const int code = run({argv + 1, argv + argc});
    if (std::fflush(stdout) == 0 && !std::ferror(stdout)) return code;
    std::fputs("mlpdeploy-infer: stdout cannot be written\n", stderr);
  } catch (const mlpdeploy::Error& error) {
    std::fprintf(stderr, "mlpdeploy-infer: %s\n", error.what());
    return error.exit_code();
  } catch (const std::bad_alloc&) {
    std::fputs("mlpdeploy-infer: out of memory\n", stderr);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "mlpdeploy-infer: %s\n", error.what());
  }
  return 1;
}
