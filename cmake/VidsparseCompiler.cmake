# Refuses compilers that lack C++20 with one line instead of failing deep inside a header, and gives
# every target of the project the same language mode and warnings.

set(_found "${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}")
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 11)
  message(FATAL_ERROR "vidsparse: expected g++ 11 or newer, got ${_found}")
elseif(CMAKE_CXX_COMPILER_ID STREQUAL "Clang" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 14)
  message(FATAL_ERROR "vidsparse: expected clang 14 or newer, got ${_found}")
elseif(MSVC AND MSVC_VERSION LESS 1930)
  message(FATAL_ERROR "vidsparse: expected MSVC 19.30 (Visual Studio 2022) or newer, got ${_found}")
endif()
unset(_found)

# An unoptimised build by accident would be some twenty times slower.
get_property(_multi_config GLOBAL PROPERTY GENERATOR_IS_MULTI_CONFIG)
if(PROJECT_IS_TOP_LEVEL AND NOT _multi_config AND NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Debug, Release, RelWithDebInfo or MinSizeRel" FORCE)
endif()
unset(_multi_config)

# vidsparse_configure_target(TARGET): C++20 without extensions, hidden symbols, our warnings.
function(vidsparse_configure_target target)
  set_target_properties(
    ${target}
    PROPERTIES CXX_STANDARD 20
               CXX_STANDARD_REQUIRED ON
               CXX_EXTENSIONS OFF
               CXX_VISIBILITY_PRESET hidden
               VISIBILITY_INLINES_HIDDEN ON
               CUDA_STANDARD 20
               CUDA_STANDARD_REQUIRED ON
               CUDA_EXTENSIONS OFF
               CUDA_VISIBILITY_PRESET hidden)
  if(MSVC)
    target_compile_options(${target} PRIVATE /W4 /permissive- /utf-8)
  else()
    target_compile_options(
      ${target} PRIVATE "$<$<NOT:$<COMPILE_LANGUAGE:CUDA>>:-Wall;-Wextra;-Wshadow>")
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
      # It warns of std::string's own operator+ (GCC bug 105651).
      target_compile_options(
        ${target} PRIVATE "$<$<NOT:$<COMPILE_LANGUAGE:CUDA>>:-Wno-restrict>")
    endif()
  endif()
endfunction()

# vidsparse_configure_objects(TARGET): a part of the library. Every source is compiled once and goes
# into the shared and the static library alike.
function(vidsparse_configure_objects target)
  vidsparse_configure_target(${target})
  set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE ON)
  target_include_directories(${target} PRIVATE "${PROJECT_SOURCE_DIR}/include"
                                               "${PROJECT_SOURCE_DIR}/src")
  target_compile_definitions(${target} PRIVATE VIDSPARSE_VERSION="${PROJECT_VERSION}")
  if(BUILD_SHARED_LIBS)
    target_compile_definitions(${target} PRIVATE VIDSPARSE_BUILDING)
  else()
    target_compile_definitions(${target} PRIVATE VIDSPARSE_STATIC)
  endif()
endfunction()
