// The passes over all pairs of points and components, compiled once for all operators on mixtures: sums of densities;
// and of the gradients of points, then of those of components, each summed by whoever owns them. Rows that were summed
// relative to a maximum, and pairs with weights of their own, want more care: other blocks of the same grid have them,
// each of a kernel of its own.
#include "mixture_backward.cuh"

namespace fastib::cuda {

// Adds the densities of a component in the dimensions of a chunk, and gives its squares.
//
// nvcc 13.0 makes 97 instructions of it for 16 dimensions on sm_90, 80 for the pipe of multiply-adds and 16 MUFU, of
// which each takes eight slots of issue: by that count MUFU is the limit, and no share of the exponentials is a
// polynomial's (a quarter of them made an H200 5 % slower). It takes 14 slots for a dimension there, with what is
// around the loop.
template <int C, class S, class Weight>
FASTIB_INLINE S add_densities(const Point<C, S>& point, const Component<C, S>& component, Weight weight, S (&sums)[C]) {
  S squares = 0;
#pragma unroll
  for (int k = 0; k < C; ++k) {
    const S v = scaled_deviation(point.z[k], component.mu[k], component.precision[k]);
    squares = fma<S>(v, v, squares);
    sums[k] = weight.add(power_of_two(fma<S>(-v, v, component.c[k])), sums[k]);
  }
  return squares;
}

// What a density weighs in the sums: 1, or that but for a row's own, or what is given.
struct Alike {
  template <class S>
  __device__ S add(S density, S sum) const {
    return density + sum;
  }
};
struct AlikeButOwn {
  bool own;
  template <class S>
  __device__ S add(S density, S sum) const {
    return own ? sum : density + sum;
  }
};
template <class S>
struct Given {
  S weight;
  __device__ S add(S density, S sum) const { return fma<S>(density, weight, sum); }
};

template <class S, int C>
__global__ void __launch_bounds__(kMostWarps* kWarp, kBlocksOfPairs<C, S>)
    sum_densities(Mixture<S> m, Parts parts, ForwardPartials<S> out) {
  constexpr int R = kOwn<C, S>;
  FASTIB_SHARED(coming, Coming<3 * C, S>);
  FASTIB_SHARED(waiting, Squares<R, S>[2]);
  const Place<R> at(m.rows, m.components, parts);
  const int own_chunk = at.panel * m.warps + at.warp, chunk = std::min(own_chunk, m.chunks - 1);
  const int at_once = kPairsOfTile<S> / m.warps, slot = at.warp * at_once;
  const int64_t stride = int64_t(m.chunks) * 4 * C;
  const S* components = m.packed + int64_t(chunk) * 4 * C;
  Point<C, S> points[R];
  RunningSum<S> joint[R];
  S sums[R][C] = {}, totals[R][C] = {};
  for (int r = 0; r < R; ++r) {
    points[r] = Point<C, S>(m.points + (int64_t(at.nearest(r)) * m.chunks + chunk) * C);
    joint[r] = no_terms<S>();
  }
  const int partners = at.partners(m.row_offset);
  int terms = 0, turn = 0;
  coming.copy(0, slot, components + at.begin * stride, stride, std::min(at_once, at.end - at.begin));
  for (int first = at.begin; first < at.end; first += at_once, turn ^= 1) {
    const int count = std::min(at_once, at.end - first), next = std::min(at_once, at.end - first - count);
    const bool alike = !m.given && at.apart(partners, first, count);
    S constant = m.constants[std::min(first + at.warp, at.end - 1)];  // long before it is used
    wait_for_copies();
    __syncwarp();  // all copies of the warp are there, and what it did with the tile before is done
    coming.copy(turn ^ 1, slot, components + (first + count) * stride, stride, next);
    const S(*tile)[3 * C] = &coming.values[turn][slot];
    const auto add = [&](auto weight) {
      for (int k = 0; k < count; ++k) {
        const Component<C, S> component(tile[k]);
#pragma unroll
        for (int r = 0; r < R; ++r) {
          waiting[turn].at(m.warps, k, at.warp, r, at.lane) =
              add_densities(points[r], component, weight(r, first + k), sums[r]);
        }
      }
    };
    if (alike) add([](int, int) { return Alike(); });
    else if (!m.given) add([&](int r, int j) { return AlikeButOwn{m.is_own(at.nearest(r), j)}; });
    else add([&](int r, int j) { return Given<S>{weigh(m, at.nearest(r), j).weight}; });
    if (m.panels > 1)
      add_other_chunks(
          waiting[turn], m, C, own_chunk, count, [&](int r, int) { return at.nearest(r); },
          [&](int, int k) { return first + k; });
    __syncthreads();  // the other half is read by now: all have come here since
    for (int k = at.warp; k < count; k += m.warps) {
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const S squares = waiting[turn].sum(m.warps, k, r, at.lane);
        if (alike) {
          add_term(joint[r], constant - squares, S(1));
          continue;
        }
        PairWeight<S> w = weigh(m, at.nearest(r), first + k);
        if (!m.given) w.weight = S(1) - w.is_own;
        add_term(joint[r], joint_exponent(m, constant, squares, w), m.given ? S(1) : w.weight);
      }
      constant = m.constants[std::min(first + k + m.warps, at.end - 1)];
    }
    terms += count;
    if (terms < kTermsPerSum && next > 0) continue;
    terms = 0;
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int k = 0; k < C; ++k) add_to_total(totals[r][k], sums[r][k]);
  }
