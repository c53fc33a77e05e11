// How the kernels of a call are launched: on the device of its tensors, in PyTorch's stream, checked, and without ever
// waiting for the device.
#pragma once

#include "scalar.cuh"

namespace fastib::cuda {

constexpr int kThreads = 256;
// Of which one is on a multiprocessor at least. Said to nvcc, whose assembler else spills a number or two to fit one
// more.
constexpr int kBlocks = 1;

class Device {
 public:
  explicit Device(const Tensor& t);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  cudaStream_t stream() const { return stream_; }

 private:
  CUDAGuardHandle guard_ = nullptr;
  cudaStream_t stream_ = nullptr;
};

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Raises what the launch of `kernel` left as an error.
void check_launch(const char* kernel);
// The number of blocks as a launch wants it.
unsigned grid(int64_t blocks);

#define FASTIB_RUN(device, kernel, blocks, threads, ...)                                                 \
  do {                                                                                                   \
    const int64_t fastib_blocks = (blocks);                                                              \
    if (fastib_blocks == 0) break;                                                                       \
    FASTIB_LAUNCH(kernel, ::fastib::cuda::grid(fastib_blocks), threads, (device).stream(), __VA_ARGS__); \
    ::fastib::cuda::check_launch(#kernel);                                                               \
  } while (false)

// Calls f with a value of the type that tensors of `dtype` hold.
template <class F>
auto with_type(ScalarType dtype, F f) {
  switch (dtype) {
    case ScalarType::Double: return f(double());
    case ScalarType::Float: return f(float());
    case ScalarType::BFloat16: return f(BFloat16());
    default: return f(Half());
  }
}

}  // namespace fastib::cuda
