// A mixture of diagonal Gaussians, and points under it: what the kernels of every device know of it.
//
// For a point i and a component j, u_d = (z_id - mu_jd) exp(-l_jd / 2). Kernels work in powers of two: with
// v = u sqrt(log2(e) / 2) and c = -log2(e) l / 2 the density in dimension d is 2^(c - v^2) times a factor that all
// components share, and the joint one 2^(C - sum_d v^2), C = sum_d c. The largest c of a dimension is known beforehand:
// less a shift, so that no power of two overflows, a sum over components needs no running maximum; that over C does.
#pragma once

#include <cmath>

#include "stable.h"

namespace fastib {

constexpr double kLog2E = 0x1.71547652b82fep0, kLn2 = 0x1.62e42fefa39efp-1, kLog2Pi = 0x1.d67f1c864beb4p0;
constexpr double kRootHalfLog2E = 0x1.b2da4e9808a53p-1;  // sqrt(log2(e) / 2): e^(-u^2 / 2) is 2^-v^2, v = u times this

// A precision beyond this is taken for it: the density is 0 in S but at the mean itself, where no 0 * inf may arise.
template <class S>
constexpr double kLargestPrecision = sizeof(S) == 4 ? 0x1p110 : 0x1p1000;

// A marginal whose sum, relative to its shift, is smaller: a point that no component is near. It is summed again
// relative to its own maximum. Above it, float holds what is down to 2^-78 of the sum.
template <class S>
constexpr double kFarSum = sizeof(S) == 4 ? 0x1p-48 : 0x1p-900;

// A matrix of any strides; its dtype is the kernel's to know. Null where there is none.
struct Matrix {
  char* data = nullptr;
  int64_t row = 0, column = 0;

  Matrix() = default;
  explicit Matrix(const Tensor& t)
      : data(static_cast<char*>(t.data_ptr())), row(t.stride(0)), column(t.dim() > 1 ? t.stride(1) : 0) {}
  explicit Matrix(const MaybeTensor& t) {
    if (t) *this = Matrix(*t);
  }

  explicit FASTIB_HOST_DEVICE operator bool() const { return data != nullptr; }
  Matrix transposed() const {
    Matrix t(*this);
    std::swap(t.row, t.column);
    return t;
  }
  template <class T>
  FASTIB_HOST_DEVICE T& at(int64_t i, int64_t j = 0) const {
    return reinterpret_cast<T*>(data)[i * row + j * column];
  }
};

// What a row's own component weighs in its mixture, and each of the others.
struct Weights {
  double self, other;
};

// Where the weights come from. The numbers are those of fastib._arguments.Estimator.
enum class Estimator : int64_t { given = 0, mss = 1, mws = 2, in_batch = 3, leave_one_out = 4 };

// Those of an estimator, for a batch of so many components of a data set; or those given.
inline Weights weights_of(int64_t estimator, int64_t dataset_size, int64_t components, Weights given = {}) {
  const auto size = double(dataset_size), batch = double(components), others = batch - 1;
  switch (Estimator(estimator)) {
    case Estimator::mss:
      if (dataset_size == components) return {1 / batch, 1 / batch};  // equal: no row needs a component of its own
      return {1 / size, (size - 1) / (size * others)};
    case Estimator::mws: return {1 / (size * batch), 1 / (size * batch)};
    case Estimator::in_batch: return {1 / batch, 1 / batch};
    case Estimator::leave_one_out: return {0, 1 / others};
    default: return given;
  }
}

// The weights of a row's own component and of the others, relative to a base. Where one is so much the smaller one that
// float can't hold both, each pair is weighed by a logarithm.
struct PairWeighting {
  double own, other, log2_own, log2_other, log_base;
  bool by_logarithm;

  explicit PairWeighting(Weights w) {
    constexpr double smallest_ratio = 0x1p-60;  // below, sums of float would overflow, or lose the smaller one
    const double base = w.other >= smallest_ratio * w.self ? w.other : w.self;
    own = w.self / base;
    other = w.other / base;
    by_logarithm = other != 1 || (own > 0 && own < smallest_ratio);
    log2_own = std::log2(own);
    log2_other = std::log2(other);
    log_base = std::log(base);
  }
};

// The shift of a dimension of which `largest` is the largest c that is finite, or -infinity. It costs digits: what a
// component gives to a point is rounded relative to its shifted exponent. So it is no larger than need be, and 0 for
// all that are common: with a weight of up to 2^60, float holds a sum of powers of two up to 2^40.
template <class S>
FASTIB_HOST_DEVICE double shift_for(double largest) {
  constexpr double largest_exponent = 40;
  if (largest == -double(INFINITY)) return 0;  // no logvar is finite
  if (std::abs(largest) > 0x1p20) return double(S(largest));
  const double needed = std::ceil(largest - largest_exponent);
  return std::fmin(std::floor(largest), needed > 0 ? needed : 0);
}

}  // namespace fastib
