// JPEG and PNG files, up to the pixels.
#include "mlpdeploy/session.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t bytes) {
  try {
    const auto image = mlpdeploy::decode_image(data, bytes, "image", 1 << 16);
    if (image.pixels.size() != std::size_t(image.height) * std::size_t(image.width) * 3) __builtin_trap();
  } catch (const mlpdeploy::Error&) {
  }
  return 0;
}
