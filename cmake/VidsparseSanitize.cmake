# Sanitizers and libFuzzer's coverage concern everything that is linked together, so they are set
# for the whole tree before any target exists.

if(VIDSPARSE_BUILD_FUZZERS AND NOT CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  message(FATAL_ERROR "VIDSPARSE_BUILD_FUZZERS: expected clang (libFuzzer), "
                      "got ${CMAKE_CXX_COMPILER_ID}")
endif()

set(_sanitizers ${VIDSPARSE_SANITIZE})
if(VIDSPARSE_BUILD_FUZZERS)
  string(APPEND _sanitizers "$<COMMA>fuzzer-no-link")
  string(REGEX REPLACE "^\\$<COMMA>" "" _sanitizers "${_sanitizers}")
endif()

if(_sanitizers)
  if(MSVC)
    message(FATAL_ERROR "VIDSPARSE_SANITIZE: expected g++ or clang, got MSVC")
  endif()
  add_compile_options(-fsanitize=${_sanitizers} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${_sanitizers})
endif()
unset(_sanitizers)
