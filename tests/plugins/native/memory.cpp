// Memory for weights: zeros, aligned, nobody else's, in large pages, and given back with the last piece.
#include "memory.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr std::size_t kMegabyte = std::size_t{1} << 20;

void expect(bool fine, char const* what) {
    if (fine) return;
    std::fprintf(stderr, "%s\n", what);
    std::exit(1);
}

struct Piece {
    std::shared_ptr<char[]> memory;
    std::size_t bytes;
    char value;
};

// Take pieces of many sizes, one larger than what is asked of the system at once, and fill each with a value of its
// own.
void take(std::vector<Piece>& pieces, int first) {
    std::size_t const sizes[] = {1, 63, 64, 65, 4096, 590'000, 2'400'000, 9'437'184};
    for (int round = 0; round < 3; ++round) {
        for (std::size_t bytes : sizes) {
            if (round == 1 && bytes == 65) bytes = 65 * kMegabyte;
            Piece piece{mlpdeploy::cpu::weight_memory(bytes), bytes, static_cast<char>(first + pieces.size())};
            expect(reinterpret_cast<std::uintptr_t>(piece.memory.get()) % 64 == 0, "not aligned");
            for (std::size_t at = 0; at < bytes; ++at) {
                if (piece.memory.get()[at] != 0) expect(false, "not zero");
                piece.memory.get()[at] = piece.value;
            }
            pieces.push_back(std::move(piece));
        }
    }
}

void check(std::vector<Piece> const& pieces) {
    for (Piece const& piece : pieces) {
        for (std::size_t at = 0; at < piece.bytes; ++at)
            if (piece.memory.get()[at] != piece.value) expect(false, "somebody else wrote there");
    }
}

std::size_t virtual_kilobytes() {
    std::ifstream file("/proc/self/status");
    for (std::string line; std::getline(file, line);)
        if (line.rfind("VmSize:", 0) == 0) return std::stoul(line.substr(7));
    return 0;
}

// Whether the system was asked for large pages at an address.
bool in_large_pages(void const* memory) {
    std::ifstream file("/proc/self/smaps");
    auto const place = reinterpret_cast<std::uintptr_t>(memory);
    bool inside = false;
    for (std::string line; std::getline(file, line);) {
        std::uintptr_t begin = 0, end = 0;
        if (std::sscanf(line.c_str(), "%lx-%lx ", &begin, &end) == 2) inside = begin <= place && place < end;
        if (inside && line.rfind("VmFlags:", 0) == 0) return line.find(" hg") != std::string::npos;
    }
    return false;
}

}  // namespace

int main() {
    {
        std::vector<Piece> warm;
        std::thread([&warm] { take(warm, 1); }).join();  // what threads cost once
    }
    std::size_t const before = virtual_kilobytes();
    {
        std::vector<Piece> mine, others;
        std::thread other([&others] { take(others, 100); });
        take(mine, 1);
        other.join();
        check(mine);
        check(others);
        expect(!std::ifstream("/sys/kernel/mm/transparent_hugepage/enabled") || in_large_pages(mine[4].memory.get()),
               "no large pages");
        std::shared_ptr<char[]> const last = mine[5].memory;
        mine.clear();
        others.clear();
        expect(last.get()[0] == 6, "a piece went with its neighbours");
    }
    expect(virtual_kilobytes() < before + 2048, "memory was not given back");
    return 0;
}
