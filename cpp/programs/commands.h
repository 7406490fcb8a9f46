// The program's commands: what --help says, and what runs. Each returns the exit code or throws mlpdeploy::Error.
#pragma once

#include <cstdio>
#include <string>

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

inline Option backend_option() {
  return {"--backend", "NAME", mlpdeploy::LoadOptions().backend, "onnxruntime or tensorrt"};
}

inline Option device_option() {
  return {"--device", "NAME", "", "cpu or cuda:N; if not given, tensorrt takes the first GPU, onnxruntime the CPU"};
}

// The session that --backend, --device, --threads and a number of rows ask for. Without --batch an
// engine takes the rows that it was built for.
inline mlpdeploy::Session loaded(const Arguments& arguments, int max_batch) {
  mlpdeploy::LoadOptions options;
  options.backend = arguments.text("--backend");
  options.device = arguments.text("--device");
  if (arguments.has("--threads")) options.threads = arguments.number("--threads");
  const bool on_cpu = options.backend == mlpdeploy::LoadOptions().backend;
  if (on_cpu || arguments.has("--batch")) options.max_batch = max_batch;
  auto session = mlpdeploy::Session::load(arguments.operands().front(), options);
  if (const std::string kernels = session.kernels(); kernels.find("cannot be loaded") != std::string::npos) {
    std::fprintf(stderr, "mlpdeploy-infer: without the CPU kernels: %s\n",
                 kernels.substr(kernels.find(':') + 2).c_str());
  }
  return session;
}
