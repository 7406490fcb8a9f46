// What becomes of one pixel of a frame: the arithmetic of the CUDA kernel, compiled for the processor too. Knows
// nothing but C++, so that a test without a GPU runs what a thread runs.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define MLPDEPLOY_BOTH __host__ __device__
#else
#define MLPDEPLOY_BOTH
#endif

namespace mlpdeploy {

// One frame, and the row of a tensor that it becomes.
struct FrameParams {
  const std::uint8_t* pixels;  // the upper left one; 3 bytes a pixel, interleaved
  std::int64_t row_bytes;      // from one line to the one below it; negative where the lines go up in memory
  void* out;                   // float32, or the bits of float16
  std::int32_t height, width;
  std::int32_t channels;       // 3, or 1 for grey
  std::int32_t bgr;            // 1: blue comes first
  std::int32_t channels_last;  // 1: (height, width, channels), 0: (channels, height, width)
  std::int32_t half;           // 1: float16
  float mean[3], deviation[3];
};

// The nearest float16, ties to even, as numpy rounds.
MLPDEPLOY_BOTH inline std::uint16_t half_bits(float value) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof bits);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000U);
  const std::uint32_t magnitude = bits & 0x7fffffffU;
  if (magnitude > 0x7f800000U) return static_cast<std::uint16_t>(sign | 0x7e00U);   // no number
  if (magnitude >= 0x477ff000U) return static_cast<std::uint16_t>(sign | 0x7c00U);  // rounds to 65536 or more
  if (magnitude < 0x38800000U) {                                                    // below 2^-14: in steps of 2^-24
    if (magnitude < 0x33000000U) return sign;
    const std::uint32_t exponent = magnitude >> 23, fraction = (magnitude & 0x7fffffU) | 0x800000U;
    const std::uint32_t shift = 126 - exponent;  // 14..24
    const std::uint32_t kept = fraction >> shift, rest = fraction & ((1U << shift) - 1), middle = 1U << (shift - 1);
    const std::uint32_t up = rest > middle || (rest == middle && (kept & 1U)) ? 1U : 0U;
    return static_cast<std::uint16_t>(sign | (kept + up));
  }
  const std::uint32_t rounded = magnitude + 0xfffU + ((magnitude >> 13) & 1U);
  return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000U) >> 13));
}

// The order of operations is that of mlpdeploy/images.py; neither compiler may contract it, as nothing is multiplied.
MLPDEPLOY_BOTH inline float normalized(const FrameParams& frame, int level, int channel) {
  const float scaled = static_cast<float>(level) / 255.0F;
  return (scaled - frame.mean[channel]) / frame.deviation[channel];
}

MLPDEPLOY_BOTH inline void put_value(const FrameParams& frame, std::int64_t place, float value) {
  if (frame.half) {
    static_cast<std::uint16_t*>(frame.out)[place] = half_bits(value);
  } else {
    static_cast<float*>(frame.out)[place] = value;
  }
}

// Pixel `index` of height * width, line by line.
MLPDEPLOY_BOTH inline void convert_pixel(const FrameParams& frame, std::int64_t index) {
  const std::int64_t line = index / frame.width, column = index - line * frame.width;
  const std::uint8_t* const pixel = frame.pixels + line * frame.row_bytes + column * 3;
  const int levels[3] = {pixel[frame.bgr ? 2 : 0], pixel[1], pixel[frame.bgr ? 0 : 2]};
  if (frame.channels == 1) {
    // ITU-R 601 luma in 16-bit fixed point, as Pillow rounds it.
    const int luma = (19595 * levels[0] + 38470 * levels[1] + 7471 * levels[2] + 32768) >> 16;
    return put_value(frame, index, normalized(frame, luma, 0));
  }
  const std::int64_t pixels = static_cast<std::int64_t>(frame.height) * frame.width;
  for (int channel = 0; channel < 3; ++channel) {
    const std::int64_t place = frame.channels_last ? index * 3 + channel : channel * pixels + index;
    put_value(frame, place, normalized(frame, levels[channel], channel));
  }
}

}  // namespace mlpdeploy
