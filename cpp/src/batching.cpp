#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <thread>

#include "bindings.h"
#include "mlpdeploy/session.h"
#include "text.h"
#include "thread_pool.h"

namespace mlpdeploy {

namespace {

using Clock = std::chrono::steady_clock;

// A request that waits: one row, and where its answer goes.
struct Pending {
  std::vector<std::int64_t> shape;
  std::vector<std::byte> row;
  std::promise<std::vector<Tensor>> answer;
  Clock::time_point arrived;
};

using Batch = std::vector<std::shared_ptr<Pending>>;

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
  std::deque<std::shared_ptr<Pending>> waiting;
  bool stopping = false;
  std::once_flag joined;
  std::thread worker;

  Queue(const Session& s, const BatchingOptions& o) : session(s), options(o) {}

  bool cancel(const std::shared_ptr<Pending>& pending) {
    {
      const std::lock_guard<std::mutex> lock(mutex);
      const auto place = std::find(waiting.begin(), waiting.end(), pending);
      if (place == waiting.end()) return false;
      waiting.erase(place);
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

  // Waits until a batch is full, its oldest request has waited long enough, or nothing more will come. Empty at the
  // end.
  Batch next_batch() {
    std::unique_lock<std::mutex> lock(mutex);
    const auto rows = static_cast<std::size_t>(options.max_batch);
    while (true) {
      arrived.wait(lock, [&] { return stopping || !waiting.empty(); });
      if (waiting.empty()) return {};
      const auto deadline = waiting.front()->arrived + options.max_delay;
      arrived.wait_until(lock, deadline, [&] { return stopping || waiting.empty() || waiting.size() >= rows; });
      if (!waiting.empty()) break;  // all of them may have been cancelled meanwhile
    }
    Batch batch;
    // Requests of another image size wait for a batch of their own.
    const auto shape = waiting.front()->shape;
    for (auto place = waiting.begin(); place != waiting.end() && batch.size() < rows;) {
      if ((*place)->shape == shape) {
        batch.push_back(std::move(*place));
        place = waiting.erase(place);
      } else {
        ++place;
      }
    }
    lock.unlock();
    room.notify_all();
    return batch;
  }

  void answer(const Batch& batch) const {
    try {
      const TensorSpec& input = session.inputs().front();
      auto shape = batch.front()->shape;
      shape[0] = static_cast<std::int64_t>(batch.size());
      std::vector<std::byte> rows;
      rows.reserve(batch.size() * batch.front()->row.size());
      for (const auto& pending : batch) rows.insert(rows.end(), pending->row.begin(), pending->row.end());
      const auto outputs = session.run({{input.name, input.dtype, shape.data(), shape.size(), rows.data()}});
      std::vector<std::vector<Tensor>> answers;
      for (std::size_t i = 0; i < batch.size(); ++i) answers.push_back(row_of(outputs, i));
      for (std::size_t i = 0; i < batch.size(); ++i) batch[i]->answer.set_value(std::move(answers[i]));
    } catch (...) {
      // set_value itself cannot fail: nobody else has these promises. So none of them has an answer yet.
      for (const auto& pending : batch) pending->answer.set_exception(std::current_exception());
    }
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
  queue_->worker = started([queue = queue_.get()] { queue->serve(); });
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
    const auto room = [&] { return queue_->stopping || queue_->waiting.size() < queue_->options.queue_limit; };
    if (!wait && !room()) return std::nullopt;
    queue_->room.wait(lock, room);
    if (queue_->stopping) throw Error(ErrorKind::usage, "this session was shut down", "", "make another");
    pending->arrived = Clock::now();
    queue_->waiting.push_back(std::move(pending));
  }
  queue_->arrived.notify_one();
  return request;
}

void BatchingSession::shutdown() {
  {
    const std::lock_guard<std::mutex> lock(queue_->mutex);
    queue_->stopping = true;
  }
  queue_->arrived.notify_all();
  queue_->room.notify_all();
  std::call_once(queue_->joined, [this] { queue_->worker.join(); });
}

}  // namespace mlpdeploy
