# The torch extension: the library's calls as torch operators through torch's stable ABI, one binary
# for every torch from 2.10 on and every Python. Torch is that of the Python interpreter; only its
# headers and the name of its library are taken.

find_package(Python REQUIRED COMPONENTS Interpreter)
execute_process(
  COMMAND "${Python_EXECUTABLE}" -c
          "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0])"
  OUTPUT_VARIABLE _torch
  OUTPUT_STRIP_TRAILING_WHITESPACE
  ERROR_QUIET
  RESULT_VARIABLE _failed)
if(_failed)
  message(FATAL_ERROR "vidsparse: VIDSPARSE_BUILD_TORCH: expected torch 2.10 or newer in "
                      "${Python_EXECUTABLE}, got none (pip install torch)")
endif()
if(NOT EXISTS "${_torch}/include/torch/csrc/stable/library.h")
  message(FATAL_ERROR "vidsparse: VIDSPARSE_BUILD_TORCH: expected torch 2.10 or newer, got one "
                      "without the stable ABI in ${_torch}")
endif()

add_library(
  vidsparse_torch MODULE
  "${PROJECT_SOURCE_DIR}/python/csrc/ops.cpp" "${PROJECT_SOURCE_DIR}/python/csrc/plans.cpp"
  "${PROJECT_SOURCE_DIR}/python/csrc/tensors.cpp")
vidsparse_configure_target(vidsparse_torch)
target_include_directories(vidsparse_torch SYSTEM PRIVATE "${_torch}/include")
target_compile_definitions(vidsparse_torch PRIVATE TORCH_TARGET_VERSION=0x020a000000000000ULL)
target_link_libraries(vidsparse_torch PRIVATE vidsparse_internal)
if(VIDSPARSE_HAS_CUDA)
  target_compile_definitions(vidsparse_torch
                             PRIVATE VIDSPARSE_CUDA_MAJOR=${CUDAToolkit_VERSION_MAJOR})
endif()
if(WIN32)
  target_link_libraries(vidsparse_torch PRIVATE "${_torch}/lib/torch_cpu.lib")
else()
  # Found at run time because Python has loaded torch before; no path of this machine is kept.
  target_link_options(vidsparse_torch PRIVATE "-L${_torch}/lib" "LINKER:--no-as-needed" -ltorch_cpu
                      "LINKER:--exclude-libs,ALL")
  set_target_properties(vidsparse_torch PROPERTIES BUILD_WITH_INSTALL_RPATH ON INSTALL_RPATH "")
endif()
# Into the package's folder of a wheel (scikit-build-core puts the component there).
install(TARGETS vidsparse_torch LIBRARY DESTINATION "." COMPONENT python)
