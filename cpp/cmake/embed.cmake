# Writes the kernel's image as a C++ source: cmake -DIMAGE=<fat binary, or nothing> -DSOURCE=<out> -P embed.cmake
if(IMAGE)
  file(READ ${IMAGE} bytes HEX)
  string(LENGTH "${bytes}" digits)
  math(EXPR count "${digits} / 2")
  string(REGEX REPLACE "(..)" "0x\\1," bytes "${bytes}")
else()
  set(bytes "0")  # an array needs an element
  set(count 0)
endif()
file(WRITE ${SOURCE} "// Written by embed.cmake.\n#include \"tensorrt/frame_kernel.h\"\n\nnamespace mlpdeploy {\n"
  "alignas(16) const unsigned char frame_kernel_image[] = {${bytes}};\n"
  "const std::size_t frame_kernel_image_bytes = ${count};\n}\n")
