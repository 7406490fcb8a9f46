#include "lane.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "../bindings.h"
#include "../frame_batch.h"
#include "../text.h"

namespace mlpdeploy {

namespace {

// Shapes that a lane keeps ready; the one that was not used for the longest time makes room for another.
constexpr std::size_t kept_slots = 24;
constexpr std::size_t least_scratch_bytes = 256;

void check_shape(const Binding& target, const Binding& computed, const std::string& name, std::int64_t rows) {
  if (std::equal(target.shape + 1, target.shape + target.rank, computed.shape + 1)) return;
  const auto text = [&](const Binding& tensor) { return shape_text(tensor.rows(0, rows).shape, tensor.rank); };
  throw Error(ErrorKind::usage, "output array " + repr(name) + " has the shape " + text(target), text(computed));
}

}  // namespace

Lane::Lane(const Engine& engine, const Cuda& cuda, const FrameKernel& kernel)
    : engine_(engine),
      cuda_(cuda),
      kernel_(kernel),
      stream_(cuda),
      scratch_(cuda, std::max(engine.scratch_bytes(), least_scratch_bytes)) {
  slots_.reserve(kept_slots);
}

Slot& Lane::slot(const Feeds& feeds, const Chunk& chunk) {
  const auto fits = [&](const std::unique_ptr<Slot>& one) { return one->fits(feeds, chunk); };
  auto found = std::find_if(slots_.begin(), slots_.end(), fits);
  if (found == slots_.end()) {
    if (slots_.size() == kept_slots) slots_.pop_back();
    slots_.push_back(std::make_unique<Slot>(engine_, cuda_, stream_, scratch_, feeds, chunk));
    found = slots_.end() - 1;
  }
  std::rotate(slots_.begin(), found, found + 1);
  return *slots_.front();
}

void Lane::start(const Feeds& feeds, const Results& results, const Chunk& chunk) {
  Slot& used = slot(feeds, chunk);
  const auto& outputs = used.outputs();
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const Binding& target = results.tensors[i];
    if (target.data) check_shape(target, outputs[i]->tensor, engine_.outputs()[i].name, target.shape[0]);
  }
  pending_ = &used;
  chunk_ = chunk;
  results_ = results;
  if (feeds.frames) start_frames(*feeds.frames, used, chunk);
  for (std::size_t i = 0; i < used.inputs().size() && !feeds.frames; ++i) {
    Buffer& buffer = *used.inputs()[i];
    copy_padded(feeds.tensors[i].rows(chunk.start, chunk.stop), chunk.computed, buffer.host.data());
    stream_.copy_in(buffer.device, buffer.host, buffer.bytes);
  }
  used.launch();
  for (const auto& buffer : outputs) stream_.copy_out(buffer->host, buffer->device, buffer->bytes);
}

// The pixels go to the GPU as they are, and the kernel writes the engine's input there.
void Lane::start_frames(const FrameBatch& batch, Slot& used, const Chunk& chunk) const {
  const Buffer& input = *used.inputs().front();
  const std::size_t row_bytes = input.tensor.row_bytes();
  const ImageView& first = batch.frames[chunk.start];
  const std::size_t line = std::size_t{3} * static_cast<std::size_t>(first.width);
  const std::size_t frame_bytes = line * static_cast<std::size_t>(first.height);
  const CUdeviceptr memory = used.frame_memory(frame_bytes * static_cast<std::size_t>(chunk.computed));
  for (std::int64_t row = 0; row < chunk.rows(); ++row) {
    const ImageView& view = batch.frames[chunk.start + row];
    const bool upwards = view.height > 1 && view.stride_bytes < 0;
    const std::uint8_t* lowest = view.pixels + (upwards ? (view.height - 1) * view.stride_bytes : 0);
    const std::size_t apart = view.height > 1 ? static_cast<std::size_t>(std::abs(view.stride_bytes)) : line;
    const CUdeviceptr place = memory + frame_bytes * static_cast<std::size_t>(row);
    stream_.copy_lines(place, lowest, line, static_cast<std::size_t>(view.height), apart);
    const auto* pixels = reinterpret_cast<const std::uint8_t*>(place + (upwards ? frame_bytes - line : 0));
    const auto step = static_cast<std::ptrdiff_t>(line);
    void* const out = reinterpret_cast<void*>(input.device.address() + row_bytes * static_cast<std::size_t>(row));
    kernel_.launch(stream_, frame_params(batch.format, view, pixels, upwards ? -step : step, out));
  }
  const std::size_t filled = row_bytes * static_cast<std::size_t>(chunk.rows());
  if (chunk.computed > chunk.rows()) stream_.clear(input.device.address() + filled, input.bytes - filled);
}

void Lane::finish() {
  if (!pending_) return;
  stream_.wait();
  for (std::size_t i = 0; i < pending_->outputs().size(); ++i) {
    if (!results_.tensors[i].data) continue;
    const Binding target = results_.tensors[i].rows(chunk_.start, chunk_.stop);
    std::memcpy(target.data, pending_->outputs()[i]->host.data(),
                target.row_bytes() * static_cast<std::size_t>(chunk_.rows()));
  }
  pending_ = nullptr;
}

void Lane::drain() noexcept {
  if (pending_) stream_.drain();
  pending_ = nullptr;
}

void Lane::add_notes(std::vector<GraphNote>& notes) const {
  for (const auto& slot : slots_) notes.push_back(slot->note());
}

LanePool::Loan::Loan(LanePool& pool, std::size_t wanted, bool all) : pool_(pool) {
  std::unique_lock<std::mutex> lock(pool.mutex_);
  pool.returned_.wait(lock, [&] {
    return all ? pool.free_count_ == pool.lanes_.size() : pool.free_count_ > 0 || pool.lanes_.size() < most_lanes;
  });
  while (pool.free_count_ < wanted && pool.lanes_.size() < most_lanes) {
    try {
      pool.lanes_.push_back(std::make_unique<Lane>(pool.engine_, pool.cuda_, pool.kernel_));
    } catch (const CudaFailure&) {
      // No memory for another lane: those that are there do.
      if (pool.lanes_.empty()) throw;
      pool.returned_.wait(lock, [&] { return pool.free_count_ > 0; });
      break;
    }
    pool.free_[pool.free_count_++] = pool.lanes_.back().get();
  }
  while (count_ < wanted && pool.free_count_ > 0) lanes_[count_++] = pool.free_[--pool.free_count_];
}

LanePool::Loan::~Loan() {
  for (std::size_t i = 0; i < count_; ++i) lanes_[i]->drain();
  {
    const std::lock_guard<std::mutex> lock(pool_.mutex_);
    while (count_ > 0) pool_.free_[pool_.free_count_++] = lanes_[--count_];
  }
  pool_.returned_.notify_all();
}

}  // namespace mlpdeploy
