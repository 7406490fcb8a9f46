// When rows go to a worker, on a clock of the test's own.
#include <doctest/doctest.h>

#include <chrono>
#include <memory>
#include <vector>

#include "batcher.h"

using namespace mlpdeploy;
using namespace std::chrono_literals;

namespace {

constexpr auto delay = 2ms;

struct Queue {
  Batcher batcher{4, delay};
  Clock::time_point now{}, since{};  // since: when the worker became idle

  std::shared_ptr<Pending> add(std::int64_t side = 32) {
    auto pending = std::make_shared<Pending>();
    pending->shape = {1, 3, side, side};
    pending->arrived = now;
    batcher.add(pending);
    return pending;
  }

  void add_rows(int count, std::int64_t side = 32) {
    for (int i = 0; i < count; ++i) add(side);
  }

  Batch take() { return batcher.take(now, since); }
};

}  // namespace

TEST_CASE("one client is never held back") {
  Queue queue;
  for (int i = 0; i < 10; ++i) {
    queue.add();
    CHECK(queue.take().size() == 1);
    queue.batcher.end(1);
  }
  CHECK(queue.take().empty());
}

TEST_CASE("clients that call in a loop stay together") {
  Queue queue;
  queue.add_rows(3);
  for (int round = 0; round < 10; ++round) {
    CHECK(queue.take().size() == 3);
    queue.batcher.end(3);
    for (int client = 0; client < 3; ++client) {
      CHECK(queue.take().empty());  // the others are on their way
      queue.add();
    }
  }
}

TEST_CASE("what is held back waits for the delay, from when it came or when a worker became free") {
  Queue queue;
  queue.add_rows(3);
  CHECK(queue.take().size() == 3);
  queue.now += 1ms;
  queue.add();
  queue.since = queue.now += 5ms;
  queue.batcher.end(3);
  CHECK(queue.batcher.wake_at(queue.since) == queue.since + delay);
  CHECK(queue.batcher.wake_at(Clock::time_point{}) == Clock::time_point{} + 1ms + delay);
  queue.now += delay - 1us;
  CHECK(queue.take().empty());
  queue.now += 1us;
  CHECK(queue.take().size() == 1);
}

TEST_CASE("clients that left are forgotten after three batches") {
  Queue queue;
  queue.add_rows(3);
  CHECK(queue.take().size() == 3);
  queue.batcher.end(3);
  for (int batch = 0; batch < 3; ++batch) {
    queue.add();
    CHECK(queue.take().empty());
    queue.now += delay;
    CHECK(queue.take().size() == 1);
    queue.batcher.end(1);
  }
  queue.add();
  CHECK(queue.take().size() == 1);
}

TEST_CASE("a full batch waits for nobody, and what another worker computes is not missing") {
  Queue queue;
  queue.add_rows(9);
  CHECK(queue.take().size() == 4);
  CHECK(queue.take().size() == 4);
  CHECK(queue.take().size() == 1);  // all nine are open
  queue.batcher.end(4);
  queue.add_rows(3);
  CHECK(queue.take().empty());
  queue.add();
  CHECK(queue.take().size() == 4);
}

TEST_CASE("shapes have batches of their own, the oldest first, and one that is held back does not block another") {
  Queue queue;
  queue.add_rows(2);
  queue.now += 1us;
  queue.add_rows(4, 16);
  const Batch first = queue.take(), second = queue.take();
  CHECK((first.size() == 2 && first[0]->shape[2] == 32));
  CHECK((second.size() == 4 && second[0]->shape[2] == 16));
  queue.batcher.end(6);
  queue.add();
  queue.now += 1us;
  queue.add_rows(3, 64);
  CHECK(queue.take().empty());
  queue.add(64);
  const Batch full = queue.take();
  CHECK((full.size() == 4 && full[0]->shape[2] == 64));
  CHECK(queue.batcher.waiting() == 1);
}

TEST_CASE("a cancelled request leaves the queue once, and one that a batch took stays there") {
  Queue queue;
  const auto first = queue.add(), second = queue.add();
  CHECK(queue.batcher.cancel(first));
  CHECK_FALSE(queue.batcher.cancel(first));
  CHECK(queue.batcher.waiting() == 1);
  CHECK(queue.take().empty());  // it is not open any more, and may come again
  queue.now += delay;
  CHECK(queue.take() == Batch{second});
  CHECK_FALSE(queue.batcher.cancel(second));
  CHECK(queue.batcher.waiting() == 0);
}

TEST_CASE("when no more will come nothing is held back") {
  Queue queue;
  queue.add_rows(3);
  CHECK(queue.take().size() == 3);
  queue.batcher.end(3);
  queue.add();
  CHECK(queue.take().empty());
  queue.batcher.close();
  CHECK(queue.take().size() == 1);
}
