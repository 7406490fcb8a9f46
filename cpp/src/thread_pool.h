#pragma once

#include <condition_variable>
#include <cstddef>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "mlpdeploy/session.h"

namespace mlpdeploy {

// A thread that does `work`. Throws Error (backend) where the system gives none.
template <typename Work>
std::thread started(Work&& work) {
  try {
    return std::thread(std::forward<Work>(work));
  } catch (const std::system_error& error) {
    throw Error(ErrorKind::backend, std::string("no more threads can be started (") + error.what() + ")", "",
                "ask for fewer threads, or raise the limit of the system");
  }
}

// A fixed number of threads that share the indices of one or several `run` calls. A call allocates nothing: its state
// is on the caller's stack. The caller waits and does not take part, so that never more than `threads` indices are
// worked on, however many callers there are.
class ThreadPool {
 public:
  using Work = void (*)(void* context, std::size_t index);

  explicit ThreadPool(int threads);  // throws Error (backend) where the system gives fewer
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool();

  // Calls work(context, i) for i in 0..count-1, and returns when all are done. The first exception is thrown again.
  void run(std::size_t count, Work work, void* context);

 private:
  struct Job {
    Work work;
    void* context;
    std::size_t count;
    std::size_t taken = 0, done = 0;
    std::exception_ptr error{};
    std::condition_variable finished{};
    Job* next = nullptr;
  };

  std::mutex mutex_;
  std::condition_variable something_to_do_;
  Job* first_ = nullptr;  // jobs with indices that nobody has taken, oldest first
  Job* last_ = nullptr;
  bool stopping_ = false;
  std::vector<std::thread> threads_;

  ThreadPool() = default;
  void serve();
};

// The pool of a session: its threads are started when the first work for them comes.
class SharedPool {
 public:
  explicit SharedPool(int threads) : threads_(threads) {}

  int threads() const noexcept { return threads_; }

  ThreadPool& get() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!pool_) pool_ = std::make_unique<ThreadPool>(threads_);
    return *pool_;
  }

 private:
  int threads_;
  std::mutex mutex_;
  std::unique_ptr<ThreadPool> pool_;
};

}  // namespace mlpdeploy
