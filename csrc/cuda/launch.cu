// The host's side of every launch.
#include "launch.cuh"

namespace fastib::cuda {

Device::Device(const Tensor& t) {
  const int32_t index = t.device().index();
  TORCH_ERROR_CODE_CHECK(aoti_torch_create_cuda_guard(index, &guard_));
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index, &stream));
  stream_ = static_cast<cudaStream_t>(stream);
}

Device::~Device() { aoti_torch_delete_cuda_guard(guard_); }

void check_launch(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "fastib: the launch of ", kernel, " failed: ", cudaGetErrorString(error));
}

unsigned grid(int64_t blocks) {
  STD_TORCH_CHECK(blocks <= INT32_MAX, "fastib: a launch of ", blocks, " blocks");
  return unsigned(blocks);
}

}  // namespace fastib::cuda
