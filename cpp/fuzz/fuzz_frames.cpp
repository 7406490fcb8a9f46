// The parser of length-prefixed frames: any bytes, in pieces of any size.
#include <algorithm>
#include <cstring>

#include "frames.h"
#include "mlpdeploy/session.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t bytes) {
  constexpr std::size_t max_frame = 4096;
  const std::size_t piece = bytes ? 1 + data[0] % 64 : 1;
  std::size_t at = 0, framed = 0;
  FrameReader reader(
      [&](std::uint8_t* out, std::size_t wanted) {
        const std::size_t count = std::min({wanted, piece, bytes - at});
        if (count) std::memcpy(out, data + at, count);
        at += count;
        return count;
      },
      max_frame);
  try {
    while (const auto frame = reader.next()) {
      framed += 4 + frame->size();
      if (frame->size() > max_frame || framed > bytes) __builtin_trap();
    }
    if (framed != bytes) __builtin_trap();
  } catch (const mlpdeploy::Error&) {
  }
  return 0;
}
