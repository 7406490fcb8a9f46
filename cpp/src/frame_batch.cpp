#include "frame_batch.h"

#include <cstdlib>
#include <string>

namespace mlpdeploy {

namespace {

// Where the letter stands in the layout.
std::size_t axis_of(const TensorSpec& input, char letter) { return input.layout.find(letter); }

std::string size_text(std::int64_t width, std::int64_t height) {
  return std::to_string(width) + " x " + std::to_string(height);
}

void check_frame(const ImageView& view) {
  if (!view.pixels || view.height < 1 || view.width < 1) {
    throw Error(ErrorKind::image, "a frame of " + size_text(view.width, view.height) + " pixels", "at least 1 x 1");
  }
  const std::ptrdiff_t line = std::ptrdiff_t{3} * view.width;
  if (view.height > 1 && std::abs(view.stride_bytes) < line) {
    throw Error(ErrorKind::image, "a frame whose lines are " + std::to_string(view.stride_bytes) + " bytes apart",
                "at least " + std::to_string(line) + ", its width times 3");
  }
}

}  // namespace

std::optional<FrameFormat> frame_format(const Manifest& manifest) {
  const auto& known = manifest.preprocessing;
  const TensorSpec& input = manifest.inputs.front();
  const bool half = input.dtype == DType::float16;
  const bool fits = (input.layout == "NCHW" || input.layout == "NHWC") && (half || input.dtype == DType::float32);
  if (!known || manifest.inputs.size() != 1 || !fits) return std::nullopt;
  const auto channels = static_cast<std::size_t>(known->channels());
  if (input.shape[axis_of(input, 'C')].size != known->channels() || known->mean.size() != channels ||
      known->std.size() != channels) {
    return std::nullopt;
  }
  FrameFormat format;
  format.params.channels = known->channels();
  format.params.channels_last = input.layout == "NHWC";
  format.params.half = half;
  for (std::size_t c = 0; c < channels; ++c) {
    format.params.mean[c] = static_cast<float>(known->mean[c]);
    format.params.deviation[c] = static_cast<float>(known->std[c]);
  }
  format.open_size = !input.shape[axis_of(input, 'H')].fixed() || !input.shape[axis_of(input, 'W')].fixed();
  return format;
}

void frame_shape(const Manifest& manifest, const std::optional<FrameFormat>& format, const ImageView* frames,
                 std::size_t count, std::int64_t* shape) {
  if (!format) {
    throw Error(ErrorKind::usage,
                "frames for a model whose input is no image, or that does not say how one is prepared",
                "one float32 or float16 input, NCHW or NHWC, and preprocessing");
  }
  if (count < 1 || !frames) throw Error(ErrorKind::usage, "no frames", "at least one");
  const TensorSpec& input = manifest.inputs.front();
  const Axis &high = input.shape[axis_of(input, 'H')], &wide = input.shape[axis_of(input, 'W')];
  const std::int64_t height = high.fixed() ? high.size : frames[0].height;
  const std::int64_t width = wide.fixed() ? wide.size : frames[0].width;
  for (const ImageView* view = frames; view != frames + count; ++view) {
    check_frame(*view);
    if (view->height == height && view->width == width) continue;
    throw Error(ErrorKind::usage, "a frame of " + size_text(view->width, view->height) + " pixels",
                size_text(width, height) + (format->open_size ? ", as the first one" : ", which the model takes"),
                "resize it, or prepare it with a Preprocessor");
  }
  shape[0] = static_cast<std::int64_t>(count);
  shape[axis_of(input, 'C')] = format->params.channels;
  shape[axis_of(input, 'H')] = height;
  shape[axis_of(input, 'W')] = width;
}

FrameParams frame_params(const FrameFormat& format, const ImageView& view, const std::uint8_t* pixels,
                         std::ptrdiff_t row_bytes, void* out) noexcept {
  FrameParams params = format.params;
  params.pixels = pixels;
  params.row_bytes = row_bytes;
  params.out = out;
  params.height = view.height;
  params.width = view.width;
  params.bgr = view.order == PixelOrder::bgr;
  return params;
}

void convert_frame(const FrameFormat& format, const ImageView& view, void* out) noexcept {
  const FrameParams params = frame_params(format, view, view.pixels, view.stride_bytes, out);
  const std::int64_t pixels = std::int64_t{view.height} * view.width;
  for (std::int64_t index = 0; index < pixels; ++index) convert_pixel(params, index);
}

}  // namespace mlpdeploy
