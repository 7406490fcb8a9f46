// Frames: four bytes with a length, little-endian, and as many bytes as that says: a JPEG or PNG file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

class FrameReader {
 public:
  // Reads up to `bytes` to `out`, and returns how many; 0 at the end.
  using Source = std::function<std::size_t(std::uint8_t* out, std::size_t bytes)>;

  FrameReader(Source source, std::size_t max_bytes) : source_(std::move(source)), max_bytes_(max_bytes) {}

  // The next frame; none at the end. Throws mlpdeploy::Error (image) where the stream ends inside of a frame, or a
  // frame is longer than allowed: then nothing after it can be read.
  std::optional<std::vector<std::uint8_t>> next();

 private:
  Source source_;
  std::size_t max_bytes_;
  std::size_t index_ = 0;

  std::size_t fill(std::uint8_t* out, std::size_t bytes);
};
