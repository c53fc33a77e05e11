// -logvar / 2, reduced as asked. Its gradient is a constant, which Python expands without touching memory.
#include "reduce.cuh"

namespace fastib::cuda {

template <class T>
struct Penalty {
  static constexpr bool kSummedOverBatch = true;
  Operand logvar;

  template <int N>
  __device__ void operator()(const Span<N>& span, Compute<T> (&values)[N]) const {
    read<T>(logvar, span, values);
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] *= Compute<T>(-0.5);
  }
};

Tensor log_variance_penalty(const Tensor& logvar, int64_t reduction, int64_t divisor) {
  return with_type(logvar.scalar_type(), [&](auto type) {
    using T = decltype(type);
    return reduce<T>(Penalty<T>{Operand(logvar)}, logvar, reduction, scale_of(divisor));
  });
}

FASTIB_GPU_KERNELS(m) { m.impl("log_variance_penalty", TORCH_BOX(&log_variance_penalty)); }

}  // namespace fastib::cuda
