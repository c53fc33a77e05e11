// What LibTorch's stable ABI lacks or spells at length.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <optional>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace fastib {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

// A large output is touched for the first time by the kernel that writes it. In pages of 4 KiB the faults then double
// the time of reparameterize_with_kl at 4096 x 4096. Huge pages are the operating system's to grant; this only asks.
inline Tensor prefer_huge_pages(Tensor t) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t huge = uintptr_t(2) << 20;
  const auto begin = reinterpret_cast<uintptr_t>(t.const_data_ptr());
  const uintptr_t first = (begin + huge - 1) / huge * huge;
  const uintptr_t last = (begin + uintptr_t(t.numel()) * t.element_size()) / huge * huge;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
  return t;
}

// torch.empty_like(t, dtype=dtype): keeps the strides of a dense tensor. The ABI's own has no dtype argument.
inline Tensor output_like(const Tensor& t, ScalarType dtype) {
  using torch::stable::detail::from;
  std::array<StableIValue, 6> stack{from(t),
                                    from(std::optional<ScalarType>(dtype)),
                                    from(std::nullopt),
                                    from(std::nullopt),
                                    from(std::nullopt),
                                    from(std::nullopt)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::empty_like", "", stack.data(), TORCH_ABI_VERSION));
  return prefer_huge_pages(torch::stable::detail::to<Tensor>(stack[0]));
}

inline Tensor output_like(const Tensor& t) { return output_like(t, t.scalar_type()); }

inline Tensor output(torch::headeronly::IntHeaderOnlyArrayRef sizes, ScalarType dtype, const Tensor& device_of) {
  return torch::stable::empty(sizes, dtype, std::nullopt, device_of.device());
}

// Losses and everything accumulated are float32, or float64 for float64.
inline ScalarType accumulate_type(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

}  // namespace fastib
