#include <doctest/doctest.h>

#include <atomic>
#include <stdexcept>
#include <thread>
#include <vector>

#include "thread_pool.h"

using mlpdeploy::ThreadPool;

TEST_CASE("every index is worked on once, also with several callers") {
  ThreadPool pool(3);
  std::vector<std::thread> callers;
  std::atomic<int> wrong{0};
  for (int caller = 0; caller < 6; ++caller) {
    callers.emplace_back([&] {
      for (std::size_t count : {0U, 1U, 2U, 50U}) {
        std::vector<std::atomic<int>> hits(count);
        pool.run(
            count, [](void* context, std::size_t i) { ++(*static_cast<std::vector<std::atomic<int>>*>(context))[i]; },
            &hits);
        for (const auto& hit : hits) wrong += hit != 1;
      }
    });
  }
  for (auto& caller : callers) caller.join();
  CHECK(wrong == 0);
}

TEST_CASE("an exception reaches its caller, after all other indices are done") {
  ThreadPool pool(2);
  std::atomic<int> done{0};
  const auto work = [](void* context, std::size_t index) {
    if (index == 3) throw std::runtime_error("three");
    ++*static_cast<std::atomic<int>*>(context);
  };
  CHECK_THROWS_WITH(pool.run(10, work, &done), "three");
  CHECK(done == 9);
  CHECK_NOTHROW(pool.run(3, work, &done));
}
