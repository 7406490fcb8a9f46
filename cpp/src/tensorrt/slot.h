// What one set of shapes needs to run: a context, its buffers and its CUDA graph. Nothing in a slot ever changes place.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "../split.h"
#include "cuda.h"
#include "nvinfer.h"

namespace mlpdeploy {

// A tensor in device memory, and its staging area in pinned memory.
struct Buffer {
  Binding tensor;  // its `data` is the staging area
  std::size_t bytes;
  PinnedMemory host;
  DeviceMemory device;

  Buffer(const Cuda& cuda, const Binding& shaped);
};

// Used by one thread at a time, in one stream. The GPU's context must be current in every call, and at the end.
class Slot {
 public:
  // For so many rows of these inputs, in a profile. `scratch` belongs to the stream: what is in it runs one after
  // another.
  Slot(const Engine& engine, const Cuda& cuda, const Stream& stream, const DeviceMemory& scratch, const Feeds& feeds,
       const Chunk& chunk);

  bool fits(const Feeds& feeds, const Chunk& chunk) const noexcept;

  // Puts the work into the stream. The first time it runs directly: TensorRT finishes its preparations in it. The
  // second time it is recorded as a graph, which is launched then and later. Throws Error (backend), CudaFailure.
  void launch();

  const std::vector<std::unique_ptr<Buffer>>& inputs() const noexcept { return inputs_; }
  const std::vector<std::unique_ptr<Buffer>>& outputs() const noexcept { return outputs_; }
  // Room on the GPU for the frames of a run, made when the first ones come. Throws CudaFailure.
  CUdeviceptr frame_memory(std::size_t bytes);
  GraphNote note() const { return {shapes_, note_}; }

 private:
  const Engine& engine_;
  const Cuda& cuda_;
  const Stream& stream_;
  int profile_;
  std::vector<std::unique_ptr<Buffer>> inputs_, outputs_;  // outlive the context that has their addresses
  std::unique_ptr<DeviceMemory> frames_;
  Context context_;
  std::unique_ptr<Graph> graph_;
  bool ran_ = false, tried_ = false;
  std::string shapes_, note_;

  void accept(bool accepted, const std::string& what) const;
  void add(const EngineTensor& tensor, const Binding& shaped, const Cuda& cuda,
           std::vector<std::unique_ptr<Buffer>>& side);
  void record();
};

}  // namespace mlpdeploy
