# After the installation: find_package(mlpdeploy), then target_link_libraries(program mlpdeploy::mlpdeploy).
include(CMakePackageConfigHelpers)
install(TARGETS mlpdeploy mlpdeploy-infer EXPORT mlpdeploy-targets
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
  RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(DIRECTORY include/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT mlpdeploy-targets NAMESPACE mlpdeploy:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/mlpdeploy)
configure_package_config_file(cmake/mlpdeploy-config.cmake.in mlpdeploy-config.cmake
  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/mlpdeploy
  PATH_VARS CMAKE_INSTALL_LIBDIR)
write_basic_package_version_file(mlpdeploy-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/mlpdeploy-config.cmake ${CMAKE_CURRENT_BINARY_DIR}/mlpdeploy-config-version.cmake
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/mlpdeploy)
if(NOT MLPDEPLOY_WITH_ONNXRUNTIME)
  return()
endif()
# The runtime that it was built with, beside it and under the name that the loader looks for.
file(REAL_PATH ${ONNXRUNTIME_LIBRARY} onnxruntime_file)
install(FILES ${onnxruntime_file} DESTINATION ${CMAKE_INSTALL_LIBDIR} RENAME libonnxruntime.so.1)
# One for GPUs has its providers in files of their own, which it looks for beside it.
get_filename_component(onnxruntime_folder ${onnxruntime_file} DIRECTORY)
file(GLOB onnxruntime_providers ${onnxruntime_folder}/libonnxruntime_providers_*.so)
install(FILES ${onnxruntime_providers} DESTINATION ${CMAKE_INSTALL_LIBDIR})
