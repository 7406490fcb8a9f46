// When rows go to a worker, and together with which others. Policy only: no thread, no lock, no clock. It is that of
// mlpdeploy/serving/batcher.py:
//
// A worker that is idle takes what waits at once, unless waiting a little can fill the batch: when more requests were
// open lately than are open now, the missing ones are probably on their way back. So one client never waits for
// company, and a group of clients that call in a loop stays together. What a wrong guess costs is bounded by
// `max_delay`. While all workers are busy, rows gather by themselves.
//
// Only rows of one shape share a batch. Rows are not shared out to the workers that are idle, as in Python: here these
// are lanes of one GPU, and the parts of a batch would share it, too.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <future>
#include <map>
#include <memory>
#include <vector>

#include "mlpdeploy/session.h"

namespace mlpdeploy {

using Clock = std::chrono::steady_clock;

// A request: one row, and where its answer goes.
struct Pending {
  std::vector<std::int64_t> shape;
  std::vector<std::byte> row;
  std::promise<std::vector<Tensor>> answer;
  Clock::time_point arrived;
};

using Batch = std::vector<std::shared_ptr<Pending>>;

// The queue of one session.
class Batcher {
 public:
  Batcher(std::size_t max_batch, Clock::duration max_delay) : max_batch_(max_batch), max_delay_(max_delay) {}

  std::size_t waiting() const noexcept { return waiting_; }

  void add(std::shared_ptr<Pending> pending);

  // Takes a request out of the queue; false where it is not there any more.
  bool cancel(const std::shared_ptr<Pending>& pending);

  // Forgets requests that a batch took: they are answered, or have failed.
  void end(std::size_t requests) noexcept { open_ -= requests; }

  // No more will come: what waits is taken at once.
  void close() noexcept { closed_ = true; }

  // The next batch for a worker that is idle since then; an empty one means that there is none yet.
  Batch take(Clock::time_point now, Clock::time_point since);

  // When `take` may give a batch that it does not give before. Something must wait.
  Clock::time_point wake_at(Clock::time_point since) const;

 private:
  static constexpr std::size_t epochs = 3;             // "lately" means the last so many batches
  using Group = std::deque<std::shared_ptr<Pending>>;  // of one shape, the oldest first

  std::size_t max_batch_;
  Clock::duration max_delay_;
  std::map<std::vector<std::int64_t>, Group> groups_;
  std::size_t waiting_ = 0;
  std::size_t open_ = 0;            // requests that have not ended, queued or not
  std::size_t peaks_[epochs] = {};  // most that were open, from one batch to the next
  std::size_t epoch_ = 0;
  bool closed_ = false;

  Clock::time_point due(const Group& group, Clock::time_point since) const;
};

}  // namespace mlpdeploy
