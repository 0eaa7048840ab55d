# The CUDA kernels: a library of their own with CUDA's runtime inside, which loads on a machine without a GPU.
execute_process(COMMAND "${CAD_FAST_NVCC}" --version OUTPUT_VARIABLE nvcc_version COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCH "V([0-9]+\\.[0-9]+\\.[0-9]+)" nvcc_version "${nvcc_version}")
set(CAD_FAST_NVCC_VERSION "${CMAKE_MATCH_1}")
if(CAD_FAST_NVCC_VERSION VERSION_LESS 12.0)
  message(FATAL_ERROR "the CUDA kernels need nvcc 12.0 or later, ${CAD_FAST_NVCC} is ${CAD_FAST_NVCC_VERSION}")
endif()

# Machine code for each, and PTX of the last for what comes after it.
set(architectures 80 90)
if(CAD_FAST_NVCC_VERSION VERSION_GREATER_EQUAL 12.8)
  list(APPEND architectures 100)
endif()
set(targets "")
set(names "")
foreach(architecture IN LISTS architectures)
  list(APPEND targets -gencode "arch=compute_${architecture},code=sm_${architecture}")
  list(APPEND names "\\\"sm_${architecture}\\\"")
endforeach()
list(GET architectures -1 last)
list(APPEND targets -gencode "arch=compute_${last},code=compute_${last}")
list(APPEND names "\\\"compute_${last}\\\"")
# Instructions of a warpgroup are Hopper's alone, and have no PTX for what comes after it.
set(targets_wgmma_linear -gencode "arch=compute_90a,code=sm_90a")
list(APPEND names "\\\"sm_90a\\\"")
list(JOIN names ", " CAD_FAST_CUDA_ARCHITECTURE_LIST)
configure_file(csrc/cuda/cuda_build_config.h.in generated/cuda_build_config.h @ONLY)

# A kernel whose variables do not fit the registers does not build.
set(nvcc "${CAD_FAST_NVCC}" -ccbin "${CMAKE_CXX_COMPILER}" -std=c++17 -O3 -Xcompiler -fPIC,-fvisibility=hidden
         -Xptxas --warn-on-spills,-Werror)
file(GLOB cuda_sources CONFIGURE_DEPENDS csrc/cuda/*.cu)
set(cuda_objects "")
foreach(source IN LISTS cuda_sources)
  get_filename_component(op "${source}" NAME_WE)
  set(object "${CMAKE_BINARY_DIR}/cuda/${op}.o")
  set(own_targets ${targets})
  if(DEFINED targets_${op})
    set(own_targets ${targets_${op}})
  endif()
  add_custom_command(
    OUTPUT "${object}"
    COMMAND ${nvcc} ${own_targets} -I "${CMAKE_BINARY_DIR}/generated" -MD -MF "${object}.d" -c "${source}" -o "${object}"
    DEPENDS "${source}" "${CMAKE_BINARY_DIR}/generated/cuda_build_config.h"
    DEPFILE "${object}.d"
    COMMENT "Compiling the CUDA kernels of ${op}"
    VERBATIM)
  list(APPEND cuda_objects "${object}")
endforeach()
file(MAKE_DIRECTORY "${CMAKE_BINARY_DIR}/cuda")
set(cuda_library "${CAD_FAST_OUTPUT_DIR}/libcad_fast_cuda.so")
add_custom_command(
  OUTPUT "${cuda_library}"
  COMMAND "${CAD_FAST_NVCC}" -ccbin "${CMAKE_CXX_COMPILER}" -shared -nodlink -cudart static ${cuda_objects} -o "${cuda_library}"
  DEPENDS ${cuda_objects}
  VERBATIM)
add_custom_target(cuda ALL DEPENDS "${cuda_library}")
