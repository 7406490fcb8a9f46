#include "resample.h"

#include <algorithm>
#include <cmath>

namespace mlpdeploy {

namespace {

constexpr int weight_bits = 22;  // 8 of the pixel and 2 for overshoot are left of 32
constexpr std::int32_t half = 1 << (weight_bits - 1);

double bilinear(double x) {
  x = std::abs(x);
  return x < 1.0 ? 1.0 - x : 0.0;
}

// Cubic convolution with a = -1/2.
double bicubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
  return 0.0;
}

// For each output pixel of a span: which source pixels count, and how much.
struct Taps {
  std::vector<Span> sources;
  std::vector<std::int32_t> weights;  // `stride` a pixel
  std::size_t stride = 0;

  const std::int32_t* of(int index) const { return weights.data() + static_cast<std::size_t>(index) * stride; }
};

Taps taps_of(int source_size, int size, Span span, Filter filter) {
  const double scale = static_cast<double>(source_size) / size;
  const double stretch = std::max(scale, 1.0);
  const double reach = (filter == Filter::bicubic ? 2.0 : 1.0) * stretch;
  Taps taps;
  taps.stride = static_cast<std::size_t>(std::ceil(reach)) * 2 + 1;
  taps.sources.resize(static_cast<std::size_t>(span.count));
  taps.weights.resize(static_cast<std::size_t>(span.count) * taps.stride);
  std::vector<double> exact(taps.stride);
  for (int i = 0; i < span.count; ++i) {
    const double centre = (span.first + i + 0.5) * scale;
    const int first = std::max(static_cast<int>(centre - reach + 0.5), 0);
    const int count = std::min(static_cast<int>(centre + reach + 0.5), source_size) - first;
    double sum = 0.0;
    for (int k = 0; k < count; ++k) {
      const double distance = (k + first - centre + 0.5) * (1.0 / stretch);
      exact[static_cast<std::size_t>(k)] = filter == Filter::bicubic ? bicubic(distance) : bilinear(distance);
      sum += exact[static_cast<std::size_t>(k)];
    }
    std::int32_t* weights = taps.weights.data() + static_cast<std::size_t>(i) * taps.stride;
    for (int k = 0; k < count; ++k) {
      const double share = (sum != 0.0 ? exact[static_cast<std::size_t>(k)] / sum : 0.0) * (1 << weight_bits);
      weights[k] = static_cast<std::int32_t>(share < 0 ? share - 0.5 : share + 0.5);
    }
    taps.sources[static_cast<std::size_t>(i)] = {first, count};
  }
  return taps;
}

std::uint8_t rounded(std::int32_t sum) { return static_cast<std::uint8_t>(std::clamp(sum >> weight_bits, 0, 255)); }

template <int channels>
void across(const std::uint8_t* row, const Taps& taps, std::uint8_t* out) {
  const int count = static_cast<int>(taps.sources.size());
  for (int x = 0; x < count; ++x) {
    const Span source = taps.sources[static_cast<std::size_t>(x)];
    const std::int32_t* weights = taps.of(x);
    const std::uint8_t* pixel = row + std::ptrdiff_t{source.first} * channels;
    std::int32_t sums[channels];
    std::fill(sums, sums + channels, half);
    for (int k = 0; k < source.count; ++k) {
      for (int c = 0; c < channels; ++c) sums[c] += pixel[k * channels + c] * weights[k];
    }
    for (int c = 0; c < channels; ++c) *out++ = rounded(sums[c]);
  }
}

// An array of pixels that a pass has made.
struct Made {
  int height, width, channels;
  std::vector<std::uint8_t> values;

  Made(int h, int w, int c) : height(h), width(w), channels(c), values(row_bytes() * static_cast<std::size_t>(h)) {}

  std::size_t row_bytes() const { return static_cast<std::size_t>(width) * static_cast<std::size_t>(channels); }
  std::uint8_t* row(int y) { return values.data() + row_bytes() * static_cast<std::size_t>(y); }
  Pixels pixels() const { return {values.data(), height, width, channels, static_cast<std::ptrdiff_t>(row_bytes())}; }
};

// All rows of the source.
Made horizontal(const Pixels& source, const Taps& taps) {
  Made made(source.height, static_cast<int>(taps.sources.size()), source.channels);
  for (int y = 0; y < made.height; ++y) {
    const std::uint8_t* row = source.data + std::ptrdiff_t{y} * source.stride_bytes;
    source.channels == 3 ? across<3>(row, taps, made.row(y)) : across<1>(row, taps, made.row(y));
  }
  return made;
}

// All columns of the source.
Made vertical(const Pixels& source, const Taps& taps) {
  Made made(static_cast<int>(taps.sources.size()), source.width, source.channels);
  const std::size_t row_bytes = made.row_bytes();
  std::vector<std::int32_t> sums(row_bytes);
  for (int y = 0; y < made.height; ++y) {
    const Span from = taps.sources[static_cast<std::size_t>(y)];
    std::fill(sums.begin(), sums.end(), half);
    for (int k = 0; k < from.count; ++k) {
      const std::int32_t weight = taps.of(y)[k];
      const std::uint8_t* row = source.data + std::ptrdiff_t{from.first + k} * source.stride_bytes;
      for (std::size_t x = 0; x < row_bytes; ++x) sums[x] += row[x] * weight;
    }
    std::uint8_t* out = made.row(y);
    for (std::size_t x = 0; x < row_bytes; ++x) out[x] = rounded(sums[x]);
  }
  return made;
}

// The source's pixels that the outputs of `taps` need; the taps are counted from the first of them afterwards.
Span taken_from(Taps& taps) {
  const Span last = taps.sources.back();
  const Span all{taps.sources.front().first, last.first + last.count - taps.sources.front().first};
  for (Span& source : taps.sources) source.first -= all.first;
  return all;
}

}  // namespace

std::vector<std::uint8_t> resample(const Pixels& source, int height, int width, Span rows, Span columns,
                                   Filter filter) {
  if (rows.count < 1 || columns.count < 1) return {};
  const bool changes_height = height != source.height, changes_width = width != source.width;
  Taps down, sideways;
  if (changes_height) {
    down = taps_of(source.height, height, rows, filter);
    rows = taken_from(down);
  }
  if (changes_width) {
    sideways = taps_of(source.width, width, columns, filter);
    columns = taken_from(sideways);
  }
  const Pixels shown{source.data + rows.first * source.stride_bytes + std::ptrdiff_t{columns.first} * source.channels,
                     rows.count, columns.count, source.channels, source.stride_bytes};
  if (!changes_height && !changes_width) {
    Made copy(shown.height, shown.width, shown.channels);
    for (int y = 0; y < copy.height; ++y)
      std::copy_n(shown.data + y * shown.stride_bytes, copy.row_bytes(), copy.row(y));
    return std::move(copy.values);
  }
  if (!changes_height) return horizontal(shown, sideways).values;
  if (!changes_width) return vertical(shown, down).values;
  const bool vertical_first = source.height > height && source.height - height > 2 * (source.width - width);
  if (vertical_first) return horizontal(vertical(shown, down).pixels(), sideways).values;
  return vertical(horizontal(shown, sideways).pixels(), down).values;
}

}  // namespace mlpdeploy
