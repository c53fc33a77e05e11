// Log densities of points under a mixture, jointly and for each dimension: what becomes of the sums of pairs.cu.
#pragma once

#include "mixture.cuh"

namespace fastib::cuda {

// A sum of powers of two whose terms have no bound known beforehand.
template <class S>
struct RunningSum {
  S max, sum;
};

template <class S>
FASTIB_INLINE RunningSum<S> no_terms() {
  return {std::numeric_limits<S>::lowest(), S(0)};
}

template <class S>
FASTIB_INLINE void add_term(RunningSum<S>& total, S exponent, S weight) {
  const bool larger = exponent > total.max;
  const S ratio = power_of_two(larger ? total.max - exponent : exponent - total.max);
  total.sum = larger ? fma<S>(total.sum, ratio, weight) : fma<S>(ratio, weight, total.sum);
  total.max = larger ? exponent : total.max;
}

// The partial sums of the parts of the components, and of the warps for the joint.
template <class S>
struct ForwardPartials {
  S* marginals;          // [parts, rows, chunks, C]
  RunningSum<S>* joint;  // [parts, warps, rows]
};

// Sums over all pairs: pairs.cu.
template <class S>
void sum_pair_densities(const Device& device, const Mixture<S>& m, const Chunks& chunks, const Parts& parts,
                        const ForwardPartials<S>& out);

template <class S>
FASTIB_INLINE S warp_max(S value) {
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    const S other = __shfl_xor_sync(kAllLanes, value, lanes);
    value = other > value ? other : value;
  }
  return value;
}

// A sum that underflows beside its shift, by a warp, relative to its own maximum.
template <class S>
struct FarSum {
  S max;
  double sum;

  __device__ FarSum(const Mixture<S>& m, int width, int64_t row, int d) {
    const int lane = int(threadIdx.x) % kWarp;
    S largest = std::numeric_limits<S>::lowest();
    for (int64_t j = lane; j < m.components; j += kWarp) {
      const S t = exponent(m, width, row, j, d);
      largest = t > largest ? t : largest;
    }
    max = warp_max(largest);
    double terms = 0;
    for (int64_t j = lane; j < m.components; j += kWarp)
      terms += double(power_of_two(exponent(m, width, row, j, d) - max));
    sum = warp_sum(terms);
  }

  static __device__ S exponent(const Mixture<S>& m, int width, int64_t row, int64_t j, int d) {
    const int chunk = d / width, k = d % width;
    const S* p = m.packed + (j * m.chunks + chunk) * 4 * width + k;
    const S v = scaled_deviation(m.points[(row * m.chunks + chunk) * width + k], p[0], p[width]);
    return fma<S>(-v, v, unshifted(m, width, j, chunk, k)) + weigh(m, row, j).log2;
  }
};

// The parts of a row's joint sum as one, and its own component, by a warp.
template <class S>
FASTIB_INLINE RunningSum<double> joint_of_row(const Mixture<S>& m, int width, const ForwardPartials<S>& in,
                                              int64_t parts, int64_t row) {
  const int lane = int(threadIdx.x) % kWarp;
  S largest = std::numeric_limits<S>::lowest();
  for (int64_t p = lane; p < parts * m.warps; p += kWarp) {
    const S max = in.joint[p * m.rows + row].max;
    largest = max > largest ? max : largest;
  }
  largest = warp_max(largest);
  double sum = 0;
  for (int64_t p = lane; p < parts * m.warps; p += kWarp) {
    const RunningSum<S> part = in.joint[p * m.rows + row];
    sum += double(part.sum * power_of_two(part.max - largest));
  }
  RunningSum<double> joint{double(largest), warp_sum(sum)};
  if (!has_own(m, row)) return joint;
  const int64_t j = row + m.row_offset;
  const PairWeight<S> w = weigh(m, row, j);
  const S squares = squares_of_pair(m, width, row, j);
  add_term(joint, double(joint_exponent(m, m.constants[j], squares, w)), double(w.weight));
  return joint;
}

