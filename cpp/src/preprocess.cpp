#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

#include "cpu/picture.h"
#include "json.h"
#include "mlpdeploy/session.h"
#include "text.h"

namespace mlpdeploy {

namespace {

// Whole numbers, which may be larger than any integer.
struct HeightWidth {
  double height, width;
};

std::string tuple(const std::vector<double>& values) {
  std::vector<std::string> texts;
  for (const double value : values) texts.push_back(python_float(value));
  return "(" + join(texts, ", ") + (texts.size() == 1 ? ",)" : ")");
}

std::string integer_text(double whole) {
  char text[400];  // the largest has 309 digits
  std::snprintf(text, sizeof text, "%.0f", whole);
  return text;
}

void check(const Preprocessing& p) {
  if (p.interpolation != "bicubic" && p.interpolation != "bilinear") {
    throw Error(ErrorKind::usage, "unknown interpolation " + repr(p.interpolation), "one of bicubic, bilinear");
  }
  if (p.color_order != "RGB" && p.color_order != "L") {
    throw Error(ErrorKind::usage, "unknown color order " + repr(p.color_order), "one of RGB, L");
  }
  const auto channels = static_cast<std::size_t>(p.channels());
  const std::string numbers = "mean " + tuple(p.mean) + " and std " + tuple(p.std);
  if (p.mean.size() != channels || p.std.size() != channels) {
    throw Error(ErrorKind::usage, numbers, std::to_string(channels) + " numbers each");
  }
  const auto finite = [](double value) { return std::isfinite(value); };
  const auto positive = [](double value) { return std::isfinite(value) && value > 0; };
  if (!std::all_of(p.mean.begin(), p.mean.end(), finite) || !std::all_of(p.std.begin(), p.std.end(), positive)) {
    throw Error(ErrorKind::usage, numbers, "finite numbers, std above zero");
  }
  const auto [shorter, longer] = std::minmax(p.height, p.width);
  const double least = static_cast<double>(longer) / max_image_pixels;
  if (shorter < 1 || !(least <= p.crop_pct && p.crop_pct <= shorter)) {
    throw Error(ErrorKind::usage,
                "a crop of (" + std::to_string(p.height) + ", " + std::to_string(p.width) + ") pixels with crop_pct " +
                    python_float(p.crop_pct),
                "sides of at least 1 pixel, resized ones of at most " + std::to_string(max_image_pixels));
  }
}

// What the picture is resized to before the crop, rounded as Python does: its round() takes the even neighbour.
HeightWidth resized(const Preprocessing& p, const ImageView& image) {
  const double target_height = std::floor(p.height / p.crop_pct), target_width = std::floor(p.width / p.crop_pct);
  const double height = image.height, width = image.width;
  if (target_height != target_width) {
    const double ratio = std::min(height / target_height, width / target_width);
    return {std::nearbyint(height / ratio), std::nearbyint(width / ratio)};
  }
  if (image.width <= image.height) return {std::floor(target_width * height / width), target_width};
  return {target_height, std::floor(target_height * width / height)};
}

// The crop's first pixel along one axis, negative where the picture is smaller than the crop.
int crop_start(int size, int crop) {
  return crop > size ? -((crop - size) / 2) : static_cast<int>(std::nearbyint((size - crop) / 2.0));
}

// ITU-R 601 luma in 16-bit fixed point, as Pillow rounds it.
std::vector<std::uint8_t> grey(const ImageView& image) {
  std::vector<std::uint8_t> result;
  result.reserve(static_cast<std::size_t>(image.height) * static_cast<std::size_t>(image.width));
  for (int y = 0; y < image.height; ++y) {
    const std::uint8_t* pixel = image.pixels + y * image.stride_bytes;
    const int red = image.order == PixelOrder::bgr ? 2 : 0, blue = 2 - red;
    for (int x = 0; x < image.width; ++x, pixel += 3) {
      result.push_back(
          static_cast<std::uint8_t>((19595 * pixel[red] + 38470 * pixel[1] + 7471 * pixel[blue] + 32768) >> 16));
    }
  }
  return result;
}

}  // namespace

struct Preprocessor::Impl {
  Preprocessing preprocessing;
  std::array<std::array<float, 256>, 3> normalized{};  // of each channel's 256 levels, in Python's float32 arithmetic

  explicit Impl(const Preprocessing& p) : preprocessing(p) {
    for (std::size_t c = 0; c < static_cast<std::size_t>(p.channels()); ++c) {
      const auto mean = static_cast<float>(p.mean[c]), deviation = static_cast<float>(p.std[c]);
      for (std::size_t level = 0; level < 256; ++level) {
        const float scaled = static_cast<float>(level) / 255.0F;
        normalized[c][level] = (scaled - mean) / deviation;
      }
    }
  }
};

Preprocessor::Preprocessor(const Preprocessing& preprocessing) {
  check(preprocessing);
  impl_ = std::make_unique<Impl>(preprocessing);
}

Preprocessor::Preprocessor(Preprocessor&&) noexcept = default;
Preprocessor::~Preprocessor() = default;

std::size_t Preprocessor::count() const noexcept {
  const Preprocessing& p = impl_->preprocessing;
  return static_cast<std::size_t>(p.channels()) * static_cast<std::size_t>(p.height) *
         static_cast<std::size_t>(p.width);
}

void Preprocessor::operator()(const ImageView& image, float* out) const {
  const Preprocessing& p = impl_->preprocessing;
  if (!image.pixels || image.height < 1 || image.width < 1) {
    throw Error(ErrorKind::image,
                "a picture of " + std::to_string(image.width) + " x " + std::to_string(image.height) + " pixels",
                "at least 1 x 1");
  }
  const HeightWidth size = resized(p, image);
  // "Not at most" is also true of what is no number.
  if (!(size.height * size.width <= double{max_image_pixels})) {
    throw Error(ErrorKind::image,
                "a picture of " + std::to_string(image.width) + " x " + std::to_string(image.height) +
                    " pixels is too elongated: resized it has " + integer_text(size.width) + " x " +
                    integer_text(size.height),
                "at most 64 megapixels", "crop it");
  }
  const int height = static_cast<int>(size.height), width = static_cast<int>(size.width);
  const int top = crop_start(height, p.height), left = crop_start(width, p.width);
  const cpu::Filter filter = p.interpolation == "bicubic" ? cpu::Filter::kBicubic : cpu::Filter::kBilinear;
  std::vector<std::uint8_t> plane;
  cpu::Picture source{image.pixels, image.height, image.width, 3, image.stride_bytes};
  if (p.channels() == 1) {
    plane = grey(image);
    source = {plane.data(), image.height, image.width, 1, image.width};
  }
  const bool reversed = p.channels() == 3 && image.order == PixelOrder::bgr;
  cpu::prepare(source, {height, width, top, left, p.height, p.width, filter},
               {impl_->normalized[0].data(), p.channels(), reversed}, out);
}

void Preprocessor::batch(const Session& session, const std::vector<ImageView>& images, float* out) const {
  struct Batch {
    const Preprocessor& prepare;
    const std::vector<ImageView>& images;
    float* out;
  } batch{*this, images, out};
  const auto work = [](void* context, std::size_t index) {
    const Batch& b = *static_cast<Batch*>(context);
    b.prepare(b.images[index], b.out + index * b.prepare.count());
  };
  session.parallel(images.size(), work, &batch);
}

}  // namespace mlpdeploy
