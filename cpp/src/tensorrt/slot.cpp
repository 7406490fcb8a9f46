#include "slot.h"

#include <algorithm>

#include "../text.h"

namespace mlpdeploy {

namespace {

nvinfer1::Dims dims_of(const Binding& tensor) {
  nvinfer1::Dims dims{};
  dims.nbDims = static_cast<std::int32_t>(tensor.rank);
  // TensorRT 8 has sizes of 32 bits; what a profile takes fits them.
  for (std::size_t axis = 0; axis < tensor.rank; ++axis) {
    dims.d[axis] = static_cast<std::remove_reference_t<decltype(dims.d[0])>>(tensor.shape[axis]);
  }
  return dims;
}

std::string text_of(const Binding& tensor) {
  std::vector<std::string> sizes;
  for (std::size_t axis = 0; axis < tensor.rank; ++axis) sizes.push_back(std::to_string(tensor.shape[axis]));
  return join(sizes, "x");
}

std::size_t bytes_of(const Binding& tensor) {
  return std::max<std::size_t>(tensor.row_bytes() * static_cast<std::size_t>(tensor.shape[0]), 1);
}

Binding rows_of(const Binding& tensor, std::int64_t rows) {
  Binding shaped = tensor;
  shaped.shape[0] = rows;
  return shaped;
}

}  // namespace

Buffer::Buffer(const Cuda& cuda, const Binding& shaped)
    : tensor(shaped), bytes(bytes_of(shaped)), host(cuda, bytes), device(cuda, bytes) {
  tensor.data = host.data();
}

Slot::Slot(const Engine& engine, const Cuda& cuda, const Stream& stream, const DeviceMemory& scratch,
           const Feeds& feeds, const Chunk& chunk)
    : engine_(engine),
      cuda_(cuda),
      stream_(stream),
      profile_(chunk.profile),
      context_(engine.create_context()),
      note_("runs directly the first time") {
  if (engine.has_profiles()) {
    accept(context_->setOptimizationProfileAsync(profile_, stream.handle()), "profile " + std::to_string(profile_));
    stream.wait();  // so that a context which is dropped below has nothing in the stream
  }
  std::vector<std::string> shapes;
  for (std::size_t i = 0; i < engine.inputs().size(); ++i) {
    const EngineTensor& tensor = engine.inputs()[i];
    const Binding shaped = rows_of(feeds.tensors[i], chunk.computed);
    accept(context_->setInputShape(tensor.name.c_str(), dims_of(shaped)), tensor.name);
    add(tensor, shaped, cuda, inputs_);
    shapes.push_back(text_of(shaped));
  }
  shapes_ = join(shapes, ", ");
  engine.give_scratch(*context_, scratch.pointer());
  for (const EngineTensor& tensor : engine.outputs()) {
    const nvinfer1::Dims dims = context_->getTensorShape(tensor.name.c_str());
    Binding shaped;
    shaped.dtype = tensor.dtype;
    shaped.rank = static_cast<std::size_t>(std::max(dims.nbDims, 0));
    const bool known = shaped.rank == static_cast<std::size_t>(tensor.shape.nbDims) &&
                       std::none_of(dims.d, dims.d + dims.nbDims, [](auto size) { return size < 0; });
    accept(known && dims.d[0] == chunk.computed, "the shape of " + tensor.name);
    std::copy(dims.d, dims.d + dims.nbDims, shaped.shape);
    add(tensor, shaped, cuda, outputs_);
  }
}

void Slot::add(const EngineTensor& tensor, const Binding& shaped, const Cuda& cuda,
               std::vector<std::unique_ptr<Buffer>>& side) {
  side.push_back(std::make_unique<Buffer>(cuda, shaped));
  accept(context_->setTensorAddress(tensor.name.c_str(), side.back()->device.pointer()), tensor.name);
}

void Slot::accept(bool accepted, const std::string& what) const {
  if (accepted) return;
  throw Error(ErrorKind::backend, engine_.nvinfer().name() + " refused " + what + ": " + engine_.complaints().last());
}

bool Slot::fits(const Feeds& feeds, const Chunk& chunk) const noexcept {
  if (chunk.profile != profile_) return false;
  for (std::size_t i = 0; i < inputs_.size(); ++i) {
    const Binding &mine = inputs_[i]->tensor, &theirs = feeds.tensors[i];
    const bool same =
        mine.shape[0] == chunk.computed && std::equal(mine.shape + 1, mine.shape + mine.rank, theirs.shape + 1);
    if (!same) return false;
  }
  return true;
}

CUdeviceptr Slot::frame_memory(std::size_t bytes) {
  if (!frames_) frames_ = std::make_unique<DeviceMemory>(cuda_, bytes);  // a slot's shapes are always the same
  return frames_->address();
}

void Slot::launch() {
  if (ran_ && !tried_) record();
  if (graph_) {
    graph_->launch(stream_.handle());
  } else if (!context_->enqueueV3(stream_.handle())) {
    throw Error(ErrorKind::backend,
                engine_.nvinfer().name() + " could not run the engine: " + engine_.complaints().last());
  }
  ran_ = true;
}

// Leaves the stream as it was, whether there is a graph then or a note why there is none.
void Slot::record() {
  tried_ = true;
  try {
    stream_.begin_recording();
    const bool enqueued = context_->enqueueV3(stream_.handle());
    auto graph = stream_.end_recording();
    if (enqueued) graph_ = std::move(graph);
    note_ = enqueued ? "CUDA graph" : "no CUDA graph: " + engine_.complaints().last();
  } catch (const CudaFailure& failure) {
    note_ = "no CUDA graph: " + failure.message;
  }
}

}  // namespace mlpdeploy
