// What the library tells of itself and of the devices.
#include "api.h"
#include "cuda_build_config.h"

int cad_fast_cuda_device_count() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  cudaGetLastError();  // not to be left for the next call of anyone
  return error == cudaSuccess ? count : -static_cast<int>(error);
}

int cad_fast_cuda_use_device(int device) {
  const cudaError_t error = cudaSetDevice(device);
  cudaGetLastError();
  return error;
}

const char* cad_fast_cuda_message(int code) {
  switch (code) {
    case cad_fast::cuda::too_large: return "the sizes are beyond what the kernels count with";
    case cad_fast::cuda::unknown_type: return "the type is none that the kernels know";
    case cad_fast::cuda::not_aligned: return "rows do not begin at multiples of 16 bytes, or channels are not by 64";
    case cad_fast::cuda::unknown_tile: return "the tile is none that the kernels know";
  }
  return cudaGetErrorString(static_cast<cudaError_t>(code));
}

const char* cad_fast_cuda_build_info() { return CAD_FAST_CUDA_BUILD_INFO; }
