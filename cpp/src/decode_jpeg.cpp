#include <csetjmp>
#include <cstdio>
#include <cstring>

// After <cstdio>: it uses FILE and size_t without including what declares them.
#include <jpeglib.h>

#include <jerror.h>

#include "decode.h"

namespace mlpdeploy {

namespace {

struct Errors {
  jpeg_error_mgr manager;  // first: libjpeg knows only this
  std::jmp_buf jump;
  char message[JMSG_LENGTH_MAX];
};

[[noreturn]] void on_error(j_common_ptr info) {
  auto* errors = reinterpret_cast<Errors*>(info->err);
  errors->manager.format_message(info, errors->message);
  std::longjmp(errors->jump, 1);
}

void on_message(j_common_ptr) {}

// libjpeg would go on with grey; a truncated picture is refused instead.
boolean on_end_of_data(j_decompress_ptr info) {
  ERREXIT(info, JERR_INPUT_EOF);
  return FALSE;
}

// libjpeg leaves functions by longjmp: nothing with a destructor may live in those that set the jump.
class Decoder {
 public:
  jpeg_decompress_struct info{};
  Errors errors{};

  Decoder() {
    info.err = jpeg_std_error(&errors.manager);
    errors.manager.error_exit = on_error;
    errors.manager.output_message = on_message;
  }
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;
  ~Decoder() { jpeg_destroy_decompress(&info); }

  bool read_header(const std::uint8_t* data, std::size_t bytes) {
    if (setjmp(errors.jump)) return false;
    jpeg_create_decompress(&info);
    jpeg_save_markers(&info, JPEG_APP0 + 1, 0xFFFF);
    jpeg_mem_src(&info, data, static_cast<unsigned long>(bytes));
    info.src->fill_input_buffer = on_end_of_data;
    jpeg_read_header(&info, TRUE);
    return true;
  }

  // Rows of output_components bytes a pixel.
  bool read_pixels(std::uint8_t* out) {
    if (setjmp(errors.jump)) return false;
    jpeg_start_decompress(&info);
    const std::size_t row_bytes = std::size_t{info.output_width} * static_cast<std::size_t>(info.output_components);
    while (info.output_scanline < info.output_height) {
      JSAMPROW row = out + row_bytes * info.output_scanline;
      jpeg_read_scanlines(&info, &row, 1);
    }
    jpeg_finish_decompress(&info);
    return true;
  }
};

int orientation_of(const jpeg_decompress_struct& info) {
  constexpr char head[] = "Exif\0";
  for (const jpeg_marker_struct* marker = info.marker_list; marker; marker = marker->next) {
    const std::size_t bytes = marker->data_length;
    if (marker->marker == JPEG_APP0 + 1 && bytes > sizeof head && std::memcmp(marker->data, head, sizeof head) == 0) {
      return exif_orientation(marker->data + sizeof head, bytes - sizeof head);
    }
  }
  return 1;
}

// a * b / 255, rounded.
int product_255(int a, int b) {
  const int product = a * b + 128;
  return (product + (product >> 8)) >> 8;
}

// Files hold CMYK inverted, as Adobe writes it; Pillow assumes so of all, too.
std::vector<std::uint8_t> rgb_from_inverted_cmyk(const std::vector<std::uint8_t>& cmyk) {
  std::vector<std::uint8_t> rgb;
  rgb.reserve(cmyk.size() / 4 * 3);
  for (std::size_t i = 0; i + 3 < cmyk.size(); i += 4) {
    const int light = cmyk[i + 3];
    for (std::size_t c = 0; c < 3; ++c) {
      rgb.push_back(static_cast<std::uint8_t>(light - product_255(255 - cmyk[i + c], light)));
    }
  }
  return rgb;
}

}  // namespace

Decoded decode_jpeg(const Encoded& file) {
  Decoder decoder;
  if (!decoder.read_header(file.data, file.bytes)) refuse_damaged(file, decoder.errors.message);
  auto& info = decoder.info;
  check_size(file, info.image_height, info.image_width);
  if (info.num_components != 1 && info.num_components != 3 && info.num_components != 4) {
    refuse_damaged(file, std::to_string(info.num_components) + " components");
  }
  const bool cmyk = info.num_components == 4;
  info.out_color_space = cmyk ? JCS_CMYK : JCS_RGB;
  Decoded decoded;
  decoded.orientation = orientation_of(info);
  decoded.image.height = static_cast<int>(info.image_height);
  decoded.image.width = static_cast<int>(info.image_width);
  std::vector<std::uint8_t> pixels(std::size_t{info.image_height} * info.image_width * (cmyk ? 4 : 3));
  if (!decoder.read_pixels(pixels.data())) refuse_damaged(file, decoder.errors.message);
  decoded.image.pixels = cmyk ? rgb_from_inverted_cmyk(pixels) : std::move(pixels);
  return decoded;
}

}  // namespace mlpdeploy
