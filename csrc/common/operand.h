// Tensors as the kernels of elementwise operators see them, on every device.
#pragma once

#include "stable.h"

namespace fastib {

// How a per-element loss becomes the result. The numbers are those of fastib._ops.Reduction.
enum class ReductionKind : int64_t { none = 0, sample = 1, sum = 2, batch = 3 };

// What a reduced loss is multiplied by: operators take what it is divided by, an integer, which a graph of any size
// has.
inline double scale_of(int64_t divisor) { return 1.0 / double(divisor); }

// A tensor of any strides, read or written by logical element index. Adjacent dimensions are merged. Its dtype is the
// kernel's to know: Python has checked that tensors which belong together share it.
template <int kMaxDims>
struct OperandOf {
  char* data = nullptr;
  int dims = 0;
  int64_t sizes[kMaxDims], strides[kMaxDims];  // of `dims` dimensions, strides in elements

  OperandOf() = default;
  explicit OperandOf(const Tensor& t) {
    begin(t);
    const auto all_sizes = t.sizes(), all_strides = t.strides();
    for (size_t d = 0; d < all_sizes.size(); ++d) push(all_sizes[d], all_strides[d]);
  }
  explicit OperandOf(const MaybeTensor& t) {
    if (t) *this = OperandOf(*t);
  }

  // t seen as a tensor of the shape of `to`, to which it broadcasts.
  static OperandOf broadcast(const MaybeTensor& t, const Tensor& to) {
    OperandOf o;
    if (!t) return o;
    o.begin(*t);
    const int64_t missing = to.dim() - t->dim();
    for (int64_t d = 0; d < to.dim(); ++d) {
      const bool repeated = d < missing || t->size(d - missing) == 1;
      o.push(to.size(d), repeated ? 0 : t->stride(d - missing));
    }
    return o;
  }

  // The gradient of a reduced loss, seen as a tensor of the shape of `elements`.
  static OperandOf gradient(const MaybeTensor& grad, const Tensor& elements, int64_t reduction) {
    OperandOf g;
    if (!grad) return g;
    g.begin(*grad);
    const auto kind = ReductionKind(reduction);
    const int64_t dims = elements.dim();
    for (int64_t d = 0; d < dims; ++d) {
      const bool reduced = kind == ReductionKind::sum || (kind == ReductionKind::sample && d == dims - 1) ||
                           (kind == ReductionKind::batch && d == 0);
      g.push(elements.size(d), reduced ? 0 : grad->stride(kind == ReductionKind::batch ? d - 1 : d));
    }
    return g;
  }

  explicit operator bool() const { return data != nullptr; }
  bool contiguous() const { return dims == 0 || (dims == 1 && strides[0] == 1); }

  void begin(const Tensor& t) { data = static_cast<char*>(t.data_ptr()); }
  void push(int64_t size, int64_t stride) {
    if (size == 1) return;
    if (dims > 0 && strides[dims - 1] == stride * size) {
      sizes[dims - 1] *= size;
      strides[dims - 1] = stride;
      return;
    }
    STD_TORCH_CHECK(dims < kMaxDims, "fastib: more than ", kMaxDims, " dimensions");
    sizes[dims] = size;
    strides[dims++] = stride;
  }
};

// The tensor int64[2] that the noise comes from, or null where the noise is given.
inline const int64_t* rng_words(const MaybeTensor& rng) {
  return rng ? static_cast<const int64_t*>(rng->const_data_ptr()) : nullptr;
}

// A gradient like t, or, where it is not wanted, an empty tensor, whose operand is null.
inline Tensor gradient_like(const Tensor& t, bool wanted) {
  return wanted ? output_like(t) : output({0}, t.scalar_type(), t);
}

// Noise is drawn in groups of four elements, which a sum over the first dimension cuts.
inline void check_reduction_with_noise(int64_t kind) {
  STD_TORCH_CHECK(ReductionKind(kind) != ReductionKind::batch,
                  "fastib: noise with a reduction over the first dimension");
}

// The columns down which the gradient by a prior is summed: none if it has an element for each of mu's.
inline int64_t columns_of(const Tensor& prior, const Tensor& mu) {
  if (prior.numel() == mu.numel()) return 0;
  int64_t d = 0;
  while (d < prior.dim() && prior.size(d) == 1) ++d;
  for (; d < prior.dim(); ++d)
    STD_TORCH_CHECK(prior.size(d) == mu.size(mu.dim() - prior.dim() + d),
                    "fastib: the gradient by a prior that is broadcast in other than leading dimensions");
  return prior.numel();
}

}  // namespace fastib
