# The kernel for frames, as bytes in a source file; without it there are none, and frames are normalized on the processor.
option(MLPDEPLOY_FRAME_KERNEL "Compile the kernel that normalizes frames on the GPU (needs nvcc)" ON)
set(kernel_source ${CMAKE_CURRENT_SOURCE_DIR}/src/tensorrt/frame_kernel.cu)
set(kernel_image ${CMAKE_CURRENT_BINARY_DIR}/frame_kernel.fatbin)
set(kernel_bytes ${CMAKE_CURRENT_BINARY_DIR}/frame_kernel_image.cpp)
set(embed ${CMAKE_CURRENT_SOURCE_DIR}/cmake/embed.cmake)
# Machine code for every generation that this nvcc knows, and PTX of the newest for those after it.
set(kernel_options -fatbin -arch=all-major -std=c++17 -O3)

find_program(MLPDEPLOY_NVCC nvcc HINTS $ENV{CUDA_HOME}/bin ${CUDA_INCLUDE_DIR}/../bin /usr/local/cuda/bin)
set(no_kernel "")
if(NOT MLPDEPLOY_FRAME_KERNEL)
  set(no_kernel "MLPDEPLOY_FRAME_KERNEL is off")
elseif(NOT MLPDEPLOY_NVCC)
  set(no_kernel "no nvcc")
elseif(NOT MLPDEPLOY_NVCC_THAT_WORKS STREQUAL MLPDEPLOY_NVCC)
  # It may refuse the host compiler, which is often newer. What worked once is not tried again.
  set(empty ${CMAKE_CURRENT_BINARY_DIR}/empty.cu)
  file(WRITE ${empty} "")
  execute_process(COMMAND ${MLPDEPLOY_NVCC} ${kernel_options} -o ${empty}.fatbin ${empty}
    RESULT_VARIABLE status OUTPUT_VARIABLE told ERROR_VARIABLE told)
  if(status EQUAL 0)
    set(MLPDEPLOY_NVCC_THAT_WORKS ${MLPDEPLOY_NVCC} CACHE INTERNAL "The nvcc that has compiled an empty file")
  else()
    string(STRIP "${told}" told)
    set(no_kernel "${MLPDEPLOY_NVCC} does not compile an empty file; name a C++ compiler that it takes in NVCC_CCBIN (${told})")
  endif()
endif()
if(no_kernel)
  message(STATUS "${no_kernel}: the library will normalize frames on the processor, also with TensorRT")
  add_custom_command(OUTPUT ${kernel_bytes}
    COMMAND ${CMAKE_COMMAND} -DSOURCE=${kernel_bytes} -P ${embed}
    DEPENDS ${embed})
else()
  add_custom_command(OUTPUT ${kernel_image}
    COMMAND ${MLPDEPLOY_NVCC} ${kernel_options} -o ${kernel_image} ${kernel_source}
    DEPENDS ${kernel_source} ${CMAKE_CURRENT_SOURCE_DIR}/src/frame_index.h
    COMMENT "Compiling the kernel for frames (-DMLPDEPLOY_FRAME_KERNEL=OFF leaves it out)")
  add_custom_command(OUTPUT ${kernel_bytes}
    COMMAND ${CMAKE_COMMAND} -DIMAGE=${kernel_image} -DSOURCE=${kernel_bytes} -P ${embed}
    DEPENDS ${kernel_image} ${embed})
endif()
set_source_files_properties(${kernel_bytes} PROPERTIES INCLUDE_DIRECTORIES "${CMAKE_CURRENT_SOURCE_DIR}/src;${CMAKE_CURRENT_SOURCE_DIR}/include;${CUDA_INCLUDE_DIR}")
