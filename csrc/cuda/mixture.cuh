// What the passes over all pairs of points and components are made of.
//
// In the forward pass and in the one for the gradients of rows a lane has a point or two, and its warp a chunk of C
// dimensions of the points of 32 lanes; components come one after another, the same for all lanes. In the pass for the
// gradients of columns a lane has components, and points come. What is joint over the dimensions is summed over the
// warps of a block by way of shared memory, for several pairs at once: those of a tile. A warp copies its chunk of the
// next tile to shared memory meanwhile. Sums have an order that depends on the shapes alone, and the exponent of a pair
// has the same bits in every pass. Where there are more dimensions than a block has, others have the rest, and all sum
// the squares of all.
//
// A row's own component, of another weight than the others, is left out of all this; whoever finishes the sums adds it.
#pragma once

#include "../common/mixture.h"
#include "reduce.cuh"

namespace fastib::cuda {

constexpr int kMostWarps = 8;
constexpr int kTermsPerSum = 64;  // at most, before they are added to a total
constexpr int kRowsPerSum = 256;  // the same for the gradients of columns, whose doubles are in memory

// How many a lane has. What comes must get to the registers of every lane, and takes as long for one as for two.
template <int C, class S>
constexpr int kOwn = sizeof(S) == 8 ? 1 : 16 / C;

// Blocks that are on a multiprocessor at once: while one waits, another runs.
template <int C, class S>
constexpr int kBlocksOfPairs = kOwn<C, S> == 1 ? 1 : 2;

// Pairs of a tile, times the warps of a block.
template <class S>
constexpr int kPairsOfTile = 256 / int(sizeof(S));

// How dimensions are cut: the fewest panels, then the least padding, then the narrowest chunks.
struct Chunks {
  int width = 0, count = 0, warps = 0, panels = 0;

  Chunks(int64_t dims, bool is_double) {
    for (const int w : {8, 12, 16}) {
      if (is_double && w != 8) break;
      const int c = int(std::max<int64_t>(divide_up(dims, w), 1)), p = int(divide_up(c, kMostWarps));
      if (count > 0 && std::pair(p, c * w) >= std::pair(panels, count * width)) continue;
      width = w, count = c, panels = p;
    }
    warps = std::min(count, kMostWarps);
  }
  int64_t padded() const { return int64_t(count) * width; }
};

// Sums over `count` terms are cut into parts, so that few sums keep a GPU busy; the partial sums take up to sixteen
// times what the results take. It depends on nothing else: a row has the same bits whichever others are with it.
struct Parts {
  int64_t size, count;

  explicit Parts(int64_t terms) {
    constexpr int64_t fewest_terms = 16, most_parts = 16, most_partials = int64_t(1) << 17;
    int64_t parts = std::clamp<int64_t>(terms / fewest_terms, 1, most_parts);
    while (parts > 1 && parts * terms > most_partials) parts /= 2;
    size = std::max<int64_t>(divide_up(terms, parts), 1);
    count = std::max<int64_t>(divide_up(terms, size), 1);
  }
};

// The mixture and the points as the kernels see them.
template <class S>
struct Mixture {
  int64_t rows, components, dims;
  int chunks, warps, panels;
  const S* packed;      // [components, chunks, 4, C]: mu, sqrt(log2(e) / 2) exp(-l / 2), c less the shift, c
  const S* constants;   // [components]: C
  const S* points;      // [rows, chunks, C]
  const double* shift;  // [dims]
  bool given;           // each pair has a weight of its own
  S own, log2_own, log2_other;
  double log_base;
  int64_t row_offset;
  Matrix log_weights;
  const double* largest_weights;  // [rows], of the given ones; null where there are none

