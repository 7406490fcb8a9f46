# The kernel for frames, as bytes in a source file; without nvcc there are none, and frames are normalized on the processor.
set(kernel_source ${CMAKE_CURRENT_SOURCE_DIR}/src/tensorrt/frame_kernel.cu)
set(kernel_image ${CMAKE_CURRENT_BINARY_DIR}/frame_kernel.fatbin)
set(kernel_bytes ${CMAKE_CURRENT_BINARY_DIR}/frame_kernel_image.cpp)
set(embed ${CMAKE_CURRENT_SOURCE_DIR}/cmake/embed.cmake)
find_program(MLPDEPLOY_NVCC nvcc HINTS $ENV{CUDA_HOME}/bin ${CUDA_INCLUDE_DIR}/../bin /usr/local/cuda/bin)
if(MLPDEPLOY_NVCC)
  # Machine code for every generation that this nvcc knows, and PTX of the newest for those after it.
  add_custom_command(OUTPUT ${kernel_image}
    COMMAND ${MLPDEPLOY_NVCC} -fatbin -arch=all-major -std=c++17 -O3 -o ${kernel_image} ${kernel_source}
    DEPENDS ${kernel_source} ${CMAKE_CURRENT_SOURCE_DIR}/src/frame_index.h)
  add_custom_command(OUTPUT ${kernel_bytes}
    COMMAND ${CMAKE_COMMAND} -DIMAGE=${kernel_image} -DSOURCE=${kernel_bytes} -P ${embed}
    DEPENDS ${kernel_image} ${embed})
else()
  message(STATUS "no nvcc: the library will normalize frames on the processor, also with TensorRT")
  add_custom_command(OUTPUT ${kernel_bytes}
    COMMAND ${CMAKE_COMMAND} -DSOURCE=${kernel_bytes} -P ${embed}
    DEPENDS ${embed})
endif()
set_source_files_properties(${kernel_bytes} PROPERTIES INCLUDE_DIRECTORIES "${CMAKE_CURRENT_SOURCE_DIR}/src;${CMAKE_CURRENT_SOURCE_DIR}/include;${CUDA_INCLUDE_DIR}")
