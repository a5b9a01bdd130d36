# Installs the build into a prefix of its own, builds both examples against it as a stranger would,
# shared and static, and runs them; then the C example once more through pkg-config, without CMake.
#   cmake -DBUILD_DIR=... -DSOURCE_DIR=... -DWORK_DIR=... -P check_package.cmake
# Compilers and flags (a sanitizer's) come in as C_COMPILER, CXX_COMPILER and FLAGS.

function(run what)
  execute_process(
    COMMAND ${ARGN}
    RESULT_VARIABLE status
    OUTPUT_VARIABLE output
    ERROR_VARIABLE output)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "${what} failed (${status}):\n${output}")
  endif()
  message(STATUS "${what}: ok")
endfunction()

set(prefix "${WORK_DIR}/prefix")
file(REMOVE_RECURSE "${WORK_DIR}")
run("install" "${CMAKE_COMMAND}" --install "${BUILD_DIR}" --prefix "${prefix}")

foreach(example IN ITEMS find_package c)
  foreach(static IN ITEMS OFF ON)
    set(build "${WORK_DIR}/${example}_static_${static}")
    run("${example}: configure"
        "${CMAKE_COMMAND}"
        -S "${SOURCE_DIR}/examples/${example}"
        -B "${build}"
        -G "${GENERATOR}"
        -DCMAKE_BUILD_TYPE=Release
        "-DCMAKE_PREFIX_PATH=${prefix}"
        "-DCMAKE_C_COMPILER=${C_COMPILER}"
        "-DCMAKE_CXX_COMPILER=${CXX_COMPILER}"
        "-DCMAKE_C_FLAGS=${FLAGS}"
        "-DCMAKE_CXX_FLAGS=${FLAGS}"
        -DSTATIC_VIDSPARSE=${static})
    run("${example}: build" "${CMAKE_COMMAND}" --build "${build}")
    run("${example}: run, static ${static}" "${build}/sparse_forward")
  endforeach()
endforeach()

# A prefix chosen at install time stands in no file: the .pc file goes by its own place.
find_program(pkg_config pkg-config)
if(NOT pkg_config OR FLAGS)
  return()
endif()
file(GLOB_RECURSE pc "${prefix}/vidsparse.pc")
get_filename_component(pc_dir "${pc}" DIRECTORY)
set(ENV{PKG_CONFIG_PATH} "${pc_dir}")
execute_process(
  COMMAND "${pkg_config}" --cflags --libs vidsparse
  OUTPUT_VARIABLE pc_flags
  OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
separate_arguments(pc_flags UNIX_COMMAND "${pc_flags}")
get_filename_component(lib_dir "${pc_dir}" DIRECTORY)
run("pkg-config: build" "${C_COMPILER}" -std=c99 "${SOURCE_DIR}/examples/c/sparse_forward.c" -o
    "${WORK_DIR}/pc_forward" ${pc_flags} -lm "-Wl,-rpath,${lib_dir}")
run("pkg-config: run" "${WORK_DIR}/pc_forward")
