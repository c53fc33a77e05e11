// The backward pass over a mixture: the gradients of points, then those of components, each summed by whoever owns
// them.
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
  const S* points;  // [rows, chunks, 3, C]: z, the gradient by log q(z_d) over its sum, and that gradient
  const S* saved;   // of the forward pass
};

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
    S* out = points + (row * m.chunks + d / width) * 3 * width + d % width;
    const bool none = d >= m.dims || saved[2 + d] == S(0);
    const S gradient = none ? S(0) : coefficients.of_marginal(row, d);
    out[0] = m.points[row * m.chunks * width + d];
    out[width] = none ? S(0) : gradient / saved[2 + d];
    out[2 * width] = gradient;
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

// Whether the marginals of a pair want the same care.
template <class S>
FASTIB_INLINE bool is_plain(const Mixture<S>& m, const RowGradients<S>& g, const PairWeight<S>& w) {
  return !m.given && !g.is_far && w.is_own == S(0);
}

// The share of a pair in a marginal; v is its deviation and `exponent` the shifted one.
template <int C, class S>
FASTIB_INLINE S marginal_share(const Mixture<S>& m, const S* saved, int64_t row, int64_t j, int chunk, int k, S v,
                               S exponent, const PairWeight<S>& w) {
  const int d = chunk * C + k;
  if (d >= m.dims) return S(0);
  saved += row * (2 * m.dims + 2) + 2;
  const S sum = saved[d];
  if (sum == S(0)) return S(0);
  if (sum < S(0)) return power_of_two(fma<S>(-v, v, unshifted(m, C, j, chunk, k)) + w.log2 - saved[m.dims + d]) / -sum;
  return power_of_two(exponent) * w.weight / sum;
}

template <int C, class S>
struct PointGradients {
  S z[C], quotient[C], gradient[C];

  __device__ PointGradients(const BackwardRows<S>& rows, const Mixture<S>& m, int64_t row, int chunk) {
    const S* p = rows.points + (row * m.chunks + chunk) * 3 * C;
    load(p, z);
    load(p + C, quotient);
    load(p + 2 * C, gradient);
  }
};

// d loss / d log-density of a pair in dimension k of a chunk; v is its deviation.
template <int C, class S>
FASTIB_INLINE S pair_gradient(const Mixture<S>& m, const BackwardRows<S>& rows, int64_t row, int64_t j, int chunk,
                              int k, const PointGradients<C, S>& point, S v, S c, S joint, bool plain,
                              const PairWeight<S>& w) {
  const S exponent = fma<S>(-v, v, c);
  if (plain) return fma<S>(power_of_two(exponent), point.quotient[k], joint);
  return fma<S>(marginal_share<C>(m, rows.saved, row, j, chunk, k, v, exponent, w), point.gradient[k], joint);
}

// Where the squares and the joint gradients of several pairs wait; see sum_densities for how.
template <class S>
struct Waiting {
  S squares[kWaiting][kWarp], joint[kWaiting][kWarp];
};

template <class S>
FASTIB_INLINE S squares_of_warps(const Waiting<S>& waiting, int warps, int at_once, int k, int lane) {
  S squares = 0;
  for (int warp = 0; warp < warps; ++warp) squares += waiting.squares[warp * at_once + k][lane];
  return squares;
}

