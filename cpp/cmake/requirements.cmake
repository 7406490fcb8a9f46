# What has to be there. Everything that is missing is named at once, with the line that installs it.
find_package(Threads REQUIRED)
find_package(JPEG QUIET)
find_package(PNG QUIET)
find_package(OpenSSL QUIET COMPONENTS Crypto)
find_package(nlohmann_json 3.10 QUIET)
if(MLPDEPLOY_BUILD_TESTS)
  find_package(doctest QUIET)
endif()

set(missing "")
if(NOT JPEG_FOUND)
  list(APPEND missing libjpeg-dev)
endif()
if(NOT PNG_FOUND)
  list(APPEND missing libpng-dev)
endif()
if(NOT OPENSSL_FOUND)
  list(APPEND missing libssl-dev)
endif()
if(NOT nlohmann_json_FOUND)
  list(APPEND missing nlohmann-json3-dev)
endif()
if(MLPDEPLOY_BUILD_TESTS AND NOT doctest_FOUND)
  list(APPEND missing doctest-dev)
endif()
if(missing)
  list(JOIN missing " " packages)
  message(FATAL_ERROR "mlpdeploy needs packages that are not there; on Debian and Ubuntu run: sudo apt install ${packages}")
endif()

if(NOT MLPDEPLOY_WITH_ONNXRUNTIME AND (MLPDEPLOY_BUILD_TESTS OR NOT MLPDEPLOY_WITH_TENSORRT))
  message(FATAL_ERROR "without ONNX Runtime the library needs MLPDEPLOY_WITH_TENSORRT=ON and MLPDEPLOY_BUILD_TESTS=OFF")
endif()

# ONNX Runtime: a folder with include/ and lib/, as get_onnxruntime.py makes one or Microsoft's archives hold, or the system's.
set(onnxruntime_target "")
if(MLPDEPLOY_WITH_ONNXRUNTIME)
  set(ONNXRUNTIME_ROOT "" CACHE PATH "Folder with ONNX Runtime's include/ and lib/")
  find_path(ONNXRUNTIME_INCLUDE_DIR onnxruntime_c_api.h
    HINTS ${ONNXRUNTIME_ROOT} PATH_SUFFIXES include include/onnxruntime onnxruntime)
  find_library(ONNXRUNTIME_LIBRARY NAMES onnxruntime HINTS ${ONNXRUNTIME_ROOT} PATH_SUFFIXES lib)
  if(NOT ONNXRUNTIME_INCLUDE_DIR OR NOT ONNXRUNTIME_LIBRARY)
    message(FATAL_ERROR
      "ONNX Runtime's C headers and library are not there; run: make cpp, or pass -DONNXRUNTIME_ROOT=<a folder with include/ and lib/>")
  endif()
  set(onnxruntime_target mlpdeploy::onnxruntime)
  add_library(mlpdeploy::onnxruntime UNKNOWN IMPORTED)
  # As a system folder: its headers are not held to our warnings.
  set_target_properties(mlpdeploy::onnxruntime PROPERTIES
    IMPORTED_LOCATION ${ONNXRUNTIME_LIBRARY}
    INTERFACE_INCLUDE_DIRECTORIES ${ONNXRUNTIME_INCLUDE_DIR})
endif()

# TensorRT's and CUDA's headers; their libraries are loaded at run time.
if(MLPDEPLOY_WITH_TENSORRT)
  set(TENSORRT_ROOT "" CACHE PATH "Folder with TensorRT's NvInferRuntime.h, or with an include/ that has it")
  find_path(TENSORRT_INCLUDE_DIR NvInferRuntime.h
    HINTS ${TENSORRT_ROOT} $ENV{TENSORRT_HOME} /usr/local/tensorrt /opt/tensorrt PATH_SUFFIXES include)
  find_path(CUDA_INCLUDE_DIR cuda_runtime_api.h
    HINTS $ENV{CUDA_HOME} /usr/local/cuda PATH_SUFFIXES include)
  if(NOT TENSORRT_INCLUDE_DIR OR NOT CUDA_INCLUDE_DIR)
    message(FATAL_ERROR
      "MLPDEPLOY_WITH_TENSORRT needs the headers of TensorRT 8.6, 10 or 11 and of CUDA; pass -DTENSORRT_ROOT=<a folder with "
      "NvInferRuntime.h>, and set CUDA_HOME where CUDA is not in /usr/local/cuda")
  endif()
endif()
