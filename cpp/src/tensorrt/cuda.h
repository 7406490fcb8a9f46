// What the library needs of CUDA: the driver's own interface, which is there wherever a GPU is, loaded at run time.
//
// Everything belongs to the GPU's primary context, which the CUDA runtime, PyTorch and TensorRT use too; from the first
// session on it stays for the life of the process. All calls but `open` need it to be current in the calling thread:
// `const Current current(cuda);`. What fails throws CudaFailure.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <memory>
#include <string>

namespace mlpdeploy {

// A call that CUDA refused, or an earlier one that failed on the GPU.
struct CudaFailure {
  std::string message;
};

// The GPU as the driver tells it.
struct Gpu {
  std::string name;
  int major = 0, minor = 0;  // of the compute capability

  std::string compute_capability() const { return std::to_string(major) + "." + std::to_string(minor); }
};

struct CudaFunctions;

class Cuda {
 public:
  // Throws Error (backend): no driver, an old one, or no such GPU.
  static std::shared_ptr<Cuda> open(int index);

  Cuda(const Cuda&) = delete;
  Cuda& operator=(const Cuda&) = delete;

  const Gpu& gpu() const noexcept { return gpu_; }
  const CudaFunctions& functions() const noexcept { return functions_; }
  void check(CUresult result, const char* call) const;  // throws CudaFailure

 private:
  Cuda(const CudaFunctions& functions, int index);

  const CudaFunctions& functions_;
  CUdevice device_ = 0;
  CUcontext context_ = nullptr;
  Gpu gpu_;

  friend class Current;
};

// The GPU's context, current in this thread within a block; what was current before stays beneath it.
class Current {
 public:
  explicit Current(const Cuda& cuda);
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;
  ~Current();

 private:
  const Cuda& cuda_;
};

class DeviceMemory {
 public:
  DeviceMemory(const Cuda& cuda, std::size_t bytes);
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  ~DeviceMemory();

  CUdeviceptr address() const noexcept { return address_; }
  void* pointer() const noexcept { return reinterpret_cast<void*>(address_); }

 private:
  const Cuda& cuda_;
  CUdeviceptr address_ = 0;
};

// Page-locked memory of the processor, which the GPU reads and writes by itself.
class PinnedMemory {
 public:
  PinnedMemory(const Cuda& cuda, std::size_t bytes);
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;
  ~PinnedMemory();

  void* data() const noexcept { return data_; }

 private:
  const Cuda& cuda_;
  void* data_ = nullptr;
};

// A recorded piece of a stream's work, which is launched as one.
class Graph {
 public:
  Graph(const Cuda& cuda, CUgraph recorded);  // takes it, also where it throws
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph();

  void launch(CUstream stream) const;

 private:
  const Cuda& cuda_;
  CUgraphExec executable_ = nullptr;
};

// A stream that does not wait for the default stream.
class Stream {
 public:
  explicit Stream(const Cuda& cuda);
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream();

  CUstream handle() const noexcept { return handle_; }
  void copy_in(const DeviceMemory& to, const PinnedMemory& from, std::size_t bytes) const;
  // Lines of `line_bytes` from anywhere in the processor's memory, which must stay until the work has run.
  void copy_lines(CUdeviceptr to, const void* from, std::size_t line_bytes, std::size_t lines, std::size_t apart) const;
  void clear(CUdeviceptr address, std::size_t bytes) const;
  void copy_out(const PinnedMemory& to, const DeviceMemory& from, std::size_t bytes) const;
  void wait() const;            // until everything in it has run
  void drain() const noexcept;  // the same after a failure, which says more than another one would

  // Records this thread's calls instead of running them. `end_recording` must follow, also where one of them failed.
  void begin_recording() const;
  std::unique_ptr<Graph> end_recording() const;

 private:
  const Cuda& cuda_;
  CUstream handle_ = nullptr;
};

}  // namespace mlpdeploy