template <class S, int C>
__global__ void __launch_bounds__(kMostWarps* kWarp, kBlocks)
    sum_row_gradients(Mixture<S> m, Parts parts, BackwardRows<S> rows, S* out) {  // [parts, rows, chunks, C]
  FASTIB_SHARED(waiting, Waiting<S>);
  const Place at(m.rows, m.components, parts);
  const int64_t row = std::min(at.index, m.rows - 1);
  const int own_chunk = at.panel * m.warps + at.warp, chunk = std::min(own_chunk, m.chunks - 1);
  const int at_once = kWaiting / m.warps;
  const PointGradients<C, S> point(rows, m, row, chunk);
  const RowGradients<S> g = rows.rows[row];
  S sums[C] = {};
  double totals[C] = {};
  int terms = 0;
  for (int64_t first = at.begin; first < at.end; first += at_once) {
    const int count = int(std::min<int64_t>(at_once, at.end - first));
    for (int k = 0; k < count; ++k)
      waiting.squares[at.warp * at_once + k][at.lane] = squares_of_warp<C>(m, row, first + k, at.warp);
    __syncthreads();
    for (int k = at.warp; k < count; k += m.warps) {
      const S squares = squares_of_warps(waiting, m.warps, at_once, k, at.lane);
      waiting.joint[k][at.lane] = joint_gradient(m, g, m.constants[first + k], squares, weigh(m, row, first + k));
    }
    __syncthreads();
    for (int k = 0; k < count; ++k) {
      const Component<C, S> component(m, first + k, chunk);
      const PairWeight<S> w = weigh(m, row, first + k);
      const bool plain = is_plain(m, g, w);
      const S joint = waiting.joint[k][at.lane];
#pragma unroll
      for (int i = 0; i < C; ++i) {
        const S v = scaled_deviation(point.z[i], component.mu[i], component.precision[i]);
        const S by = pair_gradient(m, rows, row, first + k, chunk, i, point, v, component.c[i], joint, plain, w);
        sums[i] = fma<S>(by * v, component.precision[i], sums[i]);
      }
    }
    terms += count;
    if (terms < kTermsPerSum && first + count < at.end) continue;
    terms = 0;
#pragma unroll
    for (int i = 0; i < C; ++i) {
      totals[i] += double(sums[i]);
      sums[i] = S(0);
    }
  }
  if (at.index >= m.rows || own_chunk >= m.chunks) return;
  out += ((int64_t(at.part) * m.rows + row) * m.chunks + chunk) * C;
#pragma unroll
  for (int i = 0; i < C; ++i) out[i] = S(totals[i]);
}

template <class S, int C>
__global__ void __launch_bounds__(kMostWarps* kWarp, kBlocks)
    sum_column_gradients(Mixture<S> m, Parts parts, BackwardRows<S> rows,
                         double* out) {  // [parts, components, chunks, 2, C]
  FASTIB_SHARED(waiting, Waiting<S>);
  const Place at(m.components, m.rows, parts);
  const int64_t j = std::min(at.index, m.components - 1);
  const int own_chunk = at.panel * m.warps + at.warp, chunk = std::min(own_chunk, m.chunks - 1);
  const int at_once = kWaiting / m.warps;
  const Component<C, S> component(m, j, chunk);
  const S constant = m.constants[j];
  S by_mean[C] = {}, by_square[C] = {};
  int terms = 0;
  const bool writes = at.index < m.components && own_chunk < m.chunks;
  out += ((int64_t(at.part) * m.components + j) * m.chunks + chunk) * 2 * C;
  bool begun = false;
  for (int64_t first = at.begin; first < at.end; first += at_once) {
    const int count = int(std::min<int64_t>(at_once, at.end - first));
    for (int k = 0; k < count; ++k)
      waiting.squares[at.warp * at_once + k][at.lane] = squares_of_warp<C>(m, first + k, j, at.warp);
    __syncthreads();
    for (int k = at.warp; k < count; k += m.warps) {
      const S squares = squares_of_warps(waiting, m.warps, at_once, k, at.lane);
      waiting.joint[k][at.lane] = joint_gradient(m, rows.rows[first + k], constant, squares, weigh(m, first + k, j));
    }
    __syncthreads();
    for (int k = 0; k < count; ++k) {
      const int64_t row = first + k;
      const PointGradients<C, S> point(rows, m, row, chunk);
      const PairWeight<S> w = weigh(m, row, j);
      const bool plain = is_plain(m, rows.rows[row], w);
      const S joint = waiting.joint[k][at.lane];
#pragma unroll
      for (int i = 0; i < C; ++i) {
        const S v = scaled_deviation(point.z[i], component.mu[i], component.precision[i]);
        const S by = pair_gradient(m, rows, row, j, chunk, i, point, v, component.c[i], joint, plain, w);
        const S by_v = by * v;  // v^2 alone may overflow where a density is 0
        by_mean[i] += by_v;
        by_square[i] = fma<S>(by, S(-0.5 / kLn2), fma<S>(by_v, v, by_square[i]));
      }
    }
    terms += count;
    if (terms < kRowsPerSum && first + count < at.end) continue;
    terms = 0;
    if (writes) {
#pragma unroll
      for (int i = 0; i < C; ++i) {
        out[i] = (begun ? out[i] : 0) + double(by_mean[i]);
        out[C + i] = (begun ? out[C + i] : 0) + double(by_square[i]);
      }
    }
    begun = true;
#pragma unroll
    for (int i = 0; i < C; ++i) by_mean[i] = by_square[i] = S(0);
  }
}

