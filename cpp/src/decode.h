// Decoders of one format each. They give RGB pixels as the file has them; the caller turns them upright.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "mlpdeploy/session.h"

namespace mlpdeploy {

struct Encoded {
  const std::uint8_t* data;
  std::size_t bytes;
  std::string name;  // in error texts
  std::int64_t max_pixels;
};

struct Decoded {
  Image image;
  int orientation = 1;  // EXIF 2.32, 4.6.5
};

// Throws Error (image): no pixels or too many.
void check_size(const Encoded& file, std::int64_t height, std::int64_t width);

[[noreturn]] void refuse_damaged(const Encoded& file, const std::string& reason);

Decoded decode_jpeg(const Encoded& file);
Decoded decode_png(const Encoded& file);

// The orientation in an EXIF block (a TIFF header and its directory); 1 where it says none.
int exif_orientation(const std::uint8_t* tiff, std::size_t bytes);

}  // namespace mlpdeploy
