// The part of CUDA C++ that the kernels use, for a host compiler: each thread of a block is a fiber, and blocks run one
// after another. What the fibers do to memory is what the threads of a GPU would; when they do it is up to `order`.
#pragma once

#include <math.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <tuple>
#include <type_traits>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

// Kernels are registered for the CPU, in a process where no other compiled ones are.
#define FASTIB_GPU_KERNELS(m) STABLE_TORCH_LIBRARY_IMPL(fastib, CPU, m)

typedef struct CUstream_st* cudaStream_t;
typedef int cudaError_t;
constexpr cudaError_t cudaSuccess = 0;
cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t);

// There is one device and one stream, and they need no handles.
using CUDAGuardHandle = void*;
inline AOTITorchError aoti_torch_create_cuda_guard(int32_t, CUDAGuardHandle*) { return AOTI_TORCH_SUCCESS; }
inline AOTITorchError aoti_torch_delete_cuda_guard(CUDAGuardHandle) { return AOTI_TORCH_SUCCESS; }
inline AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**) { return AOTI_TORCH_SUCCESS; }

namespace emulator {

enum class WarpOperation { synchronise, shuffle, vote };

struct Thread {
  uint3 index, block;
  dim3 block_size, grid_size;
  int lane;
  struct Copy {
    void* to;
    const void* from;
  } copies[64];  // begun, and not waited for
  int copies_begun;
};
extern Thread* current;

using Body = void (*)(void*);
void run_grid(dim3 grid, dim3 block, Body body, void* argument, const char* kernel);
void block_barrier();
int block_vote(int predicate);  // how many threads of the block say yes
// All lanes of the mask meet; then a lane gets the value of lane `source`, or the lanes that voted.
uint64_t warp_operation(WarpOperation operation, unsigned mask, uint64_t value, int source);
void* shared_variable(const void* key, size_t bytes);  // one for all threads of a block
void fence();
extern int perturbation;  // of approximate instructions: 0 for none, else a seed

// As <<<>>> does, converts the arguments once, to the types of the kernel's parameters.
template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, const char* name, A&&... arguments) {
  std::tuple<P...> values(static_cast<P>(arguments)...);
  auto body = [&] { std::apply(kernel, values); };
  run_grid(grid, block, [](void* b) { (*static_cast<decltype(body)*>(b))(); }, &body, name);
}

template <class T>
uint64_t bits(T v) {
  static_assert(sizeof(T) <= 8);
  uint64_t b = 0;
  std::memcpy(&b, &v, sizeof(T));
  return b;
}

template <class T>
T from_bits(uint64_t b) {
  T v;
  std::memcpy(&v, &b, sizeof(T));
  return v;
}

}  // namespace emulator

#define threadIdx (emulator::current->index)
#define blockIdx (emulator::current->block)
#define blockDim (emulator::current->block_size)
#define gridDim (emulator::current->grid_size)

#define FASTIB_LAUNCH(kernel, blocks, threads, stream, ...) \
  ((void)(stream), emulator::launch(kernel, (blocks), (threads), #kernel, __VA_ARGS__))

// Each block has its own, of its exact size, and filled with NaN: what is read before it is written shows.
#define FASTIB_SHARED(name, ...)    \
  static const char name##_key = 0; \
  auto& name =                      \
      *static_cast<std::remove_reference_t<__VA_ARGS__>*>(emulator::shared_variable(&name##_key, sizeof(__VA_ARGS__)))

inline void __syncthreads() { emulator::block_barrier(); }
inline int __syncthreads_or(int predicate) { return emulator::block_vote(predicate) != 0; }
inline void __syncwarp(unsigned mask = ~0u) {
  emulator::warp_operation(emulator::WarpOperation::synchronise, mask, 0, 0);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  const int source = emulator::current->lane ^ lanes;
  return emulator::from_bits<T>(
      emulator::warp_operation(emulator::WarpOperation::shuffle, mask, emulator::bits(value), source));
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source) {
  return emulator::from_bits<T>(
      emulator::warp_operation(emulator::WarpOperation::shuffle, mask, emulator::bits(value), source));
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return unsigned(emulator::warp_operation(emulator::WarpOperation::vote, mask, predicate != 0, 0));
}

// A copy is not there before it is waited for.
inline void copy_16_bytes(void* to, const void* from) {
  emulator::Thread& thread = *emulator::current;
  if (size_t(thread.copies_begun) == std::size(thread.copies)) std::abort();
  thread.copies[thread.copies_begun++] = {to, from};
}
inline void wait_for_copies() {
  emulator::Thread& thread = *emulator::current;
  for (int i = 0; i < thread.copies_begun; ++i) std::memcpy(thread.copies[i].to, thread.copies[i].from, 16);
  thread.copies_begun = 0;
}

inline int __ffs(unsigned x) { return __builtin_ffs(int(x)); }

inline uint64_t __umul64hi(uint64_t a, uint64_t b) { return uint64_t(((unsigned __int128)(a)*b) >> 64); }

// ex2.approx.ftz.f32: up to 2 units in the last place from what it should be (the PTX ISA's figure), here by a hash of
// x.
inline float approximate_exp2(float x) {
  const float y = std::exp2(x);
  if (std::fabs(y) < 0x1p-126f) return 0;
  if (!std::isfinite(y) || emulator::perturbation == 0) return y;
  uint32_t hash = uint32_t(emulator::bits(x)) * 0x9E3779B1u + uint32_t(emulator::perturbation);
  hash = (hash ^ hash >> 15) * 0x85EBCA6Bu;
  const int units = int((hash ^ hash >> 13) % 5) - 2;
  return emulator::from_bits<float>(emulator::bits(y) + uint64_t(int64_t(units)));
}
