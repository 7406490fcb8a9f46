#include "onnx_streams.h"

namespace mlpdeploy {

std::unique_ptr<Backend> open_onnxruntime(const std::filesystem::path&, const Manifest&, const LoadOptions&,
                                          SharedPool&, std::string&) {
  throw Error(ErrorKind::usage, "the backend onnxruntime in a library that was built without it", "tensorrt",
              "build it with -DMLPDEPLOY_WITH_ONNXRUNTIME=ON");
}

}  // namespace mlpdeploy
