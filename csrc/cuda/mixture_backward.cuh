// The backward pass over a mixture: the gradients of points, then those of components, each summed by whoever owns
// them. Rows that were summed relative to a maximum, and pairs with weights of their own, want more care: other blocks
// of the same grid have them, each of a kernel of its own.
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

template <int C, class S, bool Careful>
struct PointGradients {
  S z[C], quotient[C], gradient[C], sum[C];

  PointGradients() = default;
  explicit __device__ PointGradients(const S* packed) {
    load(packed, z);
    load(packed + C, quotient);
    if constexpr (Careful) {
      load(packed + 2 * C, gradient);
      load(packed + 3 * C, sum);
    }
  }
};

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

// The squares and the joint gradients of a tile: see sum_densities.
template <int R, class S>
struct Waiting {
  Squares<R, S> squares;
  S joint[kPairsOfTile<S>][R][kWarp];
};

template <class S, int C, bool Careful>
__global__ void __launch_bounds__(kMostWarps* kWarp, Careful ? kBlocks : kBlocksOfPairs<C, S>)
    sum_row_gradients(Mixture<S> m, Parts parts, BackwardRows<S> rows, S* out) {  // [parts, rows, chunks, C]
  constexpr int R = kOwn<C, S>, N = (Careful ? 4 : 3) * C;
  FASTIB_SHARED(coming, Coming<N, S>);
  FASTIB_SHARED(waiting, Waiting<R, S>);
  const Place<R> at(m.rows, m.components, parts);
  const int own_chunk = at.panel * m.warps + at.warp, chunk = std::min(own_chunk, m.chunks - 1);
  const int at_once = kPairsOfTile<S> / m.warps, slot = at.warp * at_once;
  bool far = m.given;
  for (int r = 0; r < R; ++r) far |= rows.rows[at.nearest(r)].is_far;
  if ((__ballot_sync(kAllLanes, far) != 0) != Careful) return;
  const int64_t stride = int64_t(m.chunks) * 4 * C;
  const S* components = m.packed + int64_t(chunk) * 4 * C;
  PointGradients<C, S, Careful> points[R];
  for (int r = 0; r < R; ++r)
    points[r] = PointGradients<C, S, Careful>(rows.points + (int64_t(at.nearest(r)) * m.chunks + chunk) * 4 * C);
  S sums[R][C] = {}, totals[R][C] = {};
  const int partners = at.partners(m.row_offset);
  int terms = 0, turn = 0;
  coming.copy(0, slot, components + at.begin * stride, stride, std::min(at_once, at.end - at.begin));
  for (int first = at.begin; first < at.end; first += at_once, turn ^= 1) {
    const int count = std::min(at_once, at.end - first), next = std::min(at_once, at.end - first - count);
    const bool apart = at.apart(partners, first, count), alike = apart && !m.given;
    const auto is_own = [&](int r, int k) { return !m.given && m.is_own(at.nearest(r), first + k); };
    S constant = m.constants[std::min(first + at.warp, at.end - 1)];  // long before it is used
    wait_for_copies();
    __syncwarp();
    coming.copy(turn ^ 1, slot, components + (first + count) * stride, stride, next);
    const S(*tile)[N] = &coming.values[turn][slot];
    for (int k = 0; k < count; ++k) {
      const Component<C, S> component(tile[k]);
#pragma unroll
      for (int r = 0; r < R; ++r)
        waiting.squares.at(m.warps, k, at.warp, r, at.lane) = squares_of(points[r].z, component);
    }
    if (m.panels > 1)
      add_other_chunks(
          waiting.squares, m, C, own_chunk, count, [&](int r, int) { return at.nearest(r); },
          [&](int, int k) { return first + k; });
    __syncthreads();
    for (int k = at.warp; k < count; k += m.warps) {
#pragma unroll 1  // else numbers spill on sm_80 or sm_100
      for (int r = 0; r < R; ++r) {
        const RowGradients<S>& g = rows.rows[at.nearest(r)];
        const S squares = waiting.squares.sum(m.warps, k, r, at.lane);
        S& joint = waiting.joint[k][r][at.lane];
        if (alike) joint = power_of_two(constant - squares - g.max) * g.quotient;
        else if (is_own(r, k)) joint = S(0);
        else joint = joint_gradient(m, g, constant, squares, weigh(m, at.nearest(r), first + k));
      }
      constant = m.constants[std::min(first + k + m.warps, at.end - 1)];
    }
    __syncthreads();
    const auto add = [&](auto skip) {
      for (int k = 0; k < count; ++k) {
        const Component<C, S> component(tile[k]);
#pragma unroll
        for (int r = 0; r < R; ++r) {
          if (skip(r, k)) continue;
          const int row = at.nearest(r);
          const S joint = waiting.joint[k][r][at.lane];
          const PairWeight<S> w = Careful && m.given ? weigh(m, row, first + k) : PairWeight<S>{1, m.log2_other, 0};
          const bool plain = !Careful || (!m.given && !rows.rows[row].is_far);
#pragma unroll
          for (int i = 0; i < C; ++i) {
            const S v = scaled_deviation(points[r].z[i], component.mu[i], component.precision[i]), c = component.c[i];
            S by = plain ? plain_gradient(v, c, points[r].quotient[i], joint) : S(0);
            if constexpr (Careful) {
              const S* maximum = maxima_of(m, rows, row) + chunk * C + i;
              if (!plain)
                by = careful_gradient(v, c, tile[k][3 * C + i], points[r].sum[i], maximum, points[r].gradient[i], joint,
                                      w);
            }
            sums[r][i] = fma<S>(by * v, component.precision[i], sums[r][i]);
          }
        }
      }
    };
    if (apart) add([](int, int) { return false; });
    else add(is_own);
    terms += count;
    if (terms < kTermsPerSum && next > 0) continue;
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

template <class S, int C, bool Careful>
__global__ void __launch_bounds__(kMostWarps* kWarp, Careful ? kBlocks : kBlocksOfPairs<C, S>)
    sum_column_gradients(Mixture<S> m, Parts parts, BackwardRows<S> rows,
                         double* out) {  // [parts, components, chunks, 2, C]
  constexpr int R = kOwn<C, S>, N = (Careful ? 4 : 2) * C;
  FASTIB_SHARED(coming, Coming<N, S>);
  FASTIB_SHARED(waiting, Waiting<R, S>);
  const Place<R> at(m.components, m.rows, parts);
  const int own_chunk = at.panel * m.warps + at.warp, chunk = std::min(own_chunk, m.chunks - 1);
  const int at_once = kPairsOfTile<S> / m.warps, slot = at.warp * at_once;
  bool far = m.given;
  for (int i = at.begin + int(threadIdx.x); i < at.end; i += int(blockDim.x)) far |= rows.rows[i].is_far;
  if ((__syncthreads_or(far) != 0) != Careful) return;
  const int64_t stride = int64_t(m.chunks) * 4 * C;
  const S* points = rows.points + int64_t(chunk) * 4 * C;
  Component<C, S> components[R];
  S by_mean[R][C] = {}, by_square[R][C] = {};
  for (int r = 0; r < R; ++r)
    components[r] = Component<C, S>(m.packed + (int64_t(at.nearest(r)) * m.chunks + chunk) * 4 * C);
  const int partners = at.partners(-m.row_offset);
  int terms = 0, turn = 0;
  coming.copy(0, slot, points + at.begin * stride, stride, std::min(at_once, at.end - at.begin));
  for (int first = at.begin; first < at.end; first += at_once, turn ^= 1) {
    const int count = std::min(at_once, at.end - first), next = std::min(at_once, at.end - first - count);
    const bool apart = at.apart(partners, first, count), alike = apart && !m.given;
    const auto is_own = [&](int r, int k) { return !m.given && m.is_own(first + k, at.nearest(r)); };
    // Long before they are used, and not in registers all the time.
    RowGradients<S> g = rows.rows[std::min(first + at.warp, at.end - 1)];
    S constants[R];
    for (int r = 0; r < R; ++r) constants[r] = m.constants[at.nearest(r)];
    wait_for_copies();
    __syncwarp();
    coming.copy(turn ^ 1, slot, points + (first + count) * stride, stride, next);
    const S(*tile)[N] = &coming.values[turn][slot];
    for (int k = 0; k < count; ++k) {
      const Point<C, S> point(tile[k]);
#pragma unroll
      for (int r = 0; r < R; ++r)
        waiting.squares.at(m.warps, k, at.warp, r, at.lane) = squares_of(point.z, components[r]);
    }
    if (m.panels > 1)
      add_other_chunks(
          waiting.squares, m, C, own_chunk, count, [&](int, int k) { return first + k; },
          [&](int r, int) { return at.nearest(r); });
    __syncthreads();
    for (int k = at.warp; k < count; k += m.warps) {
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const S squares = waiting.squares.sum(m.warps, k, r, at.lane), constant = constants[r];
        S& joint = waiting.joint[k][r][at.lane];
        if (alike) joint = power_of_two(constant - squares - g.max) * g.quotient;
        else if (is_own(r, k)) joint = S(0);
        else joint = joint_gradient(m, g, constant, squares, weigh(m, first + k, at.nearest(r)));
      }
      g = rows.rows[std::min(first + k + m.warps, at.end - 1)];
    }
    __syncthreads();
    const auto add = [&](auto skip) {
      for (int k = 0; k < count; ++k) {
        const int row = first + k;
        const PointGradients<C, S, Careful> point(tile[k]);
        const bool plain = !Careful || (!m.given && !rows.rows[row].is_far);
#pragma unroll
        for (int r = 0; r < R; ++r) {
          if (skip(r, k)) continue;
          const S joint = waiting.joint[k][r][at.lane];
          const int j = at.nearest(r);
          const PairWeight<S> w = Careful && m.given ? weigh(m, row, j) : PairWeight<S>{1, m.log2_other, 0};
#pragma unroll
          for (int i = 0; i < C; ++i) {
            const S v = scaled_deviation(point.z[i], components[r].mu[i], components[r].precision[i]);
            const S c = components[r].c[i];
            S by = plain ? plain_gradient(v, c, point.quotient[i], joint) : S(0);
            if constexpr (Careful) {
              const S* maximum = maxima_of(m, rows, row) + chunk * C + i;
              if (!plain)
                by = careful_gradient(v, c, unshifted(m, C, j, chunk, i), point.sum[i], maximum, point.gradient[i],
                                      joint, w);
            }
            const S by_v = by * v;  // v^2 alone may overflow where a density is 0
            by_mean[r][i] += by_v;
            by_square[r][i] = fma<S>(by, S(-0.5 / kLn2), fma<S>(by_v, v, by_square[r][i]));
          }
        }
      }
    };
    if (apart) add([](int, int) { return false; });
    else add(is_own);
    terms += count;
    if (terms < kRowsPerSum && next > 0) continue;
    terms = 0;
    const bool begun = first - at.begin >= kRowsPerSum;
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
  }
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
  with_width<S>(in.chunks, [&](auto width) {
    constexpr int C = decltype(width)::value;
    constexpr int R = kOwn<C, S>;
    const int64_t row_blocks = blocks_of_pairs<R>(in.chunks, m.rows, row_parts);
    const int64_t column_blocks = blocks_of_pairs<R>(in.chunks, m.components, column_parts);
    if (!m.given) {
      FASTIB_RUN(device, (sum_row_gradients<S, C, false>), row_blocks, m.warps * kWarp, m, row_parts, packed,
                 data(by_rows));
      FASTIB_RUN(device, (sum_column_gradients<S, C, false>), column_blocks, m.warps * kWarp, m, column_parts, packed,
                 doubles(by_columns));
    }
    FASTIB_RUN(device, (sum_row_gradients<S, C, true>), row_blocks, m.warps * kWarp, m, row_parts, packed,
               data(by_rows));
    FASTIB_RUN(device, (sum_column_gradients<S, C, true>), column_blocks, m.warps * kWarp, m, column_parts, packed,
               doubles(by_columns));
  });
  FASTIB_RUN(device, (finish_row_gradients<T, Add>), divide_up(m.rows, at_once), kThreads, m, in.chunks.width,
             row_parts.count, packed, data(by_rows), Matrix(out.d_z), add);
  FASTIB_RUN(device, finish_column_gradients<T>, divide_up(m.components, at_once), kThreads, m, in.chunks.width,
             m.rows > 0 ? column_parts.count : 0, packed, doubles(by_columns), Matrix(out.d_mu), Matrix(out.d_logvar));
}

}  // namespace fastib::cuda
