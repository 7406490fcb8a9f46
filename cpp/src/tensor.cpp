#include "mlpdeploy/session.h"

namespace mlpdeploy {

std::size_t item_bytes(DType dtype) noexcept {
  switch (dtype) {
    case DType::float64:
    case DType::int64:
      return 8;
    case DType::float32:
    case DType::int32:
      return 4;
    case DType::float16:
      return 2;
    case DType::uint8:
    case DType::int8:
      return 1;
  }
  return 0;
}

const char* dtype_name(DType dtype) noexcept {
  switch (dtype) {
    case DType::float32:
      return "float32";
    case DType::float64:
      return "float64";
    case DType::float16:
      return "float16";
    case DType::int64:
      return "int64";
    case DType::int32:
      return "int32";
    case DType::uint8:
      return "uint8";
    case DType::int8:
      return "int8";
  }
  return "";
}

const float* Tensor::float32() const {
  if (dtype != DType::float32) {
    throw Error(ErrorKind::usage, "tensor " + name + " holds " + dtype_name(dtype), "float32");
  }
  return reinterpret_cast<const float*>(bytes.data());
}

std::size_t Tensor::count() const noexcept {
  std::size_t product = 1;
  for (const std::int64_t size : shape) product *= static_cast<std::size_t>(size);
  return product;
}

}  // namespace mlpdeploy
