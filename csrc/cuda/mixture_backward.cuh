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

template <int C, class S>
struct PointGradients {
  S z[C], quotient[C];

  PointGradients() = default;
  __device__ PointGradients(const BackwardRows<S>& rows, const Mixture<S>& m, int64_t row, int chunk) {
    const S* p = rows.points + (row * m.chunks + chunk) * 3 * C;
    load(p, z);
    load(p + C, quotient);
  }
};

// d loss / d log-density of a pair that is plain, in a dimension; v is its deviation.
template <class S>
FASTIB_INLINE S plain_gradient(S v, S c, S quotient, S joint) {
  return fma<S>(power_of_two(fma<S>(-v, v, c)), quotient, joint);
}

// The share of a pair in a marginal, of which `saved` is the sum, with the maximum that it is relative to `dims` after
// it; v is the deviation and `component` of that dimension.
template <int C, class S>
FASTIB_INLINE S marginal_share(const S* saved, int64_t dims, const S* component, S v, const PairWeight<S>& w) {
  const S sum = *saved;
  if (sum == S(0)) return S(0);
  if (sum < S(0)) return power_of_two(fma<S>(-v, v, component[3 * C]) + w.log2 - saved[dims]) / -sum;
  return power_of_two(fma<S>(-v, v, component[2 * C])) * w.weight / sum;
}

// Those of any pair in a chunk, to out[0], out[kWarp] and so on: few pairs are not plain, and nothing is in registers
// for them.
template <int C, class S>
FASTIB_INLINE void pair_gradients(const Mixture<S>& m, const BackwardRows<S>& rows, int row, int j, int chunk, S joint,
                                  S* out) {
  const PairWeight<S> w = weigh(m, row, j);
  const bool plain = is_plain(m, rows.rows[row], w);
  const S* component = m.packed + (int64_t(j) * m.chunks + chunk) * 4 * C;
  const S* point = rows.points + (int64_t(row) * m.chunks + chunk) * 3 * C;
  const S* saved = rows.saved + row * (2 * m.dims + 2) + 2 + chunk * C;
  const int dims = int(std::min<int64_t>(m.dims - chunk * C, C));
#pragma unroll 1
  for (int k = 0; k < dims; ++k, ++component, ++point, ++saved) {
    const S v = scaled_deviation(point[0], component[0], component[C]);
    out[k * kWarp] = plain ? plain_gradient(v, component[2 * C], point[C], joint)
                           : fma<S>(marginal_share<C>(saved, m.dims, component, v, w), point[2 * C], joint);
  }
  for (int k = dims; k < C; ++k) out[k * kWarp] = S(0);  // padding
}

// Where the squares and the joint gradients of several pairs wait; see sum_densities for how.
template <int C, class S>
struct Waiting {
  S squares[kWaiting<C, S>][kOwn<C, S>][kWarp], joint[kWaiting<C, S>][kOwn<C, S>][kWarp];

  // Once they are summed, a lane has room among its own for the gradients in a chunk of all that it has.
  __device__ S* gradients(int warp, int at_once, int lane) {
    static_assert(kWaiting<C, S> / kMostWarps >= C);
    return &squares[warp * at_once][0][lane];
  }
  __device__ S sum(int warps, int at_once, int k, int r, int lane) const {
    S total = 0;
#pragma unroll 2  // with more, sum_column_gradients spills on sm_80
    for (int warp = 0; warp < warps; ++warp) total += squares[warp * at_once + k][r][lane];
    return total;
  }
};

