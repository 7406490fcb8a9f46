#include "lane.h"

#include <algorithm>
#include <cstring>

#include "../bindings.h"
#include "../text.h"

namespace mlpdeploy {

namespace {

// Shapes that a lane keeps ready; the one that was not used for the longest time makes room for another.
constexpr std::size_t kept_slots = 8;
constexpr std::size_t least_scratch_bytes = 256;

void check_shape(const Binding& target, const Binding& computed, const std::string& name, std::int64_t rows) {
  if (std::equal(target.shape + 1, target.shape + target.rank, computed.shape + 1)) return;
  const auto text = [&](const Binding& tensor) { return shape_text(tensor.rows(0, rows).shape, tensor.rank); };
  throw Error(ErrorKind::usage, "output array " + repr(name) + " has the shape " + text(target), text(computed));
}

}  // namespace

Lane::Lane(const Engine& engine, const Cuda& cuda)
    : engine_(engine),
      cuda_(cuda),
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
  for (std::size_t i = 0; i < used.inputs().size(); ++i) {
    Buffer& buffer = *used.inputs()[i];
    copy_padded(feeds.tensors[i].rows(chunk.start, chunk.stop), chunk.computed, buffer.host.data());
    stream_.copy_in(buffer.device, buffer.host, buffer.bytes);
  }
  used.launch();
  for (const auto& buffer : outputs) stream_.copy_out(buffer->host, buffer->device, buffer->bytes);
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
      pool.lanes_.push_back(std::make_unique<Lane>(pool.engine_, pool.cuda_));
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
