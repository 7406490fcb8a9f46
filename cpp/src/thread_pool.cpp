#include "thread_pool.h"

namespace mlpdeploy {

// By way of the other one, so that the destructor ends the threads that were started where the next one cannot be.
ThreadPool::ThreadPool(int threads) : ThreadPool() {
  threads_.reserve(static_cast<std::size_t>(threads));
  for (int i = 0; i < threads; ++i) threads_.push_back(started([this] { serve(); }));
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  something_to_do_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void ThreadPool::run(std::size_t count, Work work, void* context) {
  if (count == 0) return;
  Job job{work, context, count};
  std::unique_lock<std::mutex> lock(mutex_);
  (last_ ? last_->next : first_) = &job;
  last_ = &job;
  something_to_do_.notify_all();
  job.finished.wait(lock, [&] { return job.done == job.count; });
  if (job.error) std::rethrow_exception(job.error);
}

void ThreadPool::serve() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    something_to_do_.wait(lock, [this] { return stopping_ || first_; });
    if (!first_) return;
    Job& job = *first_;
    const std::size_t index = job.taken++;
    if (job.taken == job.count) {
      first_ = job.next;
      if (!first_) last_ = nullptr;
    }
    lock.unlock();
    std::exception_ptr error;
    try {
      job.work(job.context, index);
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    if (error && !job.error) job.error = error;
    // Notified under the lock: the job may vanish as soon as its caller sees the count.
    if (++job.done == job.count) job.finished.notify_one();
  }
}

}  // namespace mlpdeploy
