// How a batch of any size becomes runs that a backend takes: split where it is too large, padded where it is too small.
// The rules are those of Python's Session.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend.h"

namespace mlpdeploy {

// The batches that one way of running takes: a TensorRT profile's, or the one of a fixed model.
struct RowRange {
  std::int64_t least = 1, best = 1, most = 1;
  int profile = 0;
};

// Rows start..stop of a batch, computed as `computed` rows; those beyond stop are padding.
struct Chunk {
  std::int64_t start = 0, stop = 0, computed = 0;
  int profile = 0;

  std::int64_t rows() const noexcept { return stop - start; }
};

// The chunk that begins at row `start` of `rows`: as large as the ranges and `limit` (0: none) allow, in the range
// whose best is nearest. Rows are only added where no range takes so few.
Chunk next_chunk(const RowRange* ranges, std::size_t count, std::int64_t start, std::int64_t rows,
                 std::int64_t limit = 0) noexcept;

// So many rows as the next of few sizes has, of which each has a context and a graph of its own. Up to seven rows are
// exact; above, the sizes are a quarter of a power of two apart: 8, 10, 12, 14, 16, 20, 24, 28, 32, 40.
std::int64_t next_of_few_sizes(std::int64_t rows) noexcept;

// Copies a part's rows to `out`, and zeros behind them up to `computed` rows.
void copy_padded(const Binding& part, std::int64_t computed, void* out) noexcept;

}  // namespace mlpdeploy
