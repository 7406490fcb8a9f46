#include <png.h>

#include <algorithm>
#include <csetjmp>
#include <cstring>

#include "decode.h"

namespace mlpdeploy {

namespace {

struct Input {
  const std::uint8_t* data;
  std::size_t left;
};

struct Errors {
  std::jmp_buf jump;
  char message[200];
};

void read_bytes(png_structp png, png_bytep out, std::size_t bytes) {
  auto* input = static_cast<Input*>(png_get_io_ptr(png));
  if (bytes > input->left) png_error(png, "the file ends too early");
  std::memcpy(out, input->data, bytes);
  input->data += bytes;
  input->left -= bytes;
}

[[noreturn]] void on_error(png_structp png, png_const_charp message) {
  auto* errors = static_cast<Errors*>(png_get_error_ptr(png));
  std::strncpy(errors->message, message, sizeof errors->message - 1);
  std::longjmp(errors->jump, 1);
}

void on_warning(png_structp, png_const_charp) {}

// libpng leaves functions by longjmp: nothing with a destructor may live in those that set the jump.
class Decoder {
 public:
  Errors errors{};
  png_structp png;
  png_infop info = nullptr;

  explicit Decoder(Input* input) : png(png_create_read_struct(PNG_LIBPNG_VER_STRING, &errors, on_error, on_warning)) {
    if (!png) throw std::bad_alloc();
    info = png_create_info_struct(png);
    if (!info) {
      png_destroy_read_struct(&png, nullptr, nullptr);
      throw std::bad_alloc();
    }
    png_set_read_fn(png, input, read_bytes);
  }
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;
  ~Decoder() { png_destroy_read_struct(&png, &info, nullptr); }

  bool read_header() {
    if (setjmp(errors.jump)) return false;
    png_read_info(png, info);
    return true;
  }

  // 8-bit RGB, whatever the file has: the high byte of 16 bits, no alpha.
  bool read_pixels(png_bytep* rows) {
    if (setjmp(errors.jump)) return false;
    png_set_strip_16(png);
    if (png_get_color_type(png, info) == PNG_COLOR_TYPE_PALETTE) png_set_palette_to_rgb(png);
    if (png_get_bit_depth(png, info) < 8) png_set_expand_gray_1_2_4_to_8(png);
    png_set_gray_to_rgb(png);
    png_set_strip_alpha(png);
    png_read_update_info(png, info);
    png_read_image(png, rows);
    png_read_end(png, info);
    return true;
  }

  int orientation() {
    png_bytep exif = nullptr;
    png_uint_32 bytes = 0;
    return png_get_eXIf_1(png, info, &bytes, &exif) ? exif_orientation(exif, bytes) : 1;
  }
};

std::uint32_t big_endian(const std::uint8_t* bytes) {
  return static_cast<std::uint32_t>(bytes[0]) << 24 | static_cast<std::uint32_t>(bytes[1]) << 16 |
         static_cast<std::uint32_t>(bytes[2]) << 8 | bytes[3];
}

// The number of frames in the chunk acTL, which stands before the pixels of an animation; libpng does not know it.
std::uint32_t frames(const Encoded& file) {
  constexpr std::size_t signature = 8, around_chunk = 12;
  for (std::size_t at = signature; file.bytes - at >= around_chunk;) {
    const std::uint8_t* chunk = file.data + at;
    const std::size_t bytes = big_endian(chunk);
    if (file.bytes - at - around_chunk < bytes || std::memcmp(chunk + 4, "IDAT", 4) == 0) return 1;
    if (std::memcmp(chunk + 4, "acTL", 4) == 0 && bytes >= 8) return big_endian(chunk + 8);
    at += around_chunk + bytes;
  }
  return 1;
}

}  // namespace

Decoded decode_png(const Encoded& file) {
  Input input{file.data, file.bytes};
  Decoder decoder(&input);
  if (!decoder.read_header()) refuse_damaged(file, decoder.errors.message);
  const auto height = png_get_image_height(decoder.png, decoder.info);
  const auto width = png_get_image_width(decoder.png, decoder.info);
  check_size(file, height, width);
  if (const auto count = frames(file); count > 1) {
    throw Error(ErrorKind::image, file.name + " has " + std::to_string(count) + " frames or pages", "one picture",
                "save one of them as a file");
  }
  Decoded decoded;
  decoded.image.height = static_cast<int>(height);
  decoded.image.width = static_cast<int>(width);
  decoded.image.pixels.resize(std::size_t{height} * width * 3);
  std::vector<png_bytep> rows(height);
  for (std::size_t y = 0; y < height; ++y) rows[y] = decoded.image.pixels.data() + y * width * 3;
  if (!decoder.read_pixels(rows.data())) refuse_damaged(file, decoder.errors.message);
  decoded.orientation = decoder.orientation();
  return decoded;
}

}  // namespace mlpdeploy
