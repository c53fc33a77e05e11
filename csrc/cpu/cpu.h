// What the CPU operators share outside their kernels: operands, reductions, and the call of the right kernel.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "../common/operand.h"
#include "isa.h"

namespace fastib {

constexpr int kMaxDims = 64;
using Operand = OperandOf<kMaxDims>;

// Kernels work on blocks of elements that fit the first-level cache, in logical (row-major) order. A chunk of blocks is
// what one thread takes at a time and what one partial sum covers: fixed, so that results do not depend on the number
// of threads.
constexpr int64_t kBlock = 512, kChunk = 16 * kBlock;
constexpr int64_t kStreamedBytes = 8 << 20;  // of an output that is written past the caches

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
};

inline int64_t chunks_of(int64_t numel) { return (numel + kChunk - 1) / kChunk; }

// Stores past the caches are in no order with others, until here.
inline void finish_streams() {
#ifdef __x86_64__
  _mm_sfence();
#endif
}

// Results below the normal numbers are 0 while this lives. Of a mixture's densities some always are, and an Intel CPU
// takes so long for each that they were three quarters of the time, and more.
class FlushSubnormals {
 public:
#ifdef __x86_64__
  explicit FlushSubnormals(bool flush = true) : saved_(_mm_getcsr()) {
    if (flush) _mm_setcsr(saved_ | _MM_FLUSH_ZERO_ON);
  }
  ~FlushSubnormals() { _mm_setcsr(saved_); }
  FlushSubnormals(const FlushSubnormals&) = delete;
  FlushSubnormals& operator=(const FlushSubnormals&) = delete;

 private:
  const unsigned saved_;
#else
  explicit FlushSubnormals(bool = true) {}
#endif
};

template <class Kernel, class Arguments>
void run_chunks(Kernel* kernel, const Arguments& arguments, int64_t chunks) {
  torch::stable::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) kernel(arguments, chunk);
    finish_streams();
  });
}

// The same for sums of densities. Those with weights of their own are divided by sums that may be as small.
template <class Kernel, class Arguments>
void run_chunks_of_pairs(Kernel* kernel, const Arguments& arguments, int64_t chunks, bool weights_given) {
  torch::stable::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    [[maybe_unused]] const FlushSubnormals flush(!weights_given);
    for (int64_t chunk = begin; chunk < end; ++chunk) kernel(arguments, chunk);
  });
}

// For tasks of unequal length, those of mixtures: a thread takes the next when it is done with one.
template <class Task>
void run_tasks(Task task, int64_t count) {
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, std::min(count, int64_t(torch::stable::get_num_threads())), 1, [&](int64_t, int64_t) {
    [[maybe_unused]] const FlushSubnormals flush;
    for (int64_t i = next++; i < count; i = next++) task(i);
  });
}

// Names the operator whose work finds no memory: std::bad_alloc has no message. A vector that is too long for any
// memory has another error of its own.
template <class Kernel>
void naming_work_space(const char* name, const Kernel& kernel) {
  const auto no_memory = [&] {
    return std::runtime_error(std::string("fastib: can't allocate memory for the work space of ") + name);
  };
  try {
    kernel();
  } catch (const std::bad_alloc&) {
    throw no_memory();
  } catch (const std::length_error&) {
    throw no_memory();
  }
}

// TORCH_BOX(&function) with that.
#define FASTIB_BOX(function)                                                                         \
  +[](StableIValue* stack, uint64_t arguments, uint64_t results) {                                   \
    ::fastib::naming_work_space(#function, [&] { TORCH_BOX(function)(stack, arguments, results); }); \
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
