#include <condition_variable>
#include <mutex>
#include <thread>

#include "batcher.h"
#include "bindings.h"
#include "mlpdeploy/session.h"
#include "text.h"
#include "thread_pool.h"

namespace mlpdeploy {

namespace {

Error cancelled() { return {ErrorKind::cancelled, "the request was cancelled"}; }

// Row `index` of every output, each as a tensor of one row.
std::vector<Tensor> row_of(const std::vector<Tensor>& outputs, std::size_t index) {
  std::vector<Tensor> row;
  for (const Tensor& output : outputs) {
    Tensor& one = row.emplace_back();
    one.name = output.name;
    one.dtype = output.dtype;
    one.shape = output.shape;
    one.shape[0] = 1;
    const std::size_t bytes = one.count() * item_bytes(one.dtype);
    const std::byte* from = output.bytes.data() + bytes * index;
    one.bytes.assign(from, from + bytes);
  }
  return row;
}

}  // namespace

struct BatchingSession::Queue {
  const Session& session;
  const BatchingOptions options;
  std::mutex mutex;
  std::condition_variable arrived, room;
  Batcher batcher;
  bool stopping = false;
  std::once_flag joined;
  std::vector<std::thread> workers;

  Queue(const Session& s, const BatchingOptions& o)
      : session(s), options(o), batcher(static_cast<std::size_t>(o.max_batch), o.max_delay) {}

  bool cancel(const std::shared_ptr<Pending>& pending) {
    {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!batcher.cancel(pending)) return false;
    }
    room.notify_one();
    pending->answer.set_exception(std::make_exception_ptr(cancelled()));
    return true;
  }

  void serve() {
    while (true) {
      const Batch batch = next_batch();
      if (batch.empty()) return;
      answer(batch);
    }
  }

  // Waits until there is a batch, or until nothing more will come: then it is empty.
  Batch next_batch() {
    const auto since = Clock::now();
    std::unique_lock<std::mutex> lock(mutex);
    while (true) {
      Batch batch = batcher.take(Clock::now(), since);
      if (!batch.empty()) {
        // What is left is for another worker, which may have slept until now: a request wakes only one of them.
        if (batcher.waiting()) arrived.notify_one();
        lock.unlock();
        room.notify_all();
        return batch;
      }
      if (batcher.waiting()) {
        arrived.wait_until(lock, batcher.wake_at(since));
      } else if (stopping) {
        return {};
      } else {
        arrived.wait(lock);
      }
    }
  }

  void answer(const Batch& batch) {
    std::vector<std::vector<Tensor>> answers;
    std::exception_ptr failure;
    try {
      answers = answers_to(batch);
    } catch (...) {
      failure = std::current_exception();
    }
    {
      // Before anybody has an answer: who asks again at once is not to be counted twice.
      const std::lock_guard<std::mutex> lock(mutex);
      batcher.end(batch.size());
    }
    // This cannot fail: nobody else has these promises.
    for (std::size_t i = 0; i < batch.size(); ++i) {
      if (failure) {
        batch[i]->answer.set_exception(failure);
      } else {
        batch[i]->answer.set_value(std::move(answers[i]));
      }
    }
  }

  std::vector<std::vector<Tensor>> answers_to(const Batch& batch) const {
    const TensorSpec& input = session.inputs().front();
    auto shape = batch.front()->shape;
    shape[0] = static_cast<std::int64_t>(batch.size());
    std::vector<std::byte> rows;
    rows.reserve(batch.size() * batch.front()->row.size());
    for (const auto& pending : batch) rows.insert(rows.end(), pending->row.begin(), pending->row.end());
    const auto outputs = session.run({{input.name, input.dtype, shape.data(), shape.size(), rows.data()}});
    std::vector<std::vector<Tensor>> answers;
    for (std::size_t i = 0; i < batch.size(); ++i) answers.push_back(row_of(outputs, i));
    return answers;
  }

  std::shared_ptr<Pending> pending_from(const TensorView& row) const {
    const Feeds feeds = checked_feeds(session.inputs(), &row, 1);
    if (feeds.rows() != 1) {
      throw Error(ErrorKind::usage, "a request of " + std::to_string(feeds.rows()) + " rows", "one row");
    }
    auto pending = std::make_shared<Pending>();
    pending->shape.assign(row.shape, row.shape + row.rank);
    const auto* data = static_cast<const std::byte*>(row.data);
    pending->row.assign(data, data + feeds.tensors[0].row_bytes());
    return pending;
  }
};

bool BatchingSession::Request::cancel() {
  const auto pending = std::static_pointer_cast<Pending>(pending_.lock());
  const auto queue = std::static_pointer_cast<Queue>(queue_.lock());
  return pending && queue && queue->cancel(pending);
}

BatchingSession::BatchingSession(const Session& session, const BatchingOptions& options) {
  if (options.max_batch < 1 || options.queue_limit < 1 || options.max_delay.count() < 0) {
    throw Error(ErrorKind::usage, "a batch, a queue or a delay below its limit",
                "max_batch and queue_limit of at least 1, max_delay of at least 0");
  }
  if (session.inputs().size() != 1) {
    throw Error(ErrorKind::usage, "a model with " + std::to_string(session.inputs().size()) + " inputs", "one input");
  }
  queue_ = std::make_shared<Queue>(session, options);
  try {
    for (int i = 0; i < session.lanes(); ++i) {
      queue_->workers.push_back(started([queue = queue_.get()] { queue->serve(); }));
    }
  } catch (...) {
    shutdown();  // those that were started
    throw;
  }
}

BatchingSession::~BatchingSession() { shutdown(); }

BatchingSession::Request BatchingSession::submit(const TensorView& row) {
  auto request = enqueue(row, true);
  return std::move(*request);
}

std::optional<BatchingSession::Request> BatchingSession::try_submit(const TensorView& row) {
  return enqueue(row, false);
}

std::optional<BatchingSession::Request> BatchingSession::enqueue(const TensorView& row, bool wait) {
  auto pending = queue_->pending_from(row);
  Request request;
  request.future_ = pending->answer.get_future();
  request.pending_ = pending;
  request.queue_ = queue_;
  {
    std::unique_lock<std::mutex> lock(queue_->mutex);
    const auto room = [&] { return queue_->stopping || queue_->batcher.waiting() < queue_->options.queue_limit; };
    if (!wait && !room()) return std::nullopt;
    queue_->room.wait(lock, room);
    if (queue_->stopping) throw Error(ErrorKind::usage, "this session was shut down", "", "make another");
    pending->arrived = Clock::now();
    queue_->batcher.add(std::move(pending));
  }
  queue_->arrived.notify_one();
  return request;
}

void BatchingSession::shutdown() {
  {
    const std::lock_guard<std::mutex> lock(queue_->mutex);
    queue_->stopping = true;
    queue_->batcher.close();
  }
  queue_->arrived.notify_all();
  queue_->room.notify_all();
  std::call_once(queue_->joined, [this] {
    for (auto& worker : queue_->workers) worker.join();
  });
}

}  // namespace mlpdeploy
