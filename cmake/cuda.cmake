# The GPU kernels: _cuda.so by nvcc (left out, with a message, without one) and, for development, _emulated.so: the same
# sources by the C++ compiler, with which the tests run the kernels where there is no GPU.

set(RESFLOW_CUDA AUTO CACHE STRING "Build the GPU kernels: AUTO (where nvcc is found), ON or OFF")
set_property(CACHE RESFLOW_CUDA PROPERTY STRINGS AUTO ON OFF)

# sm_80 runs on every GPU of compute capability 8, sm_90a (which has wgmma and TMA) on 9.0; newer ones compile the PTX.
set(RESFLOW_CUDA_ARCHITECTURES sm_80 sm_90a compute_80)
set(RESFLOW_GENCODE -gencode arch=compute_80,code=[sm_80,compute_80] -gencode arch=compute_90a,code=sm_90a)

file(GLOB RESFLOW_KERNELS CONFIGURE_DEPENDS csrc/cuda/*/*.cu)
file(GLOB RESFLOW_CUDA_OPS CONFIGURE_DEPENDS csrc/torch/cuda*.cpp)

find_program(RESFLOW_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
set(CUDA_LEFT_OUT "")
if(TORCH_LEFT_OUT)
  set(CUDA_LEFT_OUT "the torch ops are left out, because ${TORCH_LEFT_OUT}")
elseif(NOT RESFLOW_CUDA_OPS)
  set(CUDA_LEFT_OUT "its sources are missing")
elseif(RESFLOW_CUDA STREQUAL "OFF")
  set(CUDA_LEFT_OUT "RESFLOW_CUDA=OFF")
elseif(NOT RESFLOW_NVCC)
  set(CUDA_LEFT_OUT "no nvcc was found when it was built")
else()
  execute_process(COMMAND ${RESFLOW_NVCC} --version OUTPUT_VARIABLE nvcc_version ERROR_QUIET)
  string(REGEX MATCH "release ([0-9]+\\.[0-9]+)" nvcc_version "${nvcc_version}")
  set(nvcc_version ${CMAKE_MATCH_1})
  if(NOT nvcc_version VERSION_GREATER_EQUAL 12.5) # C++20, sm_90a, cudaGetDriverEntryPointByVersion
    set(CUDA_LEFT_OUT "${RESFLOW_NVCC} is of CUDA ${nvcc_version}, not 12.5 or newer")
  endif()
endif()
if(CUDA_LEFT_OUT AND RESFLOW_CUDA STREQUAL "ON")
  message(FATAL_ERROR "GPU kernels: RESFLOW_CUDA=ON, but ${CUDA_LEFT_OUT}")
endif()

# Facts about this build for the package (resflow_kernels/_build.json): what it contains, and what is missing and why.
set(left_out "")
foreach(part TORCH NUMPY CUDA)
  if(${part}_LEFT_OUT)
    string(TOLOWER ${part} name)
    list(APPEND left_out "\"${name}\": \"${${part}_LEFT_OUT}\"")
  endif()
endforeach()
string(REPLACE ";" ", " left_out "${left_out}")
if(CUDA_LEFT_OUT)
  message(STATUS "GPU kernels: left out, because ${CUDA_LEFT_OUT}")
  set(facts "\"cuda\": null")
  file(REMOVE ${RESFLOW_OUTPUT}/_cuda.so)
else()
  message(STATUS "GPU kernels: built by ${RESFLOW_NVCC} (CUDA ${nvcc_version}) for ${RESFLOW_CUDA_ARCHITECTURES}")
  string(REPLACE ";" "\", \"" architectures "${RESFLOW_CUDA_ARCHITECTURES}")
  set(facts "\"cuda\": \"${nvcc_version}\", \"architectures\": [\"${architectures}\"]")
endif()
file(CONFIGURE OUTPUT ${RESFLOW_OUTPUT}/_build.json CONTENT "{${facts}, \"left_out\": {${left_out}}}\n" @ONLY)

if(NOT CUDA_LEFT_OUT)
  execute_process(COMMAND ${RESFLOW_NVCC} --dryrun -x cu /dev/null ERROR_VARIABLE dryrun OUTPUT_QUIET)
  string(REGEX MATCH "TOP=([^\n]+)" dryrun "${dryrun}")
  get_filename_component(CUDA_FOLDER ${CMAKE_MATCH_1} REALPATH)
  find_path(CUDA_INCLUDE cuda_runtime.h PATHS ${CUDA_FOLDER} PATH_SUFFIXES include targets/x86_64-linux/include
    NO_DEFAULT_PATH REQUIRED)
  find_library(CUDART_STATIC cudart_static PATHS ${CUDA_FOLDER} PATH_SUFFIXES lib64 lib targets/x86_64-linux/lib
    NO_DEFAULT_PATH REQUIRED)

  # As in host code, the source (fmaf), not the compiler, decides what is contracted to one rounding. Otherwise two
  # kernels could score the same candidate differently.
  set(nvcc_flags -std=c++20 -O3 --fmad=false --expt-relaxed-constexpr ${RESFLOW_GENCODE} -Xptxas -v
    -Xcompiler -fPIC,-fvisibility=hidden,-ffp-contract=off,-Wall,-Werror=switch -I ${CMAKE_SOURCE_DIR}/csrc
    -I ${CMAKE_SOURCE_DIR}/resflow_kernels)
  set(objects "")
  file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/cuda)
  foreach(kernel ${RESFLOW_KERNELS})
    get_filename_component(name ${kernel} NAME)
    set(object ${CMAKE_BINARY_DIR}/cuda/${name}.o)
    # ptxas reports registers, shared memory and spills on stderr; the log is kept for tests/cuda/test_binaries.py.
    add_custom_command(
      OUTPUT ${object}
      COMMAND ${RESFLOW_NVCC} ${nvcc_flags} -MD -MF ${object}.d -MT ${object} -c ${kernel} -o ${object}
              > ${object}.log 2>&1 || { cat ${object}.log$<SEMICOLON> exit 1$<SEMICOLON> }
      DEPENDS ${kernel} DEPFILE ${object}.d
      COMMENT "Compiling csrc/cuda/${name} for ${RESFLOW_CUDA_ARCHITECTURES}")
    list(APPEND objects ${object})
  endforeach()
  set_source_files_properties(${objects} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
  resflow_torch_library(_cuda ${RESFLOW_CUDA_OPS} ${objects})
  target_include_directories(_cuda SYSTEM PRIVATE ${CUDA_INCLUDE})
  target_compile_definitions(_cuda PRIVATE USE_CUDA)
  # Links libtorch although no symbol is used: in a CUDA build of torch it brings the library with the CUDA shims.
  target_link_options(_cuda PRIVATE -Wl,--no-as-needed)
  target_link_libraries(_cuda PRIVATE ${TORCH_FOLDER}/lib/libtorch.so ${CUDART_STATIC} dl rt)
  add_dependencies(extensions _cuda)
endif()

# The same kernels for the emulator. Only nvcc knows #pragma unroll.
set_source_files_properties(
  ${RESFLOW_KERNELS} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-x;c++;-Wno-unknown-pragmas")
add_library(resflow_cuda_emulated STATIC EXCLUDE_FROM_ALL ${RESFLOW_KERNELS})
target_compile_options(resflow_cuda_emulated PRIVATE -Werror=switch-enum)
target_link_libraries(resflow_cuda_emulated PUBLIC resflow_emulator)
if(NOT TORCH_LEFT_OUT AND RESFLOW_CUDA_OPS)
  resflow_torch_library(_emulated ${RESFLOW_CUDA_OPS})
  set_target_properties(_emulated PROPERTIES EXCLUDE_FROM_ALL ON LIBRARY_OUTPUT_DIRECTORY ${CMAKE_SOURCE_DIR}/tests/emulator)
  target_link_libraries(_emulated PRIVATE resflow_cuda_emulated)
  add_dependencies(development _emulated)
endif()
