// -logvar / 2, reduced as asked. Its gradient is a constant, which Python expands without touching memory.
#ifndef FASTIB_ISA
#include "cpu.h"

namespace fastib {
constexpr double kFactor = -0.5;

struct LogVariancePenaltyArguments {
  Operand logvar;
  Reduction* reduction;
};
}  // namespace fastib

#define FASTIB_KERNELS "log_variance_penalty.cpp"
#include "each_isa.h"

namespace fastib {

Tensor log_variance_penalty(const Tensor& logvar, int64_t reduction, int64_t divisor) {
  Reduction r(logvar, reduction, kFactor * scale_of(divisor));
  const LogVariancePenaltyArguments a{Operand(logvar), &r};
  run_chunks(FASTIB_KERNEL_OF(logvar.scalar_type(), forward), a, r.chunks());
  return r.finish();
}

STABLE_TORCH_LIBRARY_IMPL(fastib, CPU, m) { m.impl("log_variance_penalty", FASTIB_BOX(log_variance_penalty)); }

}  // namespace fastib

#else

template <class T>
static void forward(const LogVariancePenaltyArguments& a, int64_t chunk) {
  using S = Compute<T>;
  using V = Vec<S>;
  Buffer<T> buffer;
  const bool reduced = a.reduction->kind != ReductionKind::none;
  const S factor = reduced ? S(1) : S(kFactor);  // otherwise it waits for the sum
  reduce_chunk<S>(*a.reduction, chunk, [&](int64_t begin, int64_t n, S* penalty) -> const S* {
    const T* logvar = read<T>(a.logvar, begin, n, buffer);
    if constexpr (std::is_same_v<T, S>)
      if (reduced) return logvar;
    for (int64_t i = 0; i < n; i += kLanes<S>) store(penalty + i, load<V>(logvar + i) * factor);
    return penalty;
  });
}

#endif
