// The program's commands: what --help says, and what runs. Each returns the exit code or throws mlpdeploy::Error.
#pragma once

#include "arguments.h"
#include "mlpdeploy/session.h"

Command classify_command();
int run_classify(const Arguments& arguments);

Command bench_command();
int run_bench(const Arguments& arguments);

Command serve_command();
int run_serve(const Arguments& arguments);

inline Option threads_option() {
  return {"--threads", "N", "", "threads of one run; all usable processors if not given"};
}

// The session that --threads and a number of rows ask for.
inline mlpdeploy::Session loaded(const Arguments& arguments, int max_batch) {
  mlpdeploy::LoadOptions options;
  if (arguments.has("--threads")) options.threads = arguments.number("--threads");
  options.max_batch = max_batch;
  return mlpdeploy::Session::load(arguments.operands().front(), options);
}
