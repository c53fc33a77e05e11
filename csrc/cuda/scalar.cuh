// What common/math.h, gaussian.h and philox.h want to know of V where it is a scalar: on a GPU a thread is a lane.
#pragma once

#include <cmath>
#include <type_traits>

#include "gpu.cuh"

namespace fastib::cuda {

using BFloat16 = torch::headeronly::BFloat16;
using Half = torch::headeronly::Half;

// Tensors hold T; kernels compute in Compute<T>.
template <class T>
using Compute = std::conditional_t<sizeof(T) == 2, float, T>;

template <class V>
using Scalar = V;
template <class V>
using Int = std::conditional_t<sizeof(V) == 4, int32_t, int64_t>;
template <class V>
using Uint = std::conditional_t<sizeof(V) == 4, uint32_t, uint64_t>;

template <class To, class From>
FASTIB_INLINE To bits_as(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To y;
  std::memcpy(&y, &x, sizeof(y));
  return y;
}

template <class V>
FASTIB_INLINE V splat(V x) {
  return x;
}
template <class V>
FASTIB_INLINE Int<V> as_int(V x) {
  return bits_as<Int<V>>(x);
}
template <class V>
FASTIB_INLINE V as_real(Int<V> x) {
  return bits_as<V>(x);
}
template <class V>
FASTIB_INLINE V to_real(Int<V> x) {
  return V(x);
}

// Both compilers are told to contract nothing themselves, so that a formula gives the bits that it gives on a CPU.
template <class V>
FASTIB_INLINE V fma(V a, V b, V c) {
  return ::fma(a, b, c);
}
template <class V>
FASTIB_INLINE V square_root(V x) {
  return ::sqrt(x);
}
template <class V>
FASTIB_INLINE bool any_beyond(V x, V bound) {
  return !(x >= -bound && x <= bound);
}

FASTIB_INLINE uint64_t multiply_low(uint64_t x, uint32_t m) { return uint64_t(uint32_t(x)) * m; }

// x as the nearest integer and a rest in [-1/2, 1/2], to make 2^x of.
template <class V>
struct Rounded {
  V whole, rest;
};
template <class V>
FASTIB_INLINE Rounded<V> round_to_integer(V x) {
  constexpr V least = sizeof(V) == 4 ? -127 : -1023;  // 2^least comes out as 0
  x = x < least ? least : x;
  const V whole = ::rint(x);
  return {whole, x - whole};
}
template <class V>
FASTIB_INLINE V times_power_of_two(V p, const Rounded<V>& r) {
  constexpr int mantissa_bits = sizeof(V) == 4 ? 23 : 52;
  if (r.whole != r.whole) return r.whole;
  return as_real<V>(Int<V>((Uint<V>(Int<V>(r.whole)) << mantissa_bits) + Uint<V>(as_int(p))));
}

#include "../common/math.h"

#include "../common/gaussian.h"
#include "../common/philox.h"

}  // namespace fastib::cuda
