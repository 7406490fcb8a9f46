// What the operators need of whoever calls them: memory, and a loop that runs on the caller's threads.
#pragma once

#include <atomic>
#include <cstddef>
#include <new>

namespace mlpdeploy::cpu {

class Host {
public:
    virtual ~Host() = default;
    // Call task(data, i) for every i < count, on any threads, and return when all are done.
    virtual void for_each(long count, void (*task)(void* data, std::size_t i), void* data) = 0;
    // Memory for a part of one run; allocate is called by any thread and returns null where there is none. The thread
    // that asked gives back what it got, and says the same number of bytes.
    virtual void* allocate(std::size_t bytes) noexcept = 0;
    virtual void release(void* memory, std::size_t bytes) noexcept = 0;
};

// Call task(i) for every i < count; an exception of a task is thrown again as std::bad_alloc, the only kind there is.
template <typename Task>
void for_each(Host& host, long count, Task const& task) {
    struct Call {
        Task const& task;
        std::atomic<bool> failed{false};
    } call{task};
    host.for_each(
        count,
        [](void* data, std::size_t i) {
            auto& call = *static_cast<Call*>(data);
            try {
                call.task(static_cast<long>(i));
            } catch (...) {
                call.failed = true;
            }
        },
        &call);
    if (call.failed) throw std::bad_alloc();
}

// Floats from the host, on a cache line's boundary.
class Scratch {
public:
    Scratch(Host& host, long floats)
        : host_(host),
          bytes_(static_cast<std::size_t>(floats) * sizeof(float) + kLine),
          memory_(host.allocate(bytes_)) {
        if (memory_ == nullptr) throw std::bad_alloc();
        auto const address = reinterpret_cast<std::size_t>(memory_);
        floats_ = reinterpret_cast<float*>((address + kLine - 1) / kLine * kLine);
    }
    ~Scratch() { host_.release(memory_, bytes_); }
    Scratch(Scratch const&) = delete;
    Scratch& operator=(Scratch const&) = delete;

    float* get() const { return floats_; }

private:
    static constexpr std::size_t kLine = 64;
    Host& host_;
    std::size_t bytes_;
    void* memory_;
    float* floats_;
};

}  // namespace mlpdeploy::cpu
