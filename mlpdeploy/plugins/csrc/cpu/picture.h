// From a decoded picture to the input tensor of a model: resized, cropped at the centre, normalized.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mlpdeploy::cpu {

// 8 bits a channel, channels interleaved; rows lie `row_bytes` apart, which may be negative.
struct Picture {
    std::uint8_t const* pixels;
    int height, width;
    int pixel_bytes;  // 1: grey; 3; or 4, of which the fourth is not looked at
    std::ptrdiff_t row_bytes;
};

enum class Filter { kBilinear, kBicubic };

// The picture is resized to (height, width); of that, (crop_height, crop_width) are shown from (top, left) on. What
// lies outside of the resized picture is black, so top and left may be negative.
struct View {
    int height, width;
    int top, left, crop_height, crop_width;
    Filter filter;
};

// What becomes of the pixels' values. levels: (channels, 256) floats.
struct Levels {
    float const* levels;
    int channels;   // 1 or 3, no more than a pixel has
    bool reversed;  // the pixel's channels are those of `levels` from the last to the first: blue, green, red
};

// planes: (channels, crop_height, crop_width) floats.
//
// The pixels are those of Pillow's resize with antialiasing, bit for bit; only those that are shown are computed. Each
// axis is a pass of its own, and each pass rounds to 8 bits. A pixel is the sum of the source pixels under the filter,
// which is stretched where the picture shrinks, times weights that are normalized to 1 and rounded to 22 bits after the
// point. The horizontal pass comes first, except, since Pillow 13, where the height loses more than twice as many
// pixels as the width. Throws std::bad_alloc.
void prepare(Picture const& picture, View const& view, Levels const& levels, float* planes);

}  // namespace mlpdeploy::cpu
