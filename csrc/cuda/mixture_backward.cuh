// The gradients of a mixture and of points under it: what pairs.cu takes, and what becomes of its sums.
#pragma once

#include "mixture_forward.cuh"

namespace fastib::cuda {

// What all pairs of a row share: the gradients of the loss by log q(z) and by log q(z|x) - log q(z), the joint's
// maximum and sum, and their quotient, for pairs whose density is all that matters.
template <class S>
struct RowGradients {
  S joint, relative, max, sum, quotient;
  bool is_far;  // a marginal of the row was summed apart
};

template <class S>
struct BackwardRows {
  const RowGradients<S>* rows;
  const S* points;  // [rows, chunks, 4, C]: z, the gradient by log q(z_d) over its sum, that gradient, and that sum
  const S* saved;   // of the forward pass
};

// The partial sums of the gradients of rows, over parts of the components, and of columns, over parts of the rows.
template <class S>
struct BackwardPartials {
  Parts row_parts, column_parts;
  S* by_rows;          // [parts, rows, chunks, C]
  double* by_columns;  // [parts, components, chunks, 2, C]
};

// Sums over all pairs: pairs.cu.
template <class S>
void sum_pair_gradients(const Device& device, const Mixture<S>& m, const Chunks& chunks, const BackwardRows<S>& rows,
                        const BackwardPartials<S>& out);

// coefficients.of_row(row, joint, relative) and coefficients.of_marginal(row, d) give the gradients of the loss.
template <class S, class Coefficients>
__global__ void __launch_bounds__(kThreads, kBlocks)
    pack_gradients(Mixture<S> m, int width, const S* saved, Coefficients coefficients, RowGradients<S>* rows,
                   S* points) {
  const int64_t row = int64_t(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (row >= m.rows) return;
  const int lane = int(threadIdx.x) % kWarp;
  saved += row * (2 * m.dims + 2);
  bool far = false;
  for (int d = lane; d < m.chunks * width; d += kWarp) {
    S* out = points + (row * m.chunks + d / width) * 4 * width + d % width;
    const bool none = d >= m.dims || saved[2 + d] == S(0);
    const S gradient = none ? S(0) : coefficients.of_marginal(row, d);
    out[0] = m.points[row * m.chunks * width + d];
    out[width] = none ? S(0) : gradient / saved[2 + d];
    out[2 * width] = gradient;
    out[3 * width] = none ? S(0) : saved[2 + d];
    far |= !none && saved[2 + d] < S(0);
  }
  far = __ballot_sync(kAllLanes, far) != 0;
  if (lane != 0) return;
  RowGradients<S> g{0, 0, saved[0], saved[1], 0, far};
  if (g.sum == S(0)) g.sum = S(1);
  else coefficients.of_row(row, g.joint, g.relative);
  g.quotient = (g.joint - g.relative) / g.sum;
  rows[row] = g;
}

// The gradient by the joint exponent of a pair. A row's own component, and those with weights of their own, have a
// density that is divided by the sum before anything else: one that is all of a sum then has a share of exactly 1, and
// gradients that cancel leave nothing.
template <class S>
FASTIB_INLINE S joint_gradient(const Mixture<S>& m, const RowGradients<S>& g, S constant, S squares,
                               const PairWeight<S>& w) {
  const S density = power_of_two(joint_exponent(m, constant, squares, w) - g.max);
  if (!m.given && w.is_own == S(0)) return density * g.quotient;
  const S share = (m.given ? density : density * w.weight) / g.sum;
  return fma<S>(w.is_own - share, g.relative, share * g.joint);
}

// d loss / d log-density of a pair in one dimension, where v is its deviation, c the component's and `joint` what the
// joint density gives. First of a pair that is like most,
template <class S>
FASTIB_INLINE S plain_gradient(S v, S c, S quotient, S joint) {
  return fma<S>(power_of_two(fma<S>(-v, v, c)), quotient, joint);
}

// then of any pair: a sum less than 0 is relative to `maximum`, as is the density of `unshifted` then.
template <class S>
FASTIB_INLINE S careful_gradient(S v, S c, S unshifted, S sum, const S* maximum, S gradient, S joint,
                                 const PairWeight<S>& w) {
  S share = 0;
  if (sum < S(0)) share = power_of_two(fma<S>(-v, v, unshifted) + w.log2 - *maximum) / -sum;
  else if (sum != S(0)) share = power_of_two(fma<S>(-v, v, c)) * w.weight / sum;
  return fma<S>(share, gradient, joint);
}

// Where the maxima of a row's marginals are.
template <class S>
FASTIB_INLINE const S* maxima_of(const Mixture<S>& m, const BackwardRows<S>& rows, int64_t row) {
  return rows.saved + row * (2 * m.dims + 2) + 2 + m.dims;
}

// What a row and its own component give to each other, by a warp: of which the shares are exact.
template <class S>
struct OwnPair {
  const Mixture<S>& m;
  const BackwardRows<S>& rows;
  int64_t row, j;
  int width;
  bool exists;
  PairWeight<S> w;
  S joint;

  __device__ OwnPair(const Mixture<S>& m_, int width_, const BackwardRows<S>& rows_, int64_t row_)
      : m(m_), rows(rows_), row(row_), j(row_ + m_.row_offset), width(width_) {
    exists = row >= 0 && row < m.rows && has_own(m, row);
    if (!exists) return;
    w = weigh(m, row, j);
    joint = joint_gradient(m, rows.rows[row], m.constants[j], squares_of_pair(m, width, row, j), w);
  }
  // d loss / d log-density in dimension d, and v, 0 where that is: it may be infinite.
  __device__ S gradient(int d, S& v) const {
    const int chunk = d / width, k = d % width;
    const S* component = m.packed + (j * m.chunks + chunk) * 4 * width + k;
    const S* point = rows.points + (row * m.chunks + chunk) * 4 * width + k;
    v = scaled_deviation(point[0], component[0], component[width]);
    const S by = careful_gradient(v, component[2 * width], component[3 * width], point[3 * width],
                                  maxima_of(m, rows, row) + d, point[2 * width], joint, w);
    if (by == S(0)) v = S(0);
    return by;
  }
};

// d_z is the sum of the parts, of what the row's own component gives, and of what add(row, d) gives besides.
template <class T, class Add>
__global__ void __launch_bounds__(kThreads, kBlocks)
    finish_row_gradients(Mixture<Compute<T>> m, int width, int64_t parts, BackwardRows<Compute<T>> rows,
                         const Compute<T>* in, Matrix d_z, Add add) {
  using S = Compute<T>;
  const int64_t row = int64_t(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (row >= m.rows) return;
  const OwnPair<S> own(m, width, rows, row);
  for (int64_t d = threadIdx.x % kWarp; d < m.dims; d += kWarp) {
    double sum = 0;
#pragma unroll 4
    for (int64_t p = 0; p < parts; ++p) sum += double(in[(p * m.rows + row) * m.chunks * width + d]);
    if (own.exists) {
      S v;
      const S by = own.gradient(int(d), v);
      sum += double(by * v * precision_of(m, width, own.j, int(d)));
    }
    d_z.at<T>(row, d) = T(Compute<T>(-2 * kLn2 * sum + add(row, d)));
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks)
    finish_column_gradients(Mixture<Compute<T>> m, int width, int64_t parts, BackwardRows<Compute<T>> rows,
                            const double* in, Matrix d_mu, Matrix d_logvar) {
  using S = Compute<T>;
  const int64_t j = int64_t(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (j >= m.components) return;
  const OwnPair<S> own(m, width, rows, j - m.row_offset);
  for (int d = int(threadIdx.x) % kWarp; d < m.dims; d += kWarp) {
    const int chunk = d / width, k = d % width;
    double by_mean = 0, by_square = 0;
#pragma unroll 4
    for (int64_t p = 0; p < parts; ++p) {
      const double* sums = in + ((p * m.components + j) * m.chunks + chunk) * 2 * width + k;
      by_mean += sums[0];
      by_square += sums[width];
    }
    if (own.exists) {
      S v;
      const S by = own.gradient(d, v);
      by_mean += double(by * v);
      by_square += double(fma<S>(by, S(-0.5 / kLn2), by * v * v));
    }
    d_mu.at<T>(j, d) = T(S(by_mean * 2 * kLn2 * double(precision_of(m, width, j, d))));
    d_logvar.at<T>(j, d) = T(S(by_square * kLn2));
  }
}

struct MixtureGradients {
  Tensor d_z, d_mu, d_logvar;
};

template <class T, class Coefficients, class Add>
void mixture_backward(const Device& device, const PackedMixture<T>& in, const Tensor& saved,
                      const Coefficients& coefficients, const Add& add, const MixtureGradients& out) {
  using S = Compute<T>;
  const Mixture<S>& m = in.mixture;
  const Parts row_parts(m.components), column_parts(m.rows);
  const int64_t padded = in.chunks.padded();
  const auto scratch = [&](IntArray sizes) { return PackedMixture<T>::scratch(sizes, in.packed); };
  static_assert(sizeof(RowGradients<S>) == 6 * sizeof(S));
  const Tensor rows = scratch({m.rows, 6}), points = scratch({m.rows, 4 * padded});
  const Tensor by_rows = scratch({row_parts.count, m.rows, padded});
  const Tensor by_columns = output({column_parts.count, m.components, 2 * padded}, ScalarType::Double, in.packed);
  const auto data = [](const Tensor& t) { return static_cast<S*>(t.data_ptr()); };
  const S* sums = data(saved);
  auto* row_gradients = static_cast<RowGradients<S>*>(rows.data_ptr());
  constexpr int64_t at_once = kThreads / kWarp;
  FASTIB_RUN(device, (pack_gradients<S, Coefficients>), divide_up(m.rows, at_once), kThreads, m, in.chunks.width, sums,
             coefficients, row_gradients, data(points));
  const BackwardRows<S> packed{row_gradients, data(points), sums};
  const BackwardPartials<S> partials{row_parts, column_parts, data(by_rows), doubles(by_columns)};
  sum_pair_gradients(device, m, in.chunks, packed, partials);
  FASTIB_RUN(device, (finish_row_gradients<T, Add>), divide_up(m.rows, at_once), kThreads, m, in.chunks.width,
             row_parts.count, packed, partials.by_rows, Matrix(out.d_z), add);
  FASTIB_RUN(device, finish_column_gradients<T>, divide_up(m.components, at_once), kThreads, m, in.chunks.width,
             m.rows > 0 ? column_parts.count : 0, packed, partials.by_columns, Matrix(out.d_mu), Matrix(out.d_logvar));
}

}  // namespace fastib::cuda