  __device__ bool is_own(int64_t row, int64_t j) const { return row + row_offset == j; }
  __device__ double largest_weight(int64_t row) const { return largest_weights == nullptr ? 0 : largest_weights[row]; }
};

// 2^x for sums of many, where it does not overflow.
FASTIB_INLINE float power_of_two(float x) { return approximate_exp2(x); }
FASTIB_INLINE double power_of_two(double x) { return fast_exp2<double>(x); }

// What a pair weighs; the logarithm matters only where each pair has its own, and to sums relative to a maximum.
template <class S>
struct PairWeight {
  S weight, log2, is_own;
};

template <class S>
FASTIB_INLINE PairWeight<S> weigh(const Mixture<S>& m, int64_t row, int64_t j) {
  const bool own = m.is_own(row, j);
  PairWeight<S> w{own ? m.own : S(1), own ? m.log2_own : m.log2_other, own ? S(1) : S(0)};
  if (m.log_weights) w.log2 = S(double(m.log_weights.template at<S>(row, j)) * kLog2E - m.largest_weight(row));
  if (m.given) w.weight = power_of_two(w.log2);
  return w;
}

// Adds `sum` to a total, and leaves in it what the total could not hold (Knuth's two-sum): the two together are as good
// as a double, which would take another register.
template <class S>
FASTIB_INLINE void add_to_total(S& total, S& sum) {
  const S before = total, added = (total += sum) - before, rest = (before - (total - added)) + (sum - added);
  sum = rest == rest ? rest : S(0);  // of an infinite total there is none
}

// A chunk of numbers, read sixteen bytes at a time.
template <int C, class S>
FASTIB_INLINE void load(const S* p, S (&out)[C]) {
  constexpr int width = 16 / sizeof(S);
#pragma unroll
  for (int i = 0; i < C; i += width) {
    const auto v = *reinterpret_cast<const Vector<S>*>(p + i);
#pragma unroll
    for (int k = 0; k < width; ++k) out[i + k] = v.values[k];
  }
}

// Of a chunk; `packed` has one number for each dimension, then another.
template <int C, class S>
struct Component {
  S mu[C], precision[C], c[C];

  Component() = default;
  explicit __device__ Component(const S* packed) {
    load(packed, mu);
    load(packed + C, precision);
    load(packed + 2 * C, c);
  }
};

template <int C, class S>
struct Point {
  S z[C];

  Point() = default;
  explicit __device__ Point(const S* packed) { load(packed, z); }
};

// What comes, N numbers of a chunk of each: a tile of which the arithmetic is done, and the next one.
template <int N, class S>
struct Coming {
  alignas(16) S values[2][kPairsOfTile<S>][N];

  // Begins to copy the tile of a warp, which begins at `slot`; `from` are its first numbers, and `stride` to the next.
  __device__ void copy(int turn, int slot, const S* from, int64_t stride, int count) {
    constexpr int width = 16 / sizeof(S), vectors = N / width;
#pragma unroll 1
    for (int i = int(threadIdx.x) % kWarp; i < count * vectors; i += kWarp) {
      const int pair = i / vectors, at = i % vectors * width;
      copy_16_bytes(&values[turn][slot + pair][at], from + pair * stride + at);
    }
  }
};

// c itself, of which sums relative to a maximum are made: the shift takes digits from small ones.
template <class S>
FASTIB_INLINE S unshifted(const Mixture<S>& m, int width, int64_t j, int chunk, int k) {
  return m.packed[((j * m.chunks + chunk) * 4 + 3) * width + k];
}

template <class S>
FASTIB_INLINE S precision_of(const Mixture<S>& m, int width, int64_t j, int d) {
  return m.packed[((j * m.chunks + d / width) * 4 + 1) * width + d % width];
}

template <class S>
FASTIB_INLINE S scaled_deviation(S z, S mu, S precision) {
  return (z - mu) * precision;
}

template <int C, class S>
FASTIB_INLINE S squares_of(const S (&z)[C], const Component<C, S>& component) {
  S squares = 0;
#pragma unroll
  for (int k = 0; k < C; ++k) {
    const S v = scaled_deviation(z[k], component.mu[k], component.precision[k]);
    squares = fma<S>(v, v, squares);
  }
  return squares;
}

// The same bits of a pair in a chunk that nobody has in registers, which are left to those that are.
template <class S>
FASTIB_INLINE S squares_in_memory(const Mixture<S>& m, int width, int64_t row, int64_t j, int chunk) {
  constexpr int at_once = 16 / sizeof(S);
  const S* point = m.points + (row * m.chunks + chunk) * width;
  const S* component = m.packed + (j * m.chunks + chunk) * 4 * width;
  S squares = 0;
#pragma unroll 1
  for (int i = 0; i < width; i += at_once) {
    S z[at_once], mu[at_once], precision[at_once];
    load(point + i, z);
    load(component + i, mu);
    load(component + width + i, precision);
#pragma unroll
    for (int k = 0; k < at_once; ++k) {
      const S v = scaled_deviation(z[k], mu[k], precision[k]);
      squares = fma<S>(v, v, squares);
    }
  }
  return squares;
}

// The squares of the pairs of a tile, R for a lane, in the dimensions of each warp of a block.
template <int R, class S>
struct Squares {
  S values[kPairsOfTile<S>][R][kWarp];

