// A lane is one stream with its scratch memory and its slots; a pool lends lanes to threads. While one lane computes,
// another copies: that is the double buffering of a batch that is split.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

#include "frame_kernel.h"
#include "slot.h"

namespace mlpdeploy {

// Used by one thread at a time. The GPU's context must be current in every call, and at the end.
class Lane {
 public:
  Lane(const Engine& engine, const Cuda& cuda, const FrameKernel& kernel);

  // Puts copies in, work and copies out of some rows into the stream; `finish` waits for them. The feeds are copied
  // before it returns. Results without data are not handed out. Throws Error (usage, backend), CudaFailure.
  void start(const Feeds& feeds, const Results& results, const Chunk& chunk);

  // Waits for what was started, if anything was, and hands its rows out. Throws CudaFailure.
  void finish();

  // The same after a failure, without results: nothing of it is in the stream any more.
  void drain() noexcept;

  // The slot for some rows; made where there is none.
  Slot& slot(const Feeds& feeds, const Chunk& chunk);
  void add_notes(std::vector<GraphNote>& notes) const;

 private:
  const Engine& engine_;
  const Cuda& cuda_;
  const FrameKernel& kernel_;
  Stream stream_;
  DeviceMemory scratch_;
  std::vector<std::unique_ptr<Slot>> slots_;  // the last used one first
  Slot* pending_ = nullptr;
  Chunk chunk_;
  Results results_;

  void start_frames(const FrameBatch& batch, Slot& used, const Chunk& chunk) const;
};

// Two lanes fill a GPU with copies and work; each costs the engine's scratch memory. Not measured yet.
constexpr std::size_t most_lanes = 2;

class LanePool {
 public:
  LanePool(const Engine& engine, const Cuda& cuda, const FrameKernel& kernel)
      : engine_(engine), cuda_(cuda), kernel_(kernel) {}

  // Some lanes, lent until the end of the block; those in which something is left are drained then.
  class Loan {
   public:
    Loan(LanePool& pool, std::size_t wanted, bool all);
    Loan(const Loan&) = delete;
    Loan& operator=(const Loan&) = delete;
    ~Loan();

    std::size_t count() const noexcept { return count_; }
    Lane& operator[](std::size_t index) const noexcept { return *lanes_[index]; }

   private:
    LanePool& pool_;
    Lane* lanes_[most_lanes] = {};
    std::size_t count_ = 0;
  };

  // One lane, waited for, and as many more as are wanted and free: a thread that has a lane never waits for another.
  Loan lend(std::size_t wanted) { return {*this, wanted, false}; }

  // All lanes, when nobody has any.
  Loan lend_all() { return {*this, most_lanes, true}; }

 private:
  const Engine& engine_;
  const Cuda& cuda_;
  const FrameKernel& kernel_;
  std::mutex mutex_;
  std::condition_variable returned_;
  std::vector<std::unique_ptr<Lane>> lanes_;
  Lane* free_[most_lanes] = {};
  std::size_t free_count_ = 0;
};

}  // namespace mlpdeploy
