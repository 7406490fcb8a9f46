// Frames as a model's input: the kernel's arithmetic, compiled for the processor, against the preprocessing of
// photographs; and `run_frames` on the processor.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "artifacts.h"
#include "frame_batch.h"
#include "mlpdeploy/session.h"

using namespace mlpdeploy;

namespace {

float half_value(std::uint16_t bits) {
  const int exponent = (bits >> 10) & 31, fraction = bits & 1023;
  const float size = exponent ? std::ldexp(1024.0F + static_cast<float>(fraction), exponent - 25)
                              : std::ldexp(static_cast<float>(fraction), -24);
  return bits & 0x8000 ? -size : size;
}

bool same_bits(float left, float right) { return std::memcmp(&left, &right, sizeof left) == 0; }

// A frame of random pixels in memory that ends behind it.
struct Frame {
  std::vector<std::uint8_t> memory;
  ImageView view;

  Frame(std::mt19937& random, int height, int width, bool upwards, PixelOrder order) {
    const std::ptrdiff_t line = 3 * width, apart = line + static_cast<std::ptrdiff_t>(random() % 17);
    memory.resize(static_cast<std::size_t>((height - 1) * apart + line));
    for (auto& value : memory) value = static_cast<std::uint8_t>(random());
    view = {memory.data() + (upwards ? (height - 1) * apart : 0), height, width, upwards ? -apart : apart, order};
  }
};

}  // namespace

TEST_CASE("float16 is rounded to the nearest, ties to even: every value, every middle, and their neighbours") {
  for (unsigned sign : {0U, 0x8000U}) {
    for (unsigned bits = 0; bits < 0x7c00U; ++bits) {
      const auto half = static_cast<std::uint16_t>(sign | bits), next = static_cast<std::uint16_t>(half + 1);
      const float value = half_value(half);
      // Beyond the largest, 65520 is the first that becomes infinite.
      const float middle = bits == 0x7bffU ? (sign ? -65520.0F : 65520.0F) : (value + half_value(next)) / 2;
      const float beyond = sign ? -INFINITY : INFINITY;
      REQUIRE(half_bits(value) == half);
      REQUIRE(half_bits(middle) == (bits & 1 ? next : half));
      REQUIRE(half_bits(std::nextafter(middle, 0.0F)) == half);
      REQUIRE(half_bits(std::nextafter(middle, beyond)) == next);
    }
    CHECK(half_bits(sign ? -INFINITY : INFINITY) == (sign | 0x7c00U));
    CHECK(half_bits(sign ? -1e30F : 1e30F) == (sign | 0x7c00U));
    CHECK(half_bits(sign ? -1e-30F : 1e-30F) == sign);
  }
  CHECK(half_bits(NAN) == 0x7e00U);
}

TEST_CASE("the kernel's arithmetic gives the values of the preprocessing, bit for bit") {
  std::mt19937 random(7);
  for (int round = 0; round < 4000; ++round) {
    const bool grey = random() % 4 == 0, half = random() % 2, last = random() % 2;
    const auto order = random() % 2 ? PixelOrder::bgr : PixelOrder::rgb;
    const int height = 1 + static_cast<int>(random() % 40), width = 1 + static_cast<int>(random() % 40);
    const std::size_t channels = grey ? 1 : 3,
                      pixels = static_cast<std::size_t>(height) * static_cast<std::size_t>(width);
    const Frame frame(random, height, width, random() % 3 == 0, order);
    Preprocessing known;
    known.height = height, known.width = width;
    known.interpolation = "bilinear";
    known.color_order = grey ? "L" : "RGB";
    std::uniform_real_distribution<double> numbers(0.05, 0.9);
    FrameFormat format;
    for (std::size_t c = 0; c < channels; ++c) {
      known.mean.push_back(numbers(random)), known.std.push_back(numbers(random));
      format.params.mean[c] = static_cast<float>(known.mean[c]);
      format.params.deviation[c] = static_cast<float>(known.std[c]);
    }
    format.params.channels = static_cast<int>(channels), format.params.half = half;
    format.params.channels_last = last;
    std::vector<float> wanted(pixels * channels), floats(pixels * channels + 1, 77.0F);
    std::vector<std::uint16_t> halves(pixels * channels + 1, 7);
    Preprocessor{known}(frame.view, wanted.data());
    convert_frame(format, frame.view, half ? static_cast<void*>(halves.data()) : floats.data());
    bool same = halves.back() == 7 && same_bits(floats.back(), 77.0F);
    for (std::size_t c = 0; c < channels; ++c) {
      for (std::size_t i = 0; i < pixels; ++i) {
        const std::size_t place = last ? i * channels + c : c * pixels + i;
        const float value = wanted[c * pixels + i];
        same = same && (half ? halves[place] == half_bits(value) : same_bits(floats[place], value));
      }
    }
    CAPTURE(round);
    REQUIRE(same);
  }
}

