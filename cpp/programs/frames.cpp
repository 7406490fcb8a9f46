#include "frames.h"

#include <algorithm>

#include "mlpdeploy/session.h"

namespace {

constexpr std::size_t header_bytes = 4;
constexpr std::size_t step_bytes = std::size_t{1} << 20;  // memory grows with what arrives, not with what is announced

}  // namespace

std::size_t FrameReader::fill(std::uint8_t* out, std::size_t bytes) {
  std::size_t filled = 0;
  while (filled < bytes) {
    const std::size_t read = source_(out + filled, bytes - filled);
    if (read == 0) break;
    filled += read;
  }
  return filled;
}

std::optional<std::vector<std::uint8_t>> FrameReader::next() {
  const std::string name = "frame " + std::to_string(index_++);
  const auto refuse = [](const std::string& got, const std::string& wanted) {
    throw mlpdeploy::Error(mlpdeploy::ErrorKind::image, got, wanted);
  };
  std::uint8_t header[header_bytes];
  const std::size_t got = fill(header, header_bytes);
  if (got == 0) return std::nullopt;
  if (got < header_bytes) refuse(name + " ends inside of its length", "4 bytes");
  std::size_t length = 0;
  for (std::size_t i = header_bytes; i-- > 0;) length = length << 8 | header[i];
  if (length > max_bytes_) {
    refuse(name + " has " + std::to_string(length) + " bytes", "at most " + std::to_string(max_bytes_));
  }
  std::vector<std::uint8_t> frame;
  while (frame.size() < length) {
    const std::size_t before = frame.size(), step = std::min(step_bytes, length - before);
    frame.resize(before + step);
    const std::size_t read = fill(frame.data() + before, step);
    if (read < step) {
      refuse(name + " ends after " + std::to_string(before + read) + " bytes", std::to_string(length));
    }
  }
  return frame;
}
