// What LibTorch's stable ABI lacks or spells at length.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

#ifdef __CUDACC__
#define FASTIB_HOST_DEVICE __host__ __device__
#else
#define FASTIB_HOST_DEVICE
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
  if (last > first && t.device().is_cpu()) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
  return t;
}

using IntArray = torch::headeronly::IntHeaderOnlyArrayRef;

// For tests: results are NaN until a kernel writes them. PyTorch's own filling, of its deterministic mode, is the
// dispatcher's, which empty_strided goes past.
inline bool poison_results = false;

inline const char* name_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    default: return "int64";
  }
}

// For an allocation that failed: hardly ever for another reason, which the ABI does not tell before PyTorch 2.13.
[[noreturn]] __attribute__((noinline, cold)) inline void throw_no_memory(IntArray sizes, ScalarType dtype) {
  std::ostringstream said;
  said << "fastib: can't allocate memory for a result of shape [";
  for (size_t d = 0; d < sizes.size(); ++d) said << (d == 0 ? "" : ", ") << sizes[d];
  said << "] and dtype " << name_of(dtype);
  throw std::runtime_error(said.str());
}

// torch.empty_strided on the device of a tensor. By name, through the dispatcher, a small result costs three times
// this.
inline Tensor empty_strided(IntArray sizes, IntArray strides, ScalarType dtype, const Tensor& device_of) {
  const auto device = device_of.device();
  AtenTensorHandle handle;
  if (aoti_torch_empty_strided(int64_t(sizes.size()), sizes.data(), strides.data(), int32_t(dtype),
                               int32_t(device.type()), device.index(), &handle) != TORCH_SUCCESS)
    throw_no_memory(sizes, dtype);
  Tensor result(handle);
  if (!poison_results || result.numel() == 0) return result;
  if (device.is_cpu()) std::memset(result.data_ptr(), 0xff, size_t(result.numel()) * result.element_size());
  else torch::stable::fill_(result, dtype == ScalarType::Long ? -1.0 : double(NAN));
  return result;
}

// torch.empty_like(t, dtype=dtype): keeps the strides of a dense tensor. The ABI's own has no dtype argument.
inline Tensor output_like(const Tensor& t, ScalarType dtype) {
  if (t.is_contiguous()) return prefer_huge_pages(empty_strided(t.sizes(), t.strides(), dtype, t));
  using torch::stable::detail::from;
  std::array<StableIValue, 6> stack{from(t),
                                    from(std::optional<ScalarType>(dtype)),
                                    from(std::nullopt),
                                    from(std::nullopt),
                                    from(std::nullopt),
                                    from(std::nullopt)};
  if (torch_call_dispatcher("aten::empty_like", "", stack.data(), TORCH_ABI_VERSION) != TORCH_SUCCESS)
    throw_no_memory(t.sizes(), dtype);
  return prefer_huge_pages(torch::stable::detail::to<Tensor>(stack[0]));
}

inline Tensor output_like(const Tensor& t) { return output_like(t, t.scalar_type()); }

inline Tensor output(IntArray sizes, ScalarType dtype, const Tensor& device_of) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t d = sizes.size(); d-- > 0; stride *= std::max<int64_t>(sizes[d], 1)) strides[d] = stride;
  return empty_strided(sizes, strides, dtype, device_of);
}

// Losses and everything accumulated are float32, or float64 for float64.
inline ScalarType accumulate_type(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

}  // namespace fastib