  __device__ S& at(int warps, int pair, int warp, int r, int lane) { return values[pair * warps + warp][r][lane]; }
  __device__ S sum(int warps, int pair, int r, int lane) const {
    S total = 0;
#pragma unroll
    for (int warp = 0; warp < kMostWarps; ++warp)
      if (warp < warps) total += values[pair * warps + warp][r][lane];
    return total;
  }
};

FASTIB_INLINE double warp_sum(double value) {
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) value += __shfl_xor_sync(kAllLanes, value, lanes);
  return value;
}

// The squares of a pair in all dimensions, by a warp: the bits that the passes over all pairs see.
template <class S>
FASTIB_INLINE S squares_of_pair(const Mixture<S>& m, int width, int64_t row, int64_t j) {
  const int lane = int(threadIdx.x) % kWarp;
  S of_warp = 0, squares = 0;  // of the warp of a pass that this lane stands for
  for (int chunk = lane; lane < m.warps && chunk < m.chunks; chunk += m.warps)
    of_warp += squares_in_memory(m, width, row, j, chunk);
  for (int warp = 0; warp < m.warps; ++warp) squares += __shfl_sync(kAllLanes, of_warp, warp);
  return squares;
}

// The component of a row, if it has one of its own that no weight is given for.
template <class S>
FASTIB_INLINE bool has_own(const Mixture<S>& m, int64_t row) {
  return !m.given && row + m.row_offset >= 0 && row + m.row_offset < m.components;
}

// The exponent of a pair's joint density, with its weight where that is given by its logarithm; -infinity, almost,
// where it weighs nothing.
template <class S>
FASTIB_INLINE S joint_exponent(const Mixture<S>& m, S constant, S squares, const PairWeight<S>& w) {
  const S t = constant - squares;
  if (m.given) return t + w.log2;
  return w.weight > S(0) || t != t ? t : std::numeric_limits<S>::lowest();
}

constexpr int kPackedByBlock = 2 * kThreads;  // components, of one dimension

// Packs, for everything that follows: a block finds the shift of one dimension and packs some of its components, or
// packs a part of the points, or finds constants of components, a warp for each. Each block of a dimension looks
// through all for the shift: that is little beside the passes over pairs, and needs no other launch.
template <class T>
struct Packing {
  Matrix z, mu, logvar;
  int64_t rows, components, dims;
  int chunks, width;
  Compute<T>*packed, *constants, *points;
  double* shift;

  int64_t padded() const { return int64_t(chunks) * width; }
  int64_t parts() const { return std::max<int64_t>(divide_up(components, kPackedByBlock), 1); }  // of a dimension
  int64_t point_blocks() const { return divide_up(rows * padded(), kThreads); }
  int64_t blocks() const { return padded() * parts() + point_blocks() + divide_up(components, kThreads / kWarp); }
};

FASTIB_INLINE double block_max(double value) {
  FASTIB_SHARED(of_threads, double[kThreads]);
  of_threads[threadIdx.x] = value;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (int(threadIdx.x) < half)
      of_threads[threadIdx.x] = ::fmax(of_threads[threadIdx.x], of_threads[threadIdx.x + half]);
    __syncthreads();
  }
  return of_threads[0];
}

