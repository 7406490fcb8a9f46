#include "tensorrt.h"

namespace mlpdeploy {

std::unique_ptr<Backend> open_tensorrt(const std::filesystem::path&, const Manifest&, const LoadOptions&,
                                       std::string&) {
  throw Error(ErrorKind::usage, "the backend tensorrt in a library that was built without it", "onnxruntime",
              "build it with -DMLPDEPLOY_WITH_TENSORRT=ON");
}

}  // namespace mlpdeploy