template <class S, int C>
__global__ void __launch_bounds__(kMostWarps* kWarp, kBlocksOfPairs<C, S>)
    sum_row_gradients(Mixture<S> m, Parts parts, BackwardRows<S> rows, S* out) {  // [parts, rows, chunks, C]
  constexpr int R = kOwn<C, S>;
  FASTIB_SHARED(waiting, Waiting<C, S>);
  const Place<R> at(m.rows, m.components, parts);
  const int own_chunk = at.panel * m.warps + at.warp, chunk = std::min(own_chunk, m.chunks - 1);
  const int at_once = pairs_at_once<C, S>(m.warps);
  S* careful = waiting.gradients(at.warp, at_once, at.lane);
  PointGradients<C, S> points[R];
  bool far = false;
  for (int r = 0; r < R; ++r) {
    points[r] = PointGradients<C, S>(rows, m, at.nearest(r), chunk);
    far |= rows.rows[at.nearest(r)].is_far;
  }
  far = __ballot_sync(kAllLanes, far) != 0;
  S sums[R][C] = {}, totals[R][C] = {};
  const int partners = at.partners(m.row_offset);
  int terms = 0;
  for (int first = at.begin; first < at.end; first += at_once) {
    const int count = std::min(at_once, at.end - first);
    const bool apart = !m.given && at.apart(partners, first, count), plain = apart && !far;
    for (int k = 0; k < count; ++k) {
      S squares[R] = {};
      for (int other = at.warp; other < m.chunks; other += m.warps) {
        if (other == own_chunk) {
          const Component<C, S> component(m, first + k, other);
#pragma unroll
          for (int r = 0; r < R; ++r) squares[r] += squares_of(points[r].z, component);
        } else {
#pragma unroll
          for (int r = 0; r < R; ++r) squares[r] += squares_in_memory<C>(m, at.nearest(r), first + k, other);
        }
      }
#pragma unroll
      for (int r = 0; r < R; ++r) waiting.squares[at.warp * at_once + k][r][at.lane] = squares[r];
    }
    __syncthreads();
    for (int k = at.warp; k < count; k += m.warps) {
      const S constant = m.constants[first + k];
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const PairWeight<S> w = apart ? PairWeight<S>{1, 0, 0} : weigh(m, at.nearest(r), first + k);
        const S squares = waiting.sum(m.warps, at_once, k, r, at.lane);
        waiting.joint[k][r][at.lane] = joint_gradient(m, rows.rows[at.nearest(r)], constant, squares, w);
      }
    }
    __syncthreads();
    for (int k = 0; k < count; ++k) {
      if (!plain) {
        for (int r = 0; r < R; ++r)
          pair_gradients<C>(m, rows, at.nearest(r), first + k, chunk, waiting.joint[k][r][at.lane],
                            careful + r * C * kWarp);
      }
      const Component<C, S> component(m, first + k, chunk);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const S joint = waiting.joint[k][r][at.lane];
#pragma unroll
        for (int i = 0; i < C; ++i) {
          const S v = scaled_deviation(points[r].z[i], component.mu[i], component.precision[i]);
          const S by =
              plain ? plain_gradient(v, component.c[i], points[r].quotient[i], joint) : careful[(r * C + i) * kWarp];
          sums[r][i] = fma<S>(by * v, component.precision[i], sums[r][i]);
        }
      }
    }
    terms += count;
    if (terms < kTermsPerSum && first + count < at.end) continue;
    terms = 0;
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int i = 0; i < C; ++i) add_to_total(totals[r][i], sums[r][i]);
  }
  if (own_chunk >= m.chunks) return;
#pragma unroll
  for (int r = 0; r < R; ++r) {
    if (!at.has(r)) continue;
    S* sum = out + ((int64_t(at.part) * m.rows + at.index(r)) * m.chunks + chunk) * C;
#pragma unroll
    for (int i = 0; i < C; ++i) sum[i] = totals[r][i];
  }
}