#pragma unroll
  for (int r = 0; r < R; ++r) {
    if (!at.has(r)) continue;
    const int64_t row = at.index(r);
    if (at.panel == 0) out.joint[(int64_t(at.part) * m.warps + at.warp) * m.rows + row] = joint[r];
    if (own_chunk >= m.chunks) continue;
    S* marginals = out.marginals + ((int64_t(at.part) * m.rows + row) * m.chunks + own_chunk) * C;
#pragma unroll
    for (int k = 0; k < C; ++k) marginals[k] = totals[r][k];
  }
}

template <class S>
void sum_pair_densities(const Device& device, const Mixture<S>& m, const Chunks& chunks, const Parts& parts,
                        const ForwardPartials<S>& out) {
  with_width<S>(chunks, [&](auto width) {
    constexpr int C = decltype(width)::value;
    FASTIB_RUN(device, (sum_densities<S, C>), (blocks_of_pairs<kOwn<C, S>>(chunks, m.rows, parts)), m.warps * kWarp, m,
               parts, out);
  });
}

template void sum_pair_densities(const Device&, const Mixture<float>&, const Chunks&, const Parts&,
                                 const ForwardPartials<float>&);
template void sum_pair_densities(const Device&, const Mixture<double>&, const Chunks&, const Parts&,
                                 const ForwardPartials<double>&);

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

template <class S>
void sum_pair_gradients(const Device& device, const Mixture<S>& m, const Chunks& chunks, const BackwardRows<S>& rows,
                        const BackwardPartials<S>& out) {
  with_width<S>(chunks, [&](auto width) {
    constexpr int C = decltype(width)::value;
    constexpr int R = kOwn<C, S>;
    const int64_t row_blocks = blocks_of_pairs<R>(chunks, m.rows, out.row_parts);
    const int64_t column_blocks = blocks_of_pairs<R>(chunks, m.components, out.column_parts);
    if (!m.given) {
      FASTIB_RUN(device, (sum_row_gradients<S, C, false>), row_blocks, m.warps * kWarp, m, out.row_parts, rows,
                 out.by_rows);
      FASTIB_RUN(device, (sum_column_gradients<S, C, false>), column_blocks, m.warps * kWarp, m, out.column_parts, rows,
                 out.by_columns);
    }
    FASTIB_RUN(device, (sum_row_gradients<S, C, true>), row_blocks, m.warps * kWarp, m, out.row_parts, rows,
               out.by_rows);
    FASTIB_RUN(device, (sum_column_gradients<S, C, true>), column_blocks, m.warps * kWarp, m, out.column_parts, rows,
               out.by_columns);
  });
}

template void sum_pair_gradients(const Device&, const Mixture<float>&, const Chunks&, const BackwardRows<float>&,
                                 const BackwardPartials<float>&);
template void sum_pair_gradients(const Device&, const Mixture<double>&, const Chunks&, const BackwardRows<double>&,
                                 const BackwardPartials<double>&);

}  // namespace fastib::cuda
