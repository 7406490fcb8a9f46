// ONNX Runtime with a CUDA provider made up for tests: the real library of the CPU computes, and this one sees to it
// that the provider is asked for as it has to be, and that what a GPU would copy lies in pinned memory.
//
// The program that links it defines OrtGetApiBase itself, and so comes before the library.
#pragma once

#include <atomic>
#include <cstddef>
#include <functional>
#include <map>
#include <string>

struct FakeProvider {
  bool built = true;       // whether the library says that it has the provider
  std::string failing{};   // "append", "session" or "pinned": fails the next time
  std::map<std::string, std::string> options{};  // of the last session, as the provider got them
  int appended = 0;
  std::atomic<int> pinned_blocks{0}, pinned_values{0}, plain_values{0}, allocators{0}, option_objects{0};

  // Called by every run, on the CPU too, with its rows and before it computes; false fails the run.
  // Set it while none runs.
  std::function<bool(std::size_t rows)> at_run{};
};

FakeProvider& fake_provider();
