# The shared and the static library from the same objects: the one exports what VIDSPARSE_API marks,
# the other is what tests and tools use to reach internals. Then how others find them: CMake package and pkg-config.

include(CMakePackageConfigHelpers)

# _vidsparse_library(TARGET TYPE): a library from the objects with the public interface.
function(_vidsparse_library target type)
  add_library(${target} ${type})
  foreach(part IN LISTS VIDSPARSE_PARTS)
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:vidsparse_${part}>)
  endforeach()
  add_library(vidsparse::${target} ALIAS ${target})
  target_compile_features(${target} PUBLIC cxx_std_20)
  target_include_directories(
    ${target} PUBLIC "$<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>"
                     "$<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>")
  # While the major version is 0, a minor version may break the ABI.
  set_target_properties(
    ${target}
    PROPERTIES LINKER_LANGUAGE CXX
               VERSION "${PROJECT_VERSION}"
               SOVERSION "${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR}")
  if(VIDSPARSE_HAS_CUDA)
    # The runtime goes into the shared library; the driver is looked up at run time. An installed
    # static library takes the runtime of its user's toolkit (vidsparseConfig.cmake).
    target_link_libraries(${target} PRIVATE $<BUILD_INTERFACE:CUDA::cudart_static>)
  endif()
  if(type STREQUAL "STATIC")
    target_compile_definitions(${target} PUBLIC VIDSPARSE_STATIC)
  endif()
endfunction()

if(BUILD_SHARED_LIBS)
  _vidsparse_library(vidsparse SHARED)
  if(UNIX AND NOT APPLE)
    # Visibility flags do not reach the standard library's own templates.
    set(_exports "${PROJECT_SOURCE_DIR}/cmake/vidsparse.map")
    target_link_options(vidsparse PRIVATE "LINKER:--version-script=${_exports}")
    set_target_properties(vidsparse PROPERTIES LINK_DEPENDS "${_exports}")
  endif()
  _vidsparse_library(vidsparse_static STATIC)
  # On Windows the import library already has the plain name.
  if(NOT WIN32)
    set_target_properties(vidsparse_static PROPERTIES OUTPUT_NAME vidsparse)
  endif()
  set(_libraries vidsparse vidsparse_static)
  set(_internal vidsparse_static)
else()
  _vidsparse_library(vidsparse STATIC)
  set(_libraries vidsparse)
  set(_internal vidsparse)
endif()

# What tests, tools and benchmarks link: every symbol, and src/ on the include path.
add_library(vidsparse_internal INTERFACE)
target_link_libraries(vidsparse_internal INTERFACE ${_internal})
target_include_directories(vidsparse_internal INTERFACE "${PROJECT_SOURCE_DIR}/src")

if(VIDSPARSE_INSTALL)
  set(_package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/vidsparse")
  install(
    TARGETS ${_libraries}
    EXPORT vidsparseTargets
    RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}"
    LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}"
    ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}")
  install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/vidsparse"
          DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
  install(
    EXPORT vidsparseTargets
    NAMESPACE vidsparse::
    DESTINATION "${_package_dir}")
  set(VIDSPARSE_STATIC_TARGET vidsparse::${_internal})
  configure_package_config_file("${PROJECT_SOURCE_DIR}/cmake/vidsparseConfig.cmake.in"
                                vidsparseConfig.cmake INSTALL_DESTINATION "${_package_dir}")
  write_basic_package_version_file(vidsparseConfigVersion.cmake COMPATIBILITY SameMinorVersion)
  install(FILES "${CMAKE_CURRENT_BINARY_DIR}/vidsparseConfig.cmake"
                "${CMAKE_CURRENT_BINARY_DIR}/vidsparseConfigVersion.cmake"
          DESTINATION "${_package_dir}")

  # A C program that links the static library needs the C++ runtime named.
  set(VIDSPARSE_PC_LIBS_PRIVATE "-lstdc++ -lm")
  if(APPLE)
    set(VIDSPARSE_PC_LIBS_PRIVATE "-lc++")
  endif()
  if(VIDSPARSE_HAS_CUDA)
    string(APPEND VIDSPARSE_PC_LIBS_PRIVATE
           " -L${CUDAToolkit_LIBRARY_DIR} -lcudart_static -ldl -lrt -lpthread")
  endif()
  set(VIDSPARSE_PC_CFLAGS "")
  if(NOT BUILD_SHARED_LIBS)
    set(VIDSPARSE_PC_CFLAGS " -DVIDSPARSE_STATIC")
  endif()
  # From the .pc file's own place, so that a prefix given to --install, or a tree that moved, holds.
  file(RELATIVE_PATH VIDSPARSE_PC_TO_PREFIX
       "${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig" "${CMAKE_INSTALL_PREFIX}")
  string(REGEX REPLACE "/$" "" VIDSPARSE_PC_TO_PREFIX "${VIDSPARSE_PC_TO_PREFIX}")
  configure_file("${PROJECT_SOURCE_DIR}/cmake/vidsparse.pc.in" vidsparse.pc @ONLY)
  install(FILES "${CMAKE_CURRENT_BINARY_DIR}/vidsparse.pc"
          DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig")
endif()