TEST_CASE("frames are run as the tensors that a Preprocessor makes of them") {
  LoadOptions options;
  options.threads = 2;
  const Session session = Session::load(artifact("asmlp"), options);
  CHECK(session.frames() == "processor");
  Preprocessing known = *session.preprocessing();
  known.crop_pct = 1.0;
  const Preprocessor prepare(known);
  std::mt19937 random(3);
  std::vector<Frame> frames;
  std::vector<ImageView> views;
  std::vector<float> pixels;
  for (int i = 0; i < 5; ++i) {
    frames.emplace_back(random, 32, 32, i % 2 == 1, i % 3 ? PixelOrder::rgb : PixelOrder::bgr);
    views.push_back(frames.back().view);
    pixels.resize(pixels.size() + prepare.count());
    prepare(views.back(), pixels.data() + pixels.size() - prepare.count());
  }
  const std::int64_t in[] = {5, 3, 32, 32}, out[] = {5, 7};
  std::vector<float> direct(35), prepared(35);
  const MutableTensorView result{"logits", DType::float32, out, 2, direct.data()};
  const MutableTensorView wanted{"logits", DType::float32, out, 2, prepared.data()};
  const TensorView input{"input", DType::float32, in, 4, pixels.data()};
  session.run_frames(views.data(), views.size(), &result, 1);
  session.run(&input, 1, &wanted, 1);
  CHECK(std::memcmp(direct.data(), prepared.data(), 35 * sizeof(float)) == 0);

  const auto refusal = [&](std::vector<ImageView> wrong) -> std::string {
    try {
      session.run_frames(wrong.data(), wrong.size(), &result, 1);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  ImageView odd = views[0];
  odd.width = 31;
  CHECK(
      refusal({odd}) ==
      "a frame of 31 x 32 pixels; wanted 32 x 32, which the model takes; resize it, or prepare it with a Preprocessor");
  odd = views[0], odd.stride_bytes = 95;
  CHECK(refusal({odd}) == "a frame whose lines are 95 bytes apart; wanted at least 96, its width times 3");
  odd.pixels = nullptr;
  CHECK(refusal({odd}) == "a frame of 32 x 32 pixels; wanted at least 1 x 1");
  CHECK(refusal({}) == "no frames; wanted at least one");
  CHECK(refusal({views[0]}).find("output array 'logits' is float32 (5, 7)") == 0);
}

TEST_CASE("a model of open image size takes frames of one size") {
  const Session session = Session::load(artifact("features"));
  REQUIRE(session.preprocessing());
  std::mt19937 random(5);
  const Frame first(random, 64, 32, false, PixelOrder::rgb), second(random, 32, 64, false, PixelOrder::rgb);
  const ImageView views[] = {first.view, second.view};
  const std::int64_t shapes[2][4] = {{1, 21, 16, 8}, {1, 42, 8, 4}};
  std::vector<float> maps[2] = {std::vector<float>(21 * 16 * 8), std::vector<float>(42 * 8 * 4)};
  std::vector<MutableTensorView> outputs;
  for (std::size_t i = 0; i < 2; ++i) {
    outputs.push_back({session.outputs()[i].name, DType::float32, shapes[i], 4, maps[i].data()});
  }
  session.run_frames(views, 1, outputs.data(), outputs.size());
  CHECK_THROWS_WITH_AS(session.run_frames(views, 2, outputs.data(), outputs.size()),
                       doctest::Contains("wanted 32 x 64, as the first one"), Error);
}
