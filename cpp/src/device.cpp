#include "device.h"

#include <charconv>

#include "mlpdeploy/session.h"
#include "text.h"

namespace mlpdeploy {

bool names_gpu(const std::string& device) noexcept { return device.compare(0, device.find(':'), "cuda") == 0; }

int gpu_index(const std::string& device) {
  const auto colon = device.find(':');
  if (colon == std::string::npos || colon + 1 == device.size()) return 0;
  int index = 0;
  const char *first = device.data() + colon + 1, *last = device.data() + device.size();
  const auto read = std::from_chars(first, last, index);
  if (read.ec != std::errc() || read.ptr != last || index < 0) {
    throw Error(ErrorKind::usage, "device " + repr(device), "cuda, or cuda:1 for the second GPU");
  }
  return index;
}

}  // namespace mlpdeploy