template <class T>
FASTIB_INLINE void pack_dimension(const Packing<T>& p, int64_t d, int64_t part) {
  using S = Compute<T>;
  S* out = p.packed + d / p.width * 4 * p.width + d % p.width;
  const int64_t stride = 4 * int64_t(p.chunks) * p.width;
  const int64_t begin = part * kPackedByBlock + threadIdx.x, end = std::min((part + 1) * kPackedByBlock, p.components);
  if (d >= p.dims) {  // padding adds nothing to squares
    for (int64_t j = begin; j < end; j += kThreads)
      for (int k = 0; k < 4; ++k) out[j * stride + k * p.width] = S(0);
    return;
  }
  double largest = -double(INFINITY);
#pragma unroll 4
  for (int64_t j = threadIdx.x; j < p.components; j += kThreads) {
    const double c = -0.5 * kLog2E * double(S(p.logvar.template at<T>(j, d)));
    if (c > largest && c < double(INFINITY)) largest = c;
  }
  const double shift = shift_for<S>(block_max(largest));
  if (part == 0 && threadIdx.x == 0) p.shift[d] = shift;
  for (int64_t j = begin; j < end; j += kThreads) {
    const double half = -0.5 * double(S(p.logvar.template at<T>(j, d)));
    const double precision = exponential<double>(half).value * kRootHalfLog2E;
    out[j * stride] = S(p.mu.template at<T>(j, d));
    out[j * stride + p.width] = precision > kLargestPrecision<S> ? S(kLargestPrecision<S>) : S(precision);
    const S c = half < double(INFINITY) ? S(kLog2E * half) : S(NAN);
    out[j * stride + 2 * p.width] = c - S(shift);
    out[j * stride + 3 * p.width] = c;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks) pack(Packing<T> p, int64_t parts, int64_t point_blocks) {
  using S = Compute<T>;
  const int64_t padded = int64_t(p.chunks) * p.width;
  int64_t block = blockIdx.x;
  if (block < padded * parts) return pack_dimension(p, block % padded, block / padded);
  block -= padded * parts;
  if (block < point_blocks) {
    const int64_t at = block * kThreads + threadIdx.x, row = at / padded, d = at % padded;
    if (row < p.rows) p.points[at] = d < p.dims ? S(p.z.template at<T>(row, d)) : S(0);
    return;
  }
  const int64_t j = (block - point_blocks) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (j >= p.components) return;
  double constant = 0;
  for (int64_t d = threadIdx.x % kWarp; d < p.dims; d += kWarp) {
    const double half = -0.5 * double(S(p.logvar.template at<T>(j, d)));
    constant += half < double(INFINITY) ? kLog2E * half : double(NAN);
  }
  constant = warp_sum(constant);
  if (threadIdx.x % kWarp == 0) p.constants[j] = S(constant);
}

// The largest given weight of a row, in powers of two: what its weights are relative to. A warp for each row.
template <class S>
__global__ void __launch_bounds__(kThreads, kBlocks)
    find_largest_weights(Matrix log_weights, int64_t rows, int64_t components, double* largest_weights) {
  const int64_t row = int64_t(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (row >= rows) return;
  double largest = -double(INFINITY);
  for (int64_t j = threadIdx.x % kWarp; j < components; j += kWarp)
    largest = ::fmax(largest, double(log_weights.at<S>(row, j)));
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2)
    largest = ::fmax(largest, __shfl_xor_sync(kAllLanes, largest, lanes));
  const bool finite = largest > -double(INFINITY) && largest < double(INFINITY);
  if (threadIdx.x % kWarp == 0) largest_weights[row] = finite ? largest * kLog2E : 0;
}

// The mixture of one call, packed, with the memory that it lies in.
template <class T>
struct PackedMixture {
  using S = Compute<T>;
  Chunks chunks;
  Tensor packed, constants, points, shift, largest_weights;
  Mixture<S> mixture;

  PackedMixture(const Device& device, const Tensor& z, const Tensor& mu, const Tensor& logvar,
                const MaybeTensor& log_weights, Weights weights, int64_t row_offset)
      : chunks(mu.size(1), sizeof(S) == 8),
        packed(scratch({mu.size(0), 4 * chunks.padded()}, z)),
        constants(scratch({mu.size(0)}, z)),
        points(scratch({z.size(0), chunks.padded()}, z)),
        shift(output({mu.size(1)}, ScalarType::Double, z)),
        largest_weights(output({log_weights ? z.size(0) : 0}, ScalarType::Double, z)) {
    // An index has 32 bits in the kernels on pairs: so many pairs would take them a year.
    STD_TORCH_CHECK(std::max(z.size(0), mu.size(0)) < (int64_t(1) << 30), "fastib: ", z.size(0), " points under ",
                    mu.size(0), " components: neither may be 2^30 or more");
    const PairWeighting w(weights);
    const auto data = [](const Tensor& t) { return static_cast<S*>(t.data_ptr()); };
    mixture = {z.size(0),
               mu.size(0),
               mu.size(1),
               chunks.count,
               chunks.warps,
               chunks.panels,
               data(packed),
               data(constants),
               data(points),
               doubles(shift),
               log_weights || w.by_logarithm,
               S(w.own),
               S(w.log2_own),
               S(w.log2_other),
               w.log_base,
               row_offset,
               Matrix(log_weights),
               log_weights ? doubles(largest_weights) : nullptr};
    const Packing<T> p{Matrix(z),    Matrix(mu),   Matrix(logvar), z.size(0),       mu.size(0),   mu.size(1),
                       chunks.count, chunks.width, data(packed),   data(constants), data(points), doubles(shift)};
    FASTIB_RUN(device, pack<T>, p.blocks(), kThreads, p, p.parts(), p.point_blocks());
    if (log_weights)
      FASTIB_RUN(device, find_largest_weights<S>, divide_up(mixture.rows, kThreads / kWarp), kThreads,
                 mixture.log_weights, mixture.rows, mixture.components, doubles(largest_weights));
  }

  static Tensor scratch(IntArray sizes, const Tensor& like) {
    return output(sizes, accumulate_type(like.scalar_type()), like);
  }
};

// Where a thread of a pass over pairs is: a block has 32 lanes, of which each has R of `count`, a part of what comes to
// them, and a panel of dimensions.
template <int R>
struct Place {
  int count, first, begin, end;  // the first of the block's own, and which of those that come
  int panel, part, warp, lane;

  __device__ Place(int64_t count_, int64_t terms, const Parts& parts) : count(int(count_)) {
    const auto groups = (unsigned(count) + kWarp * R - 1) / (kWarp * R), rest = blockIdx.x / groups;
    part = int(rest % unsigned(parts.count));
    panel = int(rest / unsigned(parts.count));
    warp = int(threadIdx.x) / kWarp;
    lane = int(threadIdx.x) % kWarp;
    first = int(blockIdx.x % groups) * (kWarp * R);
    begin = int(part * parts.size);
    end = int(std::min(begin + parts.size, terms));
  }
  __device__ unsigned index(int r) const { return unsigned(first) + r * kWarp + lane; }
  __device__ bool has(int r) const { return index(r) < unsigned(count); }
  // The same, or the last one where there is none.
  __device__ int nearest(int r) const { return has(r) ? int(index(r)) : count - 1; }
  // Where what is `offset` beyond the block's own begins among those that come, and whether some of them are none of
  // it.
  __device__ int partners(int64_t offset) const {
    const int64_t none = int64_t(1) << 30;
    return int(std::clamp(first + offset, -none, none));
  }
  static __device__ bool apart(int partners, int first_other, int others) {
    return first_other + others <= partners || first_other >= partners + kWarp * R;
  }
};

// Adds to the squares of a lane's pairs those in the chunks of its warp that no block has in registers here; row(r, k)
// and component(r, k) are the pairs. In the order of the chunks, so that all passes see the same bits.
template <int R, class S, class Row, class Of>
FASTIB_INLINE void add_other_chunks(Squares<R, S>& squares, const Mixture<S>& m, int width, int own_chunk, int count,
                                    Row row, Of component) {
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
#pragma unroll 1
  for (int k = 0; k < count; ++k) {
#pragma unroll 1
    for (int r = 0; r < R; ++r) {
      S sum = 0, &own = squares.at(m.warps, k, warp, r, lane);
#pragma unroll 1
      for (int chunk = warp; chunk < m.chunks; chunk += m.warps)
        sum += chunk == own_chunk ? own : squares_in_memory(m, width, row(r, k), component(r, k), chunk);
      own = sum;
    }
  }
}

template <int R>
int64_t blocks_of_pairs(const Chunks& chunks, int64_t count, const Parts& parts) {
  return divide_up(count, kWarp * R) * parts.count * chunks.panels;
}

// Calls with_width(std::integral_constant<int, C>) for the width of chunks.
template <class S, class F>
void with_width(const Chunks& chunks, F f) {
  if constexpr (sizeof(S) == 8) {
    f(std::integral_constant<int, 8>());
  } else {
    if (chunks.width == 8) f(std::integral_constant<int, 8>());
    else if (chunks.width == 12) f(std::integral_constant<int, 12>());
    else f(std::integral_constant<int, 16>());
  }
}

}  // namespace fastib::cuda
