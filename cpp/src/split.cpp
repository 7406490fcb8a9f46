#include "split.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace mlpdeploy {

std::size_t Binding::row_bytes() const noexcept {
  std::size_t bytes = item_bytes(dtype);
  for (std::size_t axis = 1; axis < rank; ++axis) bytes *= static_cast<std::size_t>(shape[axis]);
  return bytes;
}

Binding Binding::rows(std::int64_t start, std::int64_t stop) const noexcept {
  Binding part = *this;
  part.shape[0] = stop - start;
  if (data) part.data = static_cast<std::byte*>(data) + row_bytes() * static_cast<std::size_t>(start);
  return part;
}

Chunk next_chunk(const RowRange* ranges, std::size_t count, std::int64_t start, std::int64_t rows,
                 std::int64_t limit) noexcept {
  std::int64_t most = 0;
  for (std::size_t i = 0; i < count; ++i) most = std::max(most, ranges[i].most);
  if (limit > 0) most = std::min(most, limit);
  Chunk chunk;
  chunk.start = start;
  chunk.stop = std::min(start + most, rows);
  const std::int64_t wanted = chunk.rows();
  const RowRange* best = nullptr;
  const RowRange* above = nullptr;  // between two ranges, or below all: the next one up
  for (const RowRange* range = ranges; range != ranges + count; ++range) {
    if (range->least > wanted) {
      if (!above || range->least < above->least) above = range;
    } else if (wanted <= range->most && (!best || std::abs(range->best - wanted) < std::abs(best->best - wanted))) {
      best = range;
    }
  }
  chunk.computed = best ? wanted : above->least;
  chunk.profile = (best ? best : above)->profile;
  return chunk;
}

std::int64_t next_of_few_sizes(std::int64_t rows) noexcept {
  std::int64_t apart = 1;
  while (8 * apart <= rows) apart *= 2;
  return (rows + apart - 1) / apart * apart;
}

void copy_padded(const Binding& part, std::int64_t computed, void* out) noexcept {
  const std::size_t row_bytes = part.row_bytes(), bytes = row_bytes * static_cast<std::size_t>(part.shape[0]);
  std::memcpy(out, part.data, bytes);
  std::memset(static_cast<std::byte*>(out) + bytes, 0, row_bytes * static_cast<std::size_t>(computed) - bytes);
}

}  // namespace mlpdeploy