// d_z is the sum of the parts, and of what add(row, d) gives besides.
template <class T, class Add>
__global__ void __launch_bounds__(kThreads, kBlocks)
    finish_row_gradients(Mixture<Compute<T>> m, int width, int64_t parts, const Compute<T>* in, Matrix d_z, Add add) {
  const int64_t row = int64_t(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (row >= m.rows) return;
  for (int64_t d = threadIdx.x % kWarp; d < m.dims; d += kWarp) {
    double sum = 0;
    for (int64_t p = 0; p < parts; ++p) sum += double(in[(p * m.rows + row) * m.chunks * width + d]);
    d_z.at<T>(row, d) = T(Compute<T>(-2 * kLn2 * sum + add(row, d)));
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks)
    finish_column_gradients(Mixture<Compute<T>> m, int width, int64_t parts, const double* in, Matrix d_mu,
                            Matrix d_logvar) {
  using S = Compute<T>;
  const int64_t j = int64_t(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (j >= m.components) return;
  for (int d = int(threadIdx.x) % kWarp; d < m.dims; d += kWarp) {
    const int chunk = d / width, k = d % width;
    double by_mean = 0, by_square = 0;
    for (int64_t p = 0; p < parts; ++p) {
      const double* sums = in + ((p * m.components + j) * m.chunks + chunk) * 2 * width + k;
      by_mean += sums[0];
      by_square += sums[width];
    }
    const double precision = double(m.packed[((j * m.chunks + chunk) * 4 + 1) * width + k]);
    d_mu.at<T>(j, d) = T(S(by_mean * 2 * kLn2 * precision));
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
  const Tensor rows = scratch({m.rows, 6}), points = scratch({m.rows, 3 * padded});
  const Tensor by_rows = scratch({row_parts.count, m.rows, padded});
  const Tensor by_columns = output({column_parts.count, m.components, 2 * padded}, ScalarType::Double, in.packed);
  const auto data = [](const Tensor& t) { return static_cast<S*>(t.data_ptr()); };
  const S* sums = data(saved);
  auto* row_gradients = static_cast<RowGradients<S>*>(rows.data_ptr());
  constexpr int64_t at_once = kThreads / kWarp;
  FASTIB_RUN(device, (pack_gradients<S, Coefficients>), divide_up(m.rows, at_once), kThreads, m, in.chunks.width, sums,
             coefficients, row_gradients, data(points));
  const BackwardRows<S> packed{row_gradients, data(points), sums};
  with_width<S>(in.chunks, [&](auto width) {
    constexpr int C = decltype(width)::value;
    FASTIB_RUN(device, (sum_row_gradients<S, C>), blocks_of_pairs(in.chunks, m.rows, row_parts), m.warps * kWarp, m,
               row_parts, packed, data(by_rows));
    FASTIB_RUN(device, (sum_column_gradients<S, C>), blocks_of_pairs(in.chunks, m.components, column_parts),
               m.warps * kWarp, m, column_parts, packed, doubles(by_columns));
  });
  FASTIB_RUN(device, (finish_row_gradients<T, Add>), divide_up(m.rows, at_once), kThreads, m, in.chunks.width,
             row_parts.count, data(by_rows), Matrix(out.d_z), add);
  FASTIB_RUN(device, finish_column_gradients<T>, divide_up(m.components, at_once), kThreads, m, in.chunks.width,
             m.rows > 0 ? column_parts.count : 0, doubles(by_columns), Matrix(out.d_mu), Matrix(out.d_logvar));
}

}  // namespace fastib::cuda