template <class S, int C>
__global__ void __launch_bounds__(kMostWarps* kWarp, kBlocksOfPairs<C, S>)
    sum_column_gradients(Mixture<S> m, Parts parts, BackwardRows<S> rows,
                         double* out) {  // [parts, components, chunks, 2, C]
  constexpr int R = kOwn<C, S>;
  FASTIB_SHARED(waiting, Waiting<C, S>);
  const Place<R> at(m.components, m.rows, parts);
  const int own_chunk = at.panel * m.warps + at.warp, chunk = std::min(own_chunk, m.chunks - 1);
  const int at_once = pairs_at_once<C, S>(m.warps);
  S* careful = waiting.gradients(at.warp, at_once, at.lane);
  Component<C, S> components[R];
  S by_mean[R][C] = {}, by_square[R][C] = {};
  for (int r = 0; r < R; ++r) components[r] = Component<C, S>(m, at.nearest(r), chunk);
  const int partners = at.partners(-m.row_offset);
  int terms = 0;
  bool begun = false;
  for (int first = at.begin; first < at.end; first += at_once) {
    const int count = std::min(at_once, at.end - first);
    const bool apart = !m.given && at.apart(partners, first, count);
    for (int k = 0; k < count; ++k) {
      S squares[R] = {};
      for (int other = at.warp; other < m.chunks; other += m.warps) {
        if (other == own_chunk) {
          const Point<C, S> point(m, first + k, other);
#pragma unroll
          for (int r = 0; r < R; ++r) squares[r] += squares_of(point.z, components[r]);
        } else {
#pragma unroll
          for (int r = 0; r < R; ++r) squares[r] += squares_in_memory<C>(m, first + k, at.nearest(r), other);
        }
      }
#pragma unroll
      for (int r = 0; r < R; ++r) waiting.squares[at.warp * at_once + k][r][at.lane] = squares[r];
    }
    __syncthreads();
    for (int k = at.warp; k < count; k += m.warps) {
      const RowGradients<S>& g = rows.rows[first + k];
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const PairWeight<S> w = apart ? PairWeight<S>{1, 0, 0} : weigh(m, first + k, at.nearest(r));
        const S squares = waiting.sum(m.warps, at_once, k, r, at.lane);
        waiting.joint[k][r][at.lane] = joint_gradient(m, g, m.constants[at.nearest(r)], squares, w);
      }
    }
    __syncthreads();
    for (int k = 0; k < count; ++k) {
      const int row = first + k;
      const bool plain = apart && !rows.rows[row].is_far;
      if (!plain) {
        for (int r = 0; r < R; ++r)
          pair_gradients<C>(m, rows, row, at.nearest(r), chunk, waiting.joint[k][r][at.lane], careful + r * C * kWarp);
      }
      const PointGradients<C, S> point(rows, m, row, chunk);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const S joint = waiting.joint[k][r][at.lane];
#pragma unroll
        for (int i = 0; i < C; ++i) {
          const S v = scaled_deviation(point.z[i], components[r].mu[i], components[r].precision[i]);
          const S by =
              plain ? plain_gradient(v, components[r].c[i], point.quotient[i], joint) : careful[(r * C + i) * kWarp];
          const S by_v = by * v;  // v^2 alone may overflow where a density is 0
          by_mean[r][i] += by_v;
          by_square[r][i] = fma<S>(by, S(-0.5 / kLn2), fma<S>(by_v, v, by_square[r][i]));
        }
      }
    }
    terms += count;
    if (terms < kRowsPerSum && first + count < at.end) continue;
    terms = 0;
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (!at.has(r) || own_chunk >= m.chunks) continue;
      double* sums = out + ((int64_t(at.part) * m.components + at.index(r)) * m.chunks + chunk) * 2 * C;
#pragma unroll
      for (int i = 0; i < C; ++i) {
        sums[i] = (begun ? sums[i] : 0) + double(by_mean[r][i]);
        sums[C + i] = (begun ? sums[C + i] : 0) + double(by_square[r][i]);
        by_mean[r][i] = by_square[r][i] = S(0);
      }
    }
    begun = true;
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
#pragma unroll 4
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
#pragma unroll 4
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
    constexpr int R = kOwn<C, S>;
    FASTIB_RUN(device, (sum_row_gradients<S, C>), (blocks_of_pairs<R>(in.chunks, m.rows, row_parts)), m.warps * kWarp,
               m, row_parts, packed, data(by_rows));
    FASTIB_RUN(device, (sum_column_gradients<S, C>), (blocks_of_pairs<R>(in.chunks, m.components, column_parts)),
               m.warps * kWarp, m, column_parts, packed, doubles(by_columns));
  });
  FASTIB_RUN(device, (finish_row_gradients<T, Add>), divide_up(m.rows, at_once), kThreads, m, in.chunks.width,
             row_parts.count, data(by_rows), Matrix(out.d_z), add);
  FASTIB_RUN(device, finish_column_gradients<T>, divide_up(m.components, at_once), kThreads, m, in.chunks.width,
             m.rows > 0 ? column_parts.count : 0, doubles(by_columns), Matrix(out.d_mu), Matrix(out.d_logvar));
}

}  // namespace fastib::cuda
