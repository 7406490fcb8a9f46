// Two threads that ask for memory of many sizes, more pieces at once than are kept: nobody gets what another one holds.
#include "spares.h"

#include <cstdio>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

using mlpdeploy::cpu::Spares;

namespace {

struct Piece {
    unsigned char* memory;
    std::size_t bytes;
    unsigned char mark;
};

bool is_whole(Piece const& piece) {
    for (std::size_t i = 0; i < piece.bytes; ++i) {
        if (piece.memory[i] != piece.mark) return false;
    }
    return true;
}

bool work(unsigned seed) {
    std::mt19937 random(seed);
    std::vector<Piece> held;
    for (int round = 0; round < 3000; ++round) {
        if (held.size() == 12 || (!held.empty() && random() % 2 == 0)) {
            std::size_t const which = random() % held.size();
            Piece const piece = held[which];
            if (!is_whole(piece)) return false;
            Spares::of_this_thread().give(piece.memory, piece.bytes);
            held.erase(held.begin() + static_cast<long>(which));
            continue;
        }
        std::size_t const bytes = 1 + random() % (Spares::kLargest >> random() % 20);
        auto* const memory = static_cast<unsigned char*>(Spares::of_this_thread().take(bytes));
        if (memory == nullptr) return false;
        held.push_back({memory, bytes, static_cast<unsigned char>(random())});
        std::memset(memory, held.back().mark, bytes);
    }
    for (Piece const& piece : held) Spares::of_this_thread().give(piece.memory, piece.bytes);
    void* const largest = Spares::of_this_thread().take(Spares::kLargest);
    Spares::of_this_thread().give(largest, Spares::kLargest);
    return largest != nullptr;
}

}  // namespace

int main() {
    bool fine[2] = {};
    std::thread other([&] { fine[1] = work(1); });
    fine[0] = work(0);
    other.join();
    std::puts(fine[0] && fine[1] ? "ok" : "not ok");
}
