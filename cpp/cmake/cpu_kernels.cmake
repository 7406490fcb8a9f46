# The checksum of the CPU kernels' sources, as checksum_of in mlpdeploy/plugins/toolchain.py takes it: the library runs
# the builds of these sources and of no others.
file(GLOB kernel_sources CONFIGURE_DEPENDS
  ${MLPDEPLOY_CSRC}/cpu/*.h ${MLPDEPLOY_CSRC}/cpu/*.cpp ${MLPDEPLOY_CSRC}/cpu/*.cu ${MLPDEPLOY_CSRC}/cpu/*.txt
  ${MLPDEPLOY_CSRC}/cpu/*.map)
list(SORT kernel_sources)
set(all "")
foreach(source IN LISTS kernel_sources)
  # Again when the text changes, and not only when a file comes or goes.
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${source})
  file(RELATIVE_PATH name ${MLPDEPLOY_CSRC} ${source})
  file(SIZE ${source} bytes)
  file(READ ${source} text)
  string(APPEND all "${name} ${bytes}\n${text}")
endforeach()
string(SHA256 checksum "${all}")
string(SUBSTRING ${checksum} 0 16 checksum)  # as much as the folders in the cache are named by
set_source_files_properties(src/kernels.cpp PROPERTIES COMPILE_DEFINITIONS "MLPDEPLOY_CPU_SOURCES=\"${checksum}\"")
