#include "spares.h"

#include <cstdlib>

namespace mlpdeploy::cpu {

Spares& Spares::of_this_thread() {
    static thread_local Spares spares;
    return spares;
}

Spares::~Spares() {
    for (Pieces& kept : pieces_) {
        while (kept.count > 0) std::free(kept.memory[--kept.count]);
    }
}

int Spares::power_of(std::size_t bytes) {
    int power = kFirst;
    while ((std::size_t{1} << power) < bytes) ++power;
    return power;
}

void* Spares::take(std::size_t bytes) noexcept {
    int const power = power_of(bytes);
    Pieces& kept = pieces_[power - kFirst];
    return kept.count > 0 ? kept.memory[--kept.count] : std::malloc(std::size_t{1} << power);
}

void Spares::give(void* memory, std::size_t bytes) noexcept {
    if (memory == nullptr) return;
    Pieces& kept = pieces_[power_of(bytes) - kFirst];
    if (kept.count < kKept) {
        kept.memory[kept.count++] = memory;
    } else {
        std::free(memory);
    }
}

}  // namespace mlpdeploy::cpu
