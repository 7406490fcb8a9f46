#include <sys/stat.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

#include "decode.h"
#include "mlpdeploy/session.h"
#include "text.h"

namespace mlpdeploy {

namespace {

std::string megapixels(std::int64_t pixels) {
  char text[40];
  std::snprintf(text, sizeof text, "at most %g megapixels", static_cast<double>(pixels) / 1e6);
  return text;
}

// The picture upright. Where each pixel comes from: EXIF 2.32, 4.6.5.
Image upright(Image image, int orientation) {
  if (orientation < 2 || orientation > 8) return image;
  const bool sides_swap = orientation >= 5;
  Image result;
  result.height = sides_swap ? image.width : image.height;
  result.width = sides_swap ? image.height : image.width;
  result.pixels.resize(image.pixels.size());
  std::uint8_t* out = result.pixels.data();
  const int bottom = image.height - 1, right = image.width - 1;
  for (int y = 0; y < result.height; ++y) {
    for (int x = 0; x < result.width; ++x, out += 3) {
      int row = sides_swap ? x : y, column = sides_swap ? y : x;
      if (orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7) row = bottom - row;
      if (orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8) column = right - column;
      std::memcpy(out, image.pixels.data() + (std::size_t(row) * std::size_t(image.width) + std::size_t(column)) * 3,
                  3);
    }
  }
  return result;
}

std::vector<char> file_bytes(const std::filesystem::path& path) {
  const std::string name = path.string();
  const auto refuse = [&](const std::string& got, const std::string& fix = "") {
    throw Error(ErrorKind::image, name + " " + got, "an image file", fix);
  };
  struct stat status{};
  if (::stat(path.c_str(), &status) != 0) {
    if (errno == ENOENT) refuse("does not exist");
    refuse("cannot be read (" + os_error(errno, name) + ")");
  }
  if (S_ISDIR(status.st_mode)) refuse("is a folder");
  if (!S_ISREG(status.st_mode)) refuse("is a pipe or a device");
  if (status.st_size == 0) refuse("is empty", "copy it again");
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
  if (!file && errno == EACCES) refuse("cannot be read (permission denied)", "make it readable");
  if (!file) refuse("cannot be read (" + os_error(errno, name) + ")");
  std::vector<char> bytes(static_cast<std::size_t>(status.st_size));
  bytes.resize(std::fread(bytes.data(), 1, bytes.size(), file.get()));
  return bytes;
}

}  // namespace

void check_size(const Encoded& file, std::int64_t height, std::int64_t width) {
  const std::string got = file.name + " has " + std::to_string(width) + " x " + std::to_string(height) + " pixels";
  if (height < 1 || width < 1) throw Error(ErrorKind::image, got, "at least 1 x 1");
  if (height * width > file.max_pixels) {
    throw Error(ErrorKind::image, got, megapixels(file.max_pixels), "make it smaller");
  }
}

void refuse_damaged(const Encoded& file, const std::string& reason) {
  throw Error(ErrorKind::image, file.name + " is truncated or damaged (" + reason + ")", "a whole picture",
              "copy it again");
}

int exif_orientation(const std::uint8_t* tiff, std::size_t bytes) {
  constexpr std::uint32_t orientation_tag = 0x0112;
  constexpr char head[] = "Exif\0";  // some programs write it twice
  for (; bytes >= sizeof head && std::memcmp(tiff, head, sizeof head) == 0; bytes -= sizeof head) tiff += sizeof head;
  const auto begins_with = [&](const char* magic) { return std::memcmp(tiff, magic, 4) == 0; };
  if (bytes < 8 || !(begins_with("II*\0") || begins_with("MM\0*") || begins_with("II\0*") || begins_with("MM*\0"))) {
    return 1;
  }
  const bool little = tiff[0] == 'I';
  const auto number = [&](std::size_t at, std::size_t size) {
    std::uint32_t value = 0;
    for (std::size_t i = 0; i < size; ++i) value = value << 8 | tiff[at + (little ? size - 1 - i : i)];
    return value;
  };
  const std::size_t directory = number(4, 4);
  if (directory > bytes || bytes - directory < 2) return 1;
  const std::size_t entries = number(directory, 2);
  for (std::size_t i = 0; i < entries; ++i) {
    const std::size_t entry = directory + 2 + 12 * i;
    if (entry > bytes || bytes - entry < 12) return 1;
    if (number(entry, 2) != orientation_tag) continue;
    const std::uint32_t type = number(entry + 2, 2);
    // Those that Pillow takes for integers: SHORT, LONG, SBYTE, SSHORT, SLONG (TIFF 6.0, 2). Of several the first.
    const std::size_t size = type == 6 ? 1 : type == 3 || type == 8 ? 2 : type == 4 || type == 9 ? 4 : 0;
    const std::uint32_t count = number(entry + 4, 4);
    if (size == 0 || count == 0) return 1;
    const std::size_t place = count > 4 / size ? number(entry + 8, 4) : entry + 8;
    if (place > bytes || (bytes - place) / size < count) return 1;
    const std::uint32_t value = number(place, size);
    return value <= 8 ? static_cast<int>(value) : 1;
  }
  return 1;
}

Image decode_image(const void* data, std::size_t bytes, const std::string& name, std::int64_t max_pixels) {
  const Encoded file{static_cast<const std::uint8_t*>(data), bytes, name, max_pixels};
  const auto begins_with = [&](std::string_view magic) {
    return bytes >= magic.size() && std::memcmp(data, magic.data(), magic.size()) == 0;
  };
  Decoded decoded;
  if (begins_with("\xFF\xD8\xFF")) {
    decoded = decode_jpeg(file);
  } else if (begins_with("\x89PNG\r\n\x1A\n")) {
    decoded = decode_png(file);
  } else {
    throw Error(ErrorKind::image, name + " is not an image that can be read", "one of JPEG, PNG",
                "convert it to JPEG or PNG");
  }
  return upright(std::move(decoded.image), decoded.orientation);
}

Image read_image(const std::filesystem::path& path, std::int64_t max_pixels) {
  const auto bytes = file_bytes(path);
  return decode_image(bytes.data(), bytes.size(), path.string(), max_pixels);
}

}  // namespace mlpdeploy