// The density of a row's own component in one dimension, with its weight.
template <class S>
FASTIB_INLINE double own_density(const Mixture<S>& m, int width, int64_t row, int d) {
  const int chunk = d / width, k = d % width;
  const S* p = m.packed + ((row + m.row_offset) * m.chunks + chunk) * 4 * width + k;
  const S v = scaled_deviation(m.points[(row * m.chunks + chunk) * width + k], p[0], p[width]);
  return double(power_of_two(fma<S>(-v, v, p[2 * width]))) * double(m.own);
}

// What a row's sums come to, for the functor that makes results of them.
template <class S>
struct RowResult {
  RunningSum<double> joint;
  double log_joint, log_unit;  // log q(z), and what the weights are relative to
};

// A warp for each row adds up its parts, and calls done.marginal(row, d, log q(z_d)) for its dimensions, lane by lane,
// then done.row(row, result) in all lanes. `saved`, [rows, 2 dims + 2], is for the backward pass: the maximum and the
// sum of the joint, the sums of the marginals, less than 0 where they are relative to a maximum, and those maxima.
template <class S, class Done>
__global__ void __launch_bounds__(kThreads, kBlocks)
    finish_densities(Mixture<S> m, int width, int64_t parts, ForwardPartials<S> in, S* saved, Done done) {
  const int64_t row = int64_t(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (row >= m.rows) return;
  const int lane = int(threadIdx.x) % kWarp;
  const double log_unit = m.log_base + kLn2 * m.largest_weight(row);
  saved += row * (2 * m.dims + 2);
  for (int first = 0; first < m.dims; first += kWarp) {
    const int d = first + lane;
    double sum = 0, max = 0;
    if (d < m.dims) {
#pragma unroll 4
      for (int64_t p = 0; p < parts; ++p) sum += double(in.marginals[(p * m.rows + row) * m.chunks * width + d]);
      if (has_own(m, row)) sum += own_density(m, width, row, d);
    }
    const bool is_far = d < m.dims && !(sum >= kFarSum<S>);
    for (unsigned far = __ballot_sync(kAllLanes, is_far); far != 0; far &= far - 1) {
      const int which = __ffs(far) - 1;
      const FarSum<S> again(m, width, row, first + which);
      if (lane == which) sum = again.sum, max = double(again.max);
    }
    if (d >= m.dims) continue;
    saved[2 + d] = S(is_far ? -sum : sum);
    saved[2 + m.dims + d] = S(max);
    done.marginal(row, d, ::log(sum) + kLn2 * (is_far ? max : m.shift[d]) + log_unit - 0.5 * kLog2Pi);
  }
  const RunningSum<double> joint = joint_of_row(m, width, in, parts, row);
  if (lane == 0) {
    saved[0] = S(joint.max);
    saved[1] = S(joint.sum);
  }
  const double log_joint = ::log(joint.sum) + kLn2 * joint.max + log_unit - 0.5 * kLog2Pi * double(m.dims);
  done.row(row, RowResult<S>{joint, log_joint, log_unit});
}

// Runs the forward pass, and makes results of it by `done`.
template <class T, class Done>
void mixture_forward(const Device& device, const PackedMixture<T>& in, const Tensor& saved, const Done& done) {
  using S = Compute<T>;
  const Mixture<S>& m = in.mixture;
  const Parts parts(m.components);
  const auto scratch = [&](IntArray sizes) { return PackedMixture<T>::scratch(sizes, in.packed); };
  const Tensor marginals = scratch({parts.count, m.rows, in.chunks.padded()}),
               joint = scratch({parts.count, m.warps, m.rows, 2});
  const ForwardPartials<S> partials{static_cast<S*>(marginals.data_ptr()),
                                    static_cast<RunningSum<S>*>(joint.data_ptr())};
  sum_pair_densities(device, m, in.chunks, parts, partials);
  FASTIB_RUN(device, (finish_densities<S, Done>), divide_up(m.rows, kThreads / kWarp), kThreads, m, in.chunks.width,
             parts.count, partials, static_cast<S*>(saved.data_ptr()), done);
}

}  // namespace fastib::cuda
