#include <doctest/doctest.h>

#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "artifacts.h"
#include "decode.h"
#include "mlpdeploy/session.h"

using namespace mlpdeploy;

namespace {

std::string bytes_of(const char* name) {
  std::ifstream file(artifact(name), std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

}  // namespace

TEST_CASE("every truncation of a picture is refused, and no byte beyond it is read") {
  for (const char* name : {"small.jpg", "small.png"}) {
    CAPTURE(name);
    const std::string whole = bytes_of(name);
    REQUIRE(whole.size() > 200);
    CHECK_NOTHROW(decode_image(whole.data(), whole.size(), name));
    for (std::size_t size = 0; size + 1 < whole.size(); size += 1 + size / 40) {
      const std::vector<char> part(whole.begin(),
                                   whole.begin() + static_cast<std::ptrdiff_t>(size));  // exact, for ASan
      CHECK_THROWS_AS(decode_image(part.data(), part.size(), name), Error);
    }
  }
}

TEST_CASE("a picture with too many pixels is refused from its header") {
  const std::string whole = bytes_of("small.jpg");
  CHECK_THROWS_WITH_AS(decode_image(whole.data(), whole.size(), "p", 100),
                       doctest::Contains("wanted at most 0.0001 megapixels; make it smaller"), Error);
}

TEST_CASE("EXIF blocks that lie are no danger") {
  const std::uint8_t good[] = {'M', 'M', 0, 42, 0, 0, 0, 8, 0, 1, 1, 0x12, 0, 3, 0, 0, 0, 1, 0, 6, 0, 0};
  CHECK(exif_orientation(good, sizeof good) == 6);
  for (std::size_t size = 0; size < sizeof good; ++size) {
    const std::vector<std::uint8_t> part(good, good + size);
    CHECK(exif_orientation(part.data(), part.size()) == 1);
  }
  std::vector<std::uint8_t> far(good, good + sizeof good);
  far[4] = far[5] = far[6] = far[7] = 0xFF;
  CHECK(exif_orientation(far.data(), far.size()) == 1);
}

TEST_CASE("frames with gaps between rows, and a batch of them on the session's threads") {
  LoadOptions options;
  options.threads = 2;
  const Session session = Session::load(artifact("asmlp"), options);
  const Preprocessor prepare(*session.preprocessing());
  const std::string file = bytes_of("small.jpg");
  const Image image = decode_image(file.data(), file.size(), "small");
  constexpr int gap = 13;
  std::vector<std::uint8_t> spaced;
  for (int y = 0; y < image.height; ++y) {
    const auto* row = image.pixels.data() + y * image.width * 3;
    spaced.insert(spaced.end(), row, row + image.width * 3);
    spaced.insert(spaced.end(), gap, 77);
  }
  std::vector<float> one(prepare.count()), two(2 * prepare.count());
  prepare(image.view(), one.data());
  prepare.batch(session, {image.view(), {spaced.data(), image.height, image.width, image.width * 3 + gap}}, two.data());
  const std::vector<float> first(two.begin(), two.begin() + static_cast<std::ptrdiff_t>(one.size()));
  const std::vector<float> second(two.begin() + static_cast<std::ptrdiff_t>(one.size()), two.end());
  CHECK(first == one);
  CHECK(second == one);
  CHECK_THROWS_AS(prepare({nullptr, 1, 1, 3}, one.data()), Error);
}
