// fuzz_x RUNS SEED FILE...: mutates the files at random and feeds the results, RUNS of them, to the target.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t bytes);

namespace {

using Input = std::vector<std::uint8_t>;

constexpr std::size_t max_bytes = 1 << 14;

class Mutator {
 public:
  Mutator(std::vector<Input> seeds, unsigned seed) : seeds_(std::move(seeds)), generator_(seed) {}

  Input next() {
    Input input = seeds_[below(seeds_.size())];
    for (std::size_t count = 1 + below(below(8) == 0 ? 32 : 4); count > 0; --count) mutate(input);
    if (input.size() > max_bytes) input.resize(max_bytes);
    return input;
  }

 private:
  std::vector<Input> seeds_;
  std::mt19937 generator_;

  std::size_t below(std::size_t limit) { return limit ? generator_() % limit : 0; }
  std::ptrdiff_t place(const Input& input) { return static_cast<std::ptrdiff_t>(below(input.size() + 1)); }
  std::uint8_t byte() { return static_cast<std::uint8_t>(generator_()); }

  void insert(Input& input, const Input& piece) {
    input.insert(input.begin() + place(input), piece.begin(), piece.end());
  }

  Input piece_of(const Input& input) {
    const auto from = place(input);
    const auto left = input.size() - static_cast<std::size_t>(from);
    return {input.begin() + from,
            input.begin() + from + static_cast<std::ptrdiff_t>(below(std::min<std::size_t>(left, 64) + 1))};
  }

  void mutate(Input& input) {
    static const std::string tokens[] = {"{",
                                         "}",
                                         "[",
                                         "]",
                                         "\"",
                                         ":",
                                         ",",
                                         "null",
                                         "true",
                                         "-0",
                                         "1e308",
                                         "1e-400",
                                         "0.1",
                                         "\\u0000",
                                         "\\ud83d",
                                         "9223372036854775808",
                                         "-1",
                                         "\xF0\x9F\x99\x82",
                                         "\xC0\x80",
                                         std::string("\0\0\0\0", 4),
                                         "\xFF\xFF\xFF\xFF",
                                         std::string("\x05\0\0\0", 4),
                                         std::string("\0\x10\0\0", 4),
                                         std::string(300, '['),
                                         "\"weights\"",
                                         "\"sha256\""};
    switch (below(8)) {
      case 0:
        if (!input.empty()) input[below(input.size())] ^= static_cast<std::uint8_t>(1U << below(8));
        return;
      case 1:
        if (!input.empty()) input[below(input.size())] = byte();
        return;
      case 2:
        insert(input, {byte()});
        return;
      case 3: {
        const Input gone = piece_of(input);
        const auto from = static_cast<std::ptrdiff_t>(below(input.size() - gone.size() + 1));
        input.erase(input.begin() + from, input.begin() + from + static_cast<std::ptrdiff_t>(gone.size()));
        return;
      }
      case 4:
        insert(input, piece_of(input));
        return;
      case 5:
        insert(input, piece_of(seeds_[below(seeds_.size())]));
        return;
      case 6: {
        const std::string& token = tokens[below(std::size(tokens))];
        insert(input, Input(token.begin(), token.end()));
        return;
      }
      default:
        input.resize(below(input.size() + 1));
    }
  }
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: %s RUNS SEED FILE...\n", argv[0]);
    return 2;
  }
  std::vector<Input> seeds;
  for (int i = 3; i < argc; ++i) {
    std::ifstream file(argv[i], std::ios::binary);
    seeds.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  const auto start = std::chrono::steady_clock::now();
  Mutator mutator(std::move(seeds), static_cast<unsigned>(std::atoi(argv[2])));
  const long runs = std::atol(argv[1]);
  for (long i = 0; i < runs; ++i) {
    const Input input = mutator.next();
    LLVMFuzzerTestOneInput(input.data(), input.size());
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  std::printf("{\"inputs\": %ld, \"seed\": %s, \"seconds\": %.1f, \"crashes\": 0}\n", runs, argv[2], seconds.count());
}
