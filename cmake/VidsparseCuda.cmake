# VIDSPARSE_CUDA: whether the CUDA backends are built. AUTO builds them where a CUDA compiler is
# found, ON fails where they cannot be built. Sets VIDSPARSE_HAS_CUDA, and _cuda_summary for the
# last lines of configure: what is built, or why it is not.

set(VIDSPARSE_CUDA AUTO CACHE STRING "Build the CUDA backends: AUTO, ON or OFF")
set_property(CACHE VIDSPARSE_CUDA PROPERTY STRINGS AUTO ON OFF)
set(VIDSPARSE_CUDA_OLDEST 12.4)

set(VIDSPARSE_HAS_CUDA OFF)
if(NOT VIDSPARSE_CUDA)
  set(_cuda_summary "VIDSPARSE_CUDA is off")
elseif(VIDSPARSE_SANITIZE OR VIDSPARSE_BUILD_FUZZERS)
  set(_cuda_summary "host sanitizers and fuzzers do not go with nvcc")
else()
  include(CheckLanguage)
  # One host compiler for everything, unless the caller names another.
  if(NOT CMAKE_CUDA_HOST_COMPILER AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    set(CMAKE_CUDA_HOST_COMPILER "${CMAKE_CXX_COMPILER}")
  endif()
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    set(_cuda_summary "expected a CUDA compiler (nvcc ${VIDSPARSE_CUDA_OLDEST} or newer), got none")
  else()
    # Each source names its own architectures.
    set(CMAKE_CUDA_ARCHITECTURES OFF)
    set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
    enable_language(CUDA)
    if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
      # CMake below 3.26 does not know it of nvcc.
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
    endif()
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS VIDSPARSE_CUDA_OLDEST)
      set(_cuda_summary "expected nvcc ${VIDSPARSE_CUDA_OLDEST} or newer, "
                        "got ${CMAKE_CUDA_COMPILER_VERSION}")
      string(CONCAT _cuda_summary ${_cuda_summary})
    else()
      find_package(CUDAToolkit ${VIDSPARSE_CUDA_OLDEST} REQUIRED)
      set(VIDSPARSE_HAS_CUDA ON)
    endif()
  endif()
endif()

if(VIDSPARSE_CUDA AND NOT VIDSPARSE_CUDA STREQUAL "AUTO" AND NOT VIDSPARSE_HAS_CUDA)
  message(FATAL_ERROR "VIDSPARSE_CUDA=${VIDSPARSE_CUDA}: ${_cuda_summary}")
endif()
