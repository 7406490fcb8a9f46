// A simulated GPU for tests: the functions of the driver that the library uses, with their rules.
//
// Work waits in its stream until somebody waits for the stream, so that memory which is freed, moved or overwritten too
// early shows. A call that breaks a rule which CUDA would only punish by wrong results ends the program with its
// reason.
#pragma once

#include <cuda.h>

#include <atomic>
#include <functional>
#include <string>

struct FakeGpu {
  std::atomic<int> count{1};  // GPUs that are found
  std::string name = "Test GPU";
  int major = 8, minor = 9;

  // Things that exist.
  std::atomic<int> device_blocks{0}, pinned_blocks{0}, streams{0}, graphs{0}, engines{0}, contexts{0};
  std::atomic<int> modules{0}, retained{0};  // retained: how often the primary context is
  std::atomic<int> waiting{0};               // pieces of work in streams
  // Things that happened.
  std::atomic<long> graph_launches{0}, enqueues{0}, allocations{0}, kernel_launches{0}, copies{0}, line_copies{0};
  std::atomic<int> largest_batch{0}, profile{-1};

  // The name of a function that fails the next time, and what TensorRT does wrong: "enqueue", "context".
  std::string failing;
};

#define FAKE_API extern "C" __attribute__((visibility("default")))

FAKE_API FakeGpu* fake_gpu();

[[noreturn]] void fake_violation(const std::string& what);
void fake_enqueue(CUstream stream, std::function<void()> work);
bool fake_is_capturing(CUstream stream);
// The memory behind an address on the GPU; a violation where so many bytes are not there.
void* fake_memory(const void* address, std::size_t bytes);
bool fake_fails(const char* name);
