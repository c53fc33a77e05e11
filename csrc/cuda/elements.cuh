// Groups of elements: read from and written to tensors of any strides, sixteen bytes at a time where they lie so.
#pragma once

#include "launch.cuh"

namespace fastib::cuda {

// Consecutive elements of T that one thread takes: sixteen bytes, or what one Philox counter gives.
template <class T>
constexpr int kGroup = sizeof(T) == 2 ? 8 : 4;

// PyTorch's own limit for the dimensions that are left when adjacent ones are merged.
constexpr int kMaxDims = 25;

struct Operand : OperandOf<kMaxDims> {
  bool aligned = false;  // its elements lie side by side, in whole vectors
  // A division by sizes[d] is a product with magic[d] and a shift (Granlund & Montgomery 1994, for 63 bits): a division
  // of 64 bits is a subroutine, for which a kernel would have to spill registers.
  uint64_t magic[kMaxDims];
  uint8_t shift[kMaxDims];

  Operand() = default;
  Operand(const OperandOf<kMaxDims>& o)
      : OperandOf<kMaxDims>(o),
        aligned(data != nullptr && contiguous() && reinterpret_cast<uintptr_t>(o.data) % 16 == 0) {
    for (int d = 1; d < dims; ++d) {
      const auto size = uint64_t(std::max<int64_t>(sizes[d], 2));  // of no elements none is looked for
      int log = 1;
      while ((uint64_t(1) << log) < size) ++log;
      shift[d] = uint8_t(log - 1);
      magic[d] = uint64_t((((unsigned __int128)(1) << (63 + log)) + size - 1) / size);
    }
  }
  explicit Operand(const Tensor& t) : Operand(OperandOf<kMaxDims>(t)) {}
  explicit Operand(const MaybeTensor& t) : Operand(OperandOf<kMaxDims>(t)) {}
  static Operand broadcast(const MaybeTensor& t, const Tensor& to) { return OperandOf<kMaxDims>::broadcast(t, to); }
  static Operand gradient(const MaybeTensor& grad, const Tensor& elements, int64_t reduction) {
    return OperandOf<kMaxDims>::gradient(grad, elements, reduction);
  }

  __device__ bool present() const { return data != nullptr; }
  // Where logical element e lies, in elements.
  __device__ int64_t offset(int64_t e) const {
    int64_t at = 0;
#pragma unroll 1
    for (int d = dims - 1; d > 0; --d) {
      const auto rest = int64_t(__umul64hi(uint64_t(e), magic[d]) >> shift[d]);
      at += (e - rest * sizes[d]) * strides[d];
      e = rest;
    }
    return dims > 0 ? at + e * strides[0] : 0;
  }
};

// Elements [begin, begin + N), as far as they are in [first, end). `begin` is a multiple of N.
template <int N>
struct Span {
  int64_t begin, first, end;

  __device__ Span(int64_t begin_, int64_t first_, int64_t end_) : begin(begin_), first(first_), end(end_) {}
  __device__ bool has(int i) const { return begin + i >= first && begin + i < end; }
  __device__ bool whole() const { return begin >= first && begin + N <= end; }
};

template <class T>
struct alignas(16) Vector {
  T values[16 / sizeof(T)];
};

// The elements of x, a tensor of T, and 0 for those outside the span and for all of an operand that is not there.
template <class T, int N, class S>
FASTIB_INLINE void read(const Operand& x, const Span<N>& span, S (&out)[N]) {
  constexpr int width = 16 / sizeof(T);
  const T* data = reinterpret_cast<const T*>(x.data);
  if constexpr (N % width == 0) {
    if (x.aligned && span.whole()) {
#pragma unroll
      for (int i = 0; i < N; i += width) {
        const auto v = *reinterpret_cast<const Vector<T>*>(data + span.begin + i);
#pragma unroll
        for (int k = 0; k < width; ++k) out[i + k] = S(v.values[k]);
      }
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < N; ++i) out[i] = x.present() && span.has(i) ? S(data[x.offset(span.begin + i)]) : S(0);
}

template <class T, int N, class S>
FASTIB_INLINE void write(const Operand& x, const Span<N>& span, const S (&values)[N]) {
  constexpr int width = 16 / sizeof(T);
  if (!x.present()) return;
  T* data = reinterpret_cast<T*>(x.data);
  if constexpr (N % width == 0) {
    if (x.aligned && span.whole()) {
#pragma unroll
      for (int i = 0; i < N; i += width) {
        Vector<T> v;
#pragma unroll
        for (int k = 0; k < width; ++k) v.values[k] = T(values[i + k]);
        *reinterpret_cast<Vector<T>*>(data + span.begin + i) = v;
      }
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < N; ++i)
    if (span.has(i)) data[x.offset(span.begin + i)] = T(values[i]);
}

// The noise of a group: that given, a tensor of T, or else drawn from rng.
template <class T, int N, class S>
FASTIB_INLINE void read_noise(const Operand& given, const int64_t* rng, const Span<N>& span, S (&noise)[N]) {
  static_assert(N % 4 == 0);
  if (rng == nullptr) return read<T>(given, span, noise);
  const uint64_t seed = uint64_t(rng[0]), offset = uint64_t(rng[1]);
#pragma unroll
  for (int i = 0; i < N; i += 4) {
    const auto w = philox_words<uint64_t>(uint64_t(span.begin + i) / 4, seed, offset);
    using U = Uint<S>;
    constexpr uint64_t low = 0xffffffffu;
    box_muller<S>(U(w.w0 & low), U(w.w1 & low), noise[i], noise[i + 1]);
    box_muller<S>(U(w.w2 & low), U(w.w3 & low), noise[i + 2], noise[i + 3]);
  }
}

// Runs act(span) for every group of [0, numel), each in a thread of its own.
template <int N, class Act>
__global__ void __launch_bounds__(kThreads, kBlocks) each_group(Act act, int64_t numel) {
  const int64_t begin = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * N;
  if (begin < numel) act(Span<N>(begin, 0, numel));
}

template <int N, class Act>
void run_each_group(const Tensor& on, const Act& act, int64_t numel) {
  const Device device(on);
  FASTIB_RUN(device, (each_group<N, Act>), divide_up(numel, int64_t(N) * kThreads), kThreads, act, numel);
}

}  // namespace fastib::cuda
