#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace mlpdeploy {

enum class Filter { bilinear, bicubic };

// A part of one axis, in pixels: `first`, `first` + 1, ... `first` + `count` - 1.
struct Span {
  int first = 0, count = 0;
};

struct Pixels {
  const std::uint8_t* data;
  int height, width, channels;  // channels interleaved: 1 or 3
  std::ptrdiff_t stride_bytes;
};

// What Pillow's resize with antialiasing to (height, width) gives, bit for bit, but only rows `rows` and columns
// `columns` of it: (rows.count, columns.count, channels).
//
// Each axis is a pass of its own, and each pass rounds to 8 bits. A pixel is the sum of the source pixels under the
// filter, which is stretched where the picture shrinks, times weights that are normalized to 1 and rounded to 22 bits
// after the point. The horizontal pass comes first, except, since Pillow 13, where the height loses more than twice as
// many pixels as the width.
std::vector<std::uint8_t> resample(const Pixels& source, int height, int width, Span rows, Span columns, Filter filter);

}  // namespace mlpdeploy
