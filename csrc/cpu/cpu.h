// What the CPU operators share outside their kernels: operands, reductions, and the call of the right kernel.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "../common/stable.h"
#include "isa.h"

namespace fastib {

// Kernels work on blocks of elements that fit the first-level cache, in logical (row-major) order. A chunk of blocks is
// what one thread takes at a time and what one partial sum covers: fixed, so that results do not depend on the number
// of threads.
constexpr int64_t kBlock = 512, kChunk = 16 * kBlock;
constexpr int kMaxDims = 64;
constexpr int64_t kStreamedBytes = 8 << 20;  // of an output that is written past the caches

// A tensor of any strides, read or written by logical element index. Adjacent dimensions are merged. Its dtype is the
// kernel's to know: Python has checked that tensors which belong together share it.
struct Operand {
  char* data = nullptr;
  int dims = 0;
  int64_t sizes[kMaxDims], strides[kMaxDims];  // of `dims` dimensions, strides in elements

  Operand() = default;
  explicit Operand(const Tensor& t) {
    begin(t);
    const auto all_sizes = t.sizes(), all_strides = t.strides();
    for (size_t d = 0; d < all_sizes.size(); ++d) push(all_sizes[d], all_strides[d]);
  }
  explicit Operand(const MaybeTensor& t) {
    if (t) *this = Operand(*t);
  }

  // t seen as a tensor of the shape of `to`, to which it broadcasts.
  static Operand broadcast(const MaybeTensor& t, const Tensor& to) {
    Operand o;
    if (!t) return o;
    o.begin(*t);
    const int64_t missing = to.dim() - t->dim();
    for (int64_t d = 0; d < to.dim(); ++d) {
      const bool repeated = d < missing || t->size(d - missing) == 1;
      o.push(to.size(d), repeated ? 0 : t->stride(d - missing));
    }
    return o;
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

// Elements seen as a matrix [rows, columns], to be summed down its columns. A chunk is a group of rows times a block of
// columns, fixed as above. Partial sums are one per chunk and column of its block.
struct Columns {
  int64_t numel, columns, rows_per_chunk;

  Columns(int64_t numel, int64_t columns);
  int64_t width() const { return std::min(columns, kBlock); }
  int64_t blocks() const { return (columns + kBlock - 1) / kBlock; }
  int64_t chunks() const;
  std::vector<double> partials() const { return std::vector<double>(size_t(chunks() * width())); }
  double total(const std::vector<double>& partials, int64_t column) const;
};

// How a per-element loss becomes the result. The numbers are those of fastib._ops.Reduction.
enum class ReductionKind : int64_t { none = 0, sample = 1, sum = 2, batch = 3 };

// The result of reducing a per-element loss over `shape_of`, times `scale`. Its chunks are computed in any order.
struct Reduction {
  ReductionKind kind;
  double scale;
  int64_t numel, row;  // elements, and elements of the last dimension
  Columns columns;     // for `batch`: one per element of an entry of the first dimension
  Tensor out;
  Operand out_elements;          // for `none`
  std::vector<double> partials;  // two per chunk; for `batch` those of `columns`

  Reduction(const Tensor& shape_of, int64_t kind, double scale);
  int64_t chunks() const;
  Tensor finish();  // call once, after all chunks

  // The gradient of the result, seen as a tensor of the elements' shape.
  static Operand gradient(const MaybeTensor& grad, const Tensor& shape_of, int64_t kind);
};

inline int64_t chunks_of(int64_t numel) { return (numel + kChunk - 1) / kChunk; }

// The tensor int64[2] that the noise comes from, or null where the noise is given.
inline const int64_t* rng_words(const MaybeTensor& rng) {
  return rng ? static_cast<const int64_t*>(rng->const_data_ptr()) : nullptr;
}

// A gradient like t, or, where it is not wanted, an empty tensor, whose operand is null.
inline Tensor gradient_like(const Tensor& t, bool wanted) {
  return wanted ? output_like(t) : output({0}, t.scalar_type(), t);
}

// Noise is drawn in groups of four elements, which the blocks of a column sum cut.
inline void check_reduction_with_noise(int64_t kind) {
  STD_TORCH_CHECK(ReductionKind(kind) != ReductionKind::batch,
                  "fastib: noise with a reduction over the first dimension");
}

// Stores past the caches are in no order with others, until here.
inline void finish_streams() {
#ifdef __x86_64__
  _mm_sfence();
#endif
}

template <class Kernel, class Arguments>
void run_chunks(Kernel* kernel, const Arguments& arguments, int64_t chunks) {
  torch::stable::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) kernel(arguments, chunk);
    finish_streams();
  });
}

// For tasks of unequal length: a thread takes the next when it is done with one.
template <class Task>
void run_tasks(Task task, int64_t count) {
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, std::min(count, int64_t(torch::stable::get_num_threads())), 1, [&](int64_t, int64_t) {
    for (int64_t i = next++; i < count; i = next++) task(i);
  });
}

#ifdef __x86_64__
#define FASTIB_KERNEL(name)                                \
  (::fastib::isa() == ::fastib::Isa::avx512 ? avx512::name \
   : ::fastib::isa() == ::fastib::Isa::avx2 ? avx2::name   \
                                            : baseline::name)
#else
#define FASTIB_KERNEL(name) (baseline::name)
#endif

// The kernel name<T> for tensors of T.
#define FASTIB_KERNEL_OF(dtype, name)                                                   \
  ((dtype) == ScalarType::Double     ? FASTIB_KERNEL(name<double>)                      \
   : (dtype) == ScalarType::Float    ? FASTIB_KERNEL(name<float>)                       \
   : (dtype) == ScalarType::BFloat16 ? FASTIB_KERNEL(name<torch::headeronly::BFloat16>) \
                                     : FASTIB_KERNEL(name<torch::headeronly::Half>))

}  // namespace fastib
