// Small pieces of memory that a thread keeps for its next task.
#pragma once

#include <cstddef>

namespace mlpdeploy::cpu {

// Pieces come in powers of two; of each size a thread keeps as many as tasks have at the same time. They go when it
// ends.
class Spares {
public:
    static constexpr std::size_t kLargest = std::size_t{1} << 20;

    static Spares& of_this_thread();

    ~Spares();
    Spares(Spares const&) = delete;
    Spares& operator=(Spares const&) = delete;

    // Return at least so many bytes, at most kLargest, or null where there are none.
    void* take(std::size_t bytes) noexcept;
    // Take back what `take` gave for so many bytes.
    void give(void* memory, std::size_t bytes) noexcept;

private:
    Spares() = default;

    static constexpr int kFirst = 12, kLast = 20;  // powers of two
    static constexpr int kKept = 3;                // of each size
    struct Pieces {
        void* memory[kKept];
        int count;
    };
    static int power_of(std::size_t bytes);

    Pieces pieces_[kLast - kFirst + 1] = {};
};

}  // namespace mlpdeploy::cpu
