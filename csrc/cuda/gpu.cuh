// The little in which nvcc and the emulation of a GPU by a host compiler (tests/emulation) differ. Kernels are written
// once, against this file: it has the shared memory, the launch and the instructions that have no C++ name.
#pragma once

#include "../common/operand.h"  // before anything that gives names of CUDA another meaning

#ifdef __CUDACC__
#include <cuda_runtime.h>

#define FASTIB_GPU_KERNELS(m) STABLE_TORCH_LIBRARY_IMPL(fastib, CUDA, m)

// A variable in the memory that a block shares.
#define FASTIB_SHARED(name, ...) __shared__ fastib::cuda::Type<__VA_ARGS__> name

#define FASTIB_LAUNCH(kernel, blocks, threads, stream, ...) kernel<<<(blocks), (threads), 0, (stream)>>>(__VA_ARGS__)

namespace fastib::cuda {
template <class T>
struct TypeOf {
  using type = T;
};
template <class T>
using Type = typename TypeOf<T>::type;
// 2^x to 2 units in the last place, one instruction; what is not a normal number becomes 0.
__device__ __forceinline__ float approximate_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Sixteen bytes from global to shared memory, without registers and without waiting. What a thread has copied is there
// for it after wait_for_copies().
__device__ __forceinline__ void copy_16_bytes(void* to, const void* from) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(unsigned(__cvta_generic_to_shared(to))), "l"(from)
               : "memory");
#else
  *static_cast<int4*>(to) = *static_cast<const int4*>(from);
#endif
}
__device__ __forceinline__ void wait_for_copies() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}
}  // namespace fastib::cuda
#else
#include "cuda_emulator.h"
#endif

#define FASTIB_INLINE static __device__ __forceinline__
#define FASTIB_OUT_OF_LINE FASTIB_INLINE
