// Frames of a camera as a model's input: 8-bit pixels of the model's size, normalized and laid out on the GPU where the
// backend has a kernel for it, otherwise on the processor.
#pragma once

#include <cstddef>
#include <optional>

#include "frame_index.h"
#include "manifest.h"
#include "mlpdeploy/session.h"

namespace mlpdeploy {

// What all frames of a model have in common: a FrameParams without the frame.
struct FrameFormat {
  FrameParams params{};
  bool open_size = false;  // the model leaves height and width open
};

// Of the rows of one call. The caller's memory, until the call returns.
struct FrameBatch {
  const FrameFormat& format;
  const ImageView* frames;
};

// Nothing where the model takes no frames.
std::optional<FrameFormat> frame_format(const Manifest& manifest);

// The sizes of the input tensor of so many frames, in the order of its layout. Throws Error: usage (no format, no
// frames, other sizes than the model's), image (no pixels, lines that overlap).
void frame_shape(const Manifest& manifest, const std::optional<FrameFormat>& format, const ImageView* frames,
                 std::size_t count, std::int64_t* shape);

// One frame whose pixels are at `pixels` in the order that the view gives them in, with `row_bytes` between lines.
FrameParams frame_params(const FrameFormat& format, const ImageView& view, const std::uint8_t* pixels,
                         std::ptrdiff_t row_bytes, void* out) noexcept;

// On this thread.
void convert_frame(const FrameFormat& format, const ImageView& view, void* out) noexcept;

}  // namespace mlpdeploy
