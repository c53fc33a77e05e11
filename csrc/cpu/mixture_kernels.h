// The kernels of a mixture, for S float or double: included by an operator's file inside each instruction set, so
// without an include guard. The formulas are at the top of mixture.h.
//
// A tile is one vector of components; a block is kRows points, which share the loads of a tile. Everything is summed
// in an order that depends on the shapes alone.

constexpr int kRows = kVectorBytes == 64 ? 8 : 4;
constexpr int64_t kDims = 8;          // dimensions whose exponents wait in a buffer for their exponentials
constexpr int64_t kTilesPerSum = 64;  // sums in lanes of S are taken to a double after so many terms

// What the pairs of a tile weigh: all 1; a row's own component otherwise than the others; each what its logarithm says.
enum class Weights { equal, own, given };

template <class S>
struct Tile {
  const S* data;
  int64_t dims;
  Tile(const Mixture& m, int64_t tile) : data(m.packed.as<S>() + tile * (3 * m.dims + 1) * kLanes<S>), dims(m.dims) {}
  const S* mu(int64_t d) const { return data + 3 * d * kLanes<S>; }
  const S* precision(int64_t d) const { return mu(d) + kLanes<S>; }  // sqrt(log2(e)/2) exp(-l/2)
  const S* c(int64_t d) const { return mu(d) + 2 * kLanes<S>; }
  const S* joint() const { return data + 3 * dims * kLanes<S>; }
};

template <class S>
FASTIB_INLINE int64_t tiles_of(const Mixture& m) {
  return (m.components + kLanes<S> - 1) / kLanes<S>;
}

constexpr double kLog2E = 0x1.71547652b82fep0, kLn2 = 0x1.62e42fefa39efp-1, kLog2Pi = 0x1.d67f1c864beb4p0;

// Packing.

template <class T>
static void find_shifts(const Mixture& m, int64_t chunk) {
  using S = Compute<T>;
  const int64_t begin = chunk * kComponentsPerChunk, end = std::min(begin + kComponentsPerChunk, m.components);
  double* shift = m.shifts_of_chunks.as<double>() + chunk * m.dims;
  std::fill_n(shift, m.dims, -double(INFINITY));
  for (int64_t j = begin; j < end; ++j) {
    for (int64_t d = 0; d < m.dims; ++d) {
      const double bound = -0.5 * kLog2E * double(S(m.logvar.at<T>(j, d)));
      if (bound > shift[d] && bound < double(INFINITY)) shift[d] = bound;
    }
  }
}

// A precision beyond this is taken for it: the density is 0 in S but at the mean itself, where no 0 * inf may arise.
template <class S>
constexpr double kLargestPrecision = sizeof(S) == 4 ? 0x1p110 : 0x1p1000;

template <class T>
static void pack(const Mixture& m, int64_t chunk) {
  using S = Compute<T>;
  using V = Vec<double>;  // the precision is squared and multiplied by large numbers: its last bit counts
  constexpr int lanes = kLanes<S>;
  const int64_t begin = chunk * kComponentsPerChunk, end = std::min(begin + kComponentsPerChunk, m.components);
  for (int64_t first = begin; first < end; first += lanes) {
    S* out = m.packed.as<S>() + first / lanes * (3 * m.dims + 1) * lanes;
    double joint[lanes] = {};
    for (int64_t d = 0; d < m.dims; ++d, out += 3 * lanes) {
      double half[lanes];
      for (int lane = 0; lane < lanes; ++lane) {
        const int64_t j = std::min(first + lane, m.components - 1);  // beyond the last it is repeated, without weight
        half[lane] = -0.5 * double(S(m.logvar.at<T>(j, d)));
        const double c = kLog2E * half[lane];
        joint[lane] += c;
        out[lane] = S(m.mu.at<T>(j, d));
        out[2 * lanes + lane] = first + lane < m.components ? S(c - m.shift[size_t(d)]) : -S(INFINITY);
      }
      for (int lane = 0; lane < lanes; lane += kLanes<double>)
        store(half + lane, exponential<V>(load<V>(half + lane)).value * 0x1.b2da4e9808a53p-1);
      for (int lane = 0; lane < lanes; ++lane)
        out[lanes + lane] = half[lane] > kLargestPrecision<S> ? S(kLargestPrecision<S>) : S(half[lane]);
    }
    for (int lane = 0; lane < lanes; ++lane) out[lane] = first + lane < m.components ? S(joint[lane]) : -S(INFINITY);
  }
}

// Points.

// kRows points, the last repeated where there are fewer.
template <class S>
struct Points {
  int64_t first, count;
  S* z;  // [dims, kRows]
};

template <class T, class S>
static Points<S> read_points(const Mixture& m, int64_t first, int64_t end, S* z) {
  const int64_t count = std::min<int64_t>(kRows, end - first);
  for (int64_t d = 0; d < m.dims; ++d)
    for (int r = 0; r < kRows; ++r) z[d * kRows + r] = S(m.z.at<T>(first + std::min<int64_t>(r, count - 1), d));
  return {first, count, z};
}

// Weights.

template <class S>
struct PairWeights {
  Vec<S> weight[kRows], log2_weight[kRows];  // relative to Mixture::base; the logarithm only where given
};

// The largest given log-weight of a row, in powers of two: what its weights are relative to.
template <class S>
static double largest_weight(const Mixture& m, int64_t row) {
  if (!m.log_weights) return 0;
  double largest = -double(INFINITY);
  for (int64_t j = 0; j < m.components; ++j) largest = std::max(largest, double(m.log_weights.at<S>(row, j)));
  return largest > -double(INFINITY) && largest < double(INFINITY) ? largest * kLog2E : 0;
}

// log2 of the weights of a row in one tile, relative to Mixture::base or to `largest`.
template <class S>
FASTIB_INLINE Vec<S> log2_weights(const Mixture& m, int64_t row, int64_t tile, double largest) {
  constexpr int lanes = kLanes<S>;
  const int64_t first = tile * lanes;
  S values[lanes];
  for (int lane = 0; lane < lanes; ++lane) {
    if (first + lane >= m.components) values[lane] = -S(INFINITY);
    else if (m.log_weights) values[lane] = S(double(m.log_weights.at<S>(row, first + lane)) * kLog2E - largest);
    else values[lane] = S(first + lane == row + m.row_offset ? m.log2_own : m.log2_other);
  }
  return load<Vec<S>>(values);
}

template <class S>
static void weigh(PairWeights<S>& w, const Mixture& m, const Points<S>& p, int64_t tile, Weights mode,
                  const double* largest) {
  using V = Vec<S>;
  for (int r = 0; r < kRows; ++r) {
    const int64_t row = p.first + std::min<int64_t>(r, p.count - 1);
    if (mode == Weights::given) {
      w.log2_weight[r] = log2_weights<S>(m, row, tile, largest[r]);
      w.weight[r] = exp2_of_negative<V>(w.log2_weight[r]);
    } else {
      const int64_t lane = row + m.row_offset - tile * kLanes<S>;
      w.weight[r] = splat<V>(S(1));
      if (lane >= 0 && lane < kLanes<S>) w.weight[r][lane] = S(m.own);
    }
  }
}

template <class S>
FASTIB_INLINE Weights mode_of(const Mixture& m, const Points<S>& p, int64_t tile) {
  if (m.log_weights || m.other != 1) return Weights::given;
  if (m.own == m.other) return Weights::equal;
  const int64_t first_own = p.first + m.row_offset, last_own = first_own + p.count - 1;
  const bool has_own = tile >= first_own / kLanes<S> && tile <= last_own / kLanes<S>;
  return has_own ? Weights::own : Weights::equal;
}

// Forward.

// A sum of powers of two whose terms have no bound known beforehand.
template <class S>
struct RunningSum {
  S max = std::numeric_limits<S>::lowest();
  double sum = 0;
};

template <class S>
struct LaneSums {
  Vec<S> max[kRows], sum[kRows];  // of the joint
  Vec<S>* marginals;              // [dims, kRows]
};

// v of one pair; every pass takes it from here, so that all see the same bits.
template <class V>
FASTIB_INLINE V scaled_deviation(Scalar<V> z, V mu, V precision) {
  return (splat<V>(z) - mu) * precision;
}

template <class S, Weights mode>
FASTIB_INLINE Vec<S> joint_exponent(const Tile<S>& tile, Vec<S> squares, const PairWeights<S>* w, int r) {
  using V = Vec<S>;
  const V t = load<V>(tile.joint()) - squares;
  if constexpr (mode == Weights::given) return t + w->log2_weight[r];
  if constexpr (mode == Weights::own) return w->weight[r] > S(0) ? t : splat<V>(std::numeric_limits<S>::lowest());
  return t;
}

// The exponents c - v^2 of dimensions [begin, end), and the sums of v^2 so far. They are a loop of their own because a
// processor looks only so far ahead: with the exponentials in the same loop it finds too little to do at once.
template <class S>
FASTIB_INLINE void find_exponents(const Tile<S>& tile, const S* z, int64_t begin, int64_t end, Vec<S>* squares,
                                  Vec<S>* exponents, Vec<S>* deviations = nullptr) {
  using V = Vec<S>;
  for (int64_t d = begin; d < end; ++d) {
    const V mu = load<V>(tile.mu(d)), precision = load<V>(tile.precision(d)), c = load<V>(tile.c(d));
    for (int r = 0; r < kRows; ++r) {
      const V v = scaled_deviation<V>(z[d * kRows + r], mu, precision);
      squares[r] = fma<V>(v, v, squares[r]);
      exponents[(d - begin) * kRows + r] = fma<V>(-v, v, c);
      if (deviations != nullptr) deviations[(d - begin) * kRows + r] = v;
    }
  }
}

template <class S, Weights mode>
static void add_tile(LaneSums<S>& sums, const Tile<S>& tile, const S* z, const PairWeights<S>* w) {
  using V = Vec<S>;
  V squares[kRows] = {}, exponents[kDims * kRows];
  for (int64_t begin = 0; begin < tile.dims; begin += kDims) {
    const int64_t end = std::min(begin + kDims, tile.dims);
    find_exponents(tile, z, begin, end, squares, exponents);
    for (int64_t d = begin; d < end; ++d) {
      for (int r = 0; r < kRows; ++r) {
        const V density = exp2_of_negative<V>(exponents[(d - begin) * kRows + r]);
        V& sum = sums.marginals[d * kRows + r];
        if constexpr (mode == Weights::equal) sum += density;
        else sum = fma<V>(density, w->weight[r], sum);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    const V t = joint_exponent<S, mode>(tile, squares[r], w, r), max = sums.max[r], sum = sums.sum[r];
    const auto larger = t > max;
    const V ratio = exp2_of_negative<V>(larger ? max - t : t - max);
    const V weight = mode == Weights::own ? w->weight[r] : splat<V>(S(1));
    sums.sum[r] = larger ? fma<V>(sum, ratio, weight) : fma<V>(ratio, weight, sum);
    sums.max[r] = larger ? t : max;
  }
}

template <class S>
static void add_lanes(RunningSum<S>& total, Vec<S> max, Vec<S> sum) {
  using V = Vec<S>;
  S largest = total.max;
  for (int lane = 0; lane < kLanes<S>; ++lane) largest = max[lane] > largest ? max[lane] : largest;
  const V terms = sum * exp2_of_negative<V>(max - splat<V>(largest));
  total.sum = total.sum * std::exp2(double(total.max) - double(largest)) + double(fold_lanes<S>(terms));
  total.max = largest;
}

// Adds tiles [begin, end) to the sums of one block of points.
template <class S>
static void add_tiles(const Mixture& m, const Points<S>& p, const double* largest, int64_t begin, int64_t end,
                      Vec<S>* marginals, RunningSum<S>* joint, double* totals) {
  using V = Vec<S>;
  LaneSums<S> sums;
  sums.marginals = marginals;
  std::fill_n(marginals, m.dims * kRows, V{});
  for (int r = 0; r < kRows; ++r) {
    sums.max[r] = splat<V>(std::numeric_limits<S>::lowest());
    sums.sum[r] = V{};
  }
  for (int64_t i = begin; i < end; ++i) {
    const Tile<S> tile(m, i);
    const Weights mode = mode_of(m, p, i);
    if (mode == Weights::equal) {
      add_tile<S, Weights::equal>(sums, tile, p.z, nullptr);
      continue;
    }
    PairWeights<S> w;
    weigh(w, m, p, i, mode, largest);
    if (mode == Weights::own) add_tile<S, Weights::own>(sums, tile, p.z, &w);
    else add_tile<S, Weights::given>(sums, tile, p.z, &w);
  }
  for (int r = 0; r < kRows; ++r) add_lanes<S>(joint[r], sums.max[r], sums.sum[r]);
  for (int64_t k = 0; k < m.dims * kRows; ++k) totals[k] += double(fold_lanes<S>(marginals[k]));
}

// Where a marginal underflows relative to its shift: a point that no component is near. It is summed again
// in two passes, relative to its own maximum.
template <class S>
constexpr double kFarSum = sizeof(S) == 4 ? 0x1p-60 : 0x1p-900;

template <class S>
FASTIB_INLINE Vec<S> far_exponent(const Mixture& m, int64_t row, int64_t d, S z, int64_t i, double largest) {
  using V = Vec<S>;
  const Tile<S> tile(m, i);
  const V v = scaled_deviation<V>(z, load<V>(tile.mu(d)), load<V>(tile.precision(d)));
  return fma<V>(-v, v, load<V>(tile.c(d))) + log2_weights<S>(m, row, i, largest);
}

template <class S>
static RunningSum<S> far_sum(const Mixture& m, int64_t row, int64_t d, S z, double largest) {
  using V = Vec<S>;
  RunningSum<S> total;
  for (int64_t i = 0; i < tiles_of<S>(m); ++i) {
    const V t = far_exponent<S>(m, row, d, z, i, largest);
    for (int lane = 0; lane < kLanes<S>; ++lane) total.max = t[lane] > total.max ? t[lane] : total.max;
  }
  for (int64_t i = 0; i < tiles_of<S>(m); ++i) {
    const V t = far_exponent<S>(m, row, d, z, i, largest);
    total.sum += double(fold_lanes<S>(exp2_of_negative<V>(t - splat<V>(total.max))));
  }
  return total;
}

// The result for one point: natural logarithms, and what the backward pass wants.
template <class S>
struct PointResult {
  double log_joint;             // log q(z)
  RunningSum<S> joint;          // the same, as it was summed
  const double* log_marginals;  // log q(z_d), [dims]
  double log_unit;              // of the weights
};

// Calls done(row, z, stride of z, result) for the points of one chunk.
template <class T, class Done>
static void mixture_forward(const Mixture& m, int64_t chunk, void* saved_data, Done done) {
  using S = Compute<T>;
  using V = Vec<S>;
  const int64_t begin = chunk * kRowsPerChunk, end = std::min(begin + kRowsPerChunk, m.rows);
  constexpr int64_t blocks = (kRowsPerChunk + kRows - 1) / kRows;
  const int64_t width = m.dims * kRows, tiles = tiles_of<S>(m);
  const Scratch lanes(width * int64_t(sizeof(V)));
  std::vector<S> z(size_t(blocks * width));
  std::vector<double> totals(size_t(blocks * width)), logs(size_t(m.dims + kLanes<double>));
  RunningSum<S> joint[blocks * kRows];
  double largest[blocks * kRows];
  Points<S> points[blocks];
  int64_t count = 0;
  for (int64_t first = begin; first < end; first += kRows, ++count) {
    points[count] = read_points<T, S>(m, first, end, z.data() + count * width);
    for (int r = 0; r < points[count].count; ++r) largest[count * kRows + r] = largest_weight<S>(m, first + r);
    for (int64_t r = points[count].count; r < kRows; ++r) largest[count * kRows + r] = largest[count * kRows];
  }
  for (int64_t tile = 0; tile < tiles; tile += kTilesPerSum)
    for (int64_t b = 0; b < count; ++b)
      add_tiles<S>(m, points[b], largest + b * kRows, tile, std::min(tile + kTilesPerSum, tiles), lanes.as<V>(),
                   joint + b * kRows, totals.data() + b * width);
  for (int64_t b = 0; b < count; ++b) {
    for (int r = 0; r < points[b].count; ++r) {
      const int64_t row = points[b].first + r;
      S* saved = static_cast<S*>(saved_data) + row * m.saved_columns();
      const RunningSum<S>& sum = joint[b * kRows + r];
      saved[0] = sum.max;
      saved[1] = S(sum.sum);
      const double log_unit = m.log_base + kLn2 * largest[b * kRows + r];
      for (int64_t d = 0; d < m.dims; ++d) logs[size_t(d)] = totals[size_t(b * width + d * kRows + r)];
      for (int64_t d = 0; d < m.dims; ++d) {
        const bool near = logs[size_t(d)] >= kFarSum<S>;
        saved[2 + d] = near ? S(logs[size_t(d)]) : S(0);
      }
      for (int64_t d = 0; d < m.dims; d += kLanes<double>)
        store(logs.data() + d, logarithm<Vec<double>>(load<Vec<double>>(logs.data() + d)));
      for (int64_t d = 0; d < m.dims; ++d) {
        double& log = logs[size_t(d)];
        if (saved[2 + d] == S(0)) {
          const RunningSum<S> far = far_sum<S>(m, row, d, points[b].z[d * kRows + r], largest[b * kRows + r]);
          log = std::log(far.sum) + kLn2 * double(far.max);
        }
        log += kLn2 * m.shift[size_t(d)] + log_unit - 0.5 * kLog2Pi;
      }
      const double log_joint = std::log(sum.sum) + kLn2 * double(sum.max) + log_unit - 0.5 * kLog2Pi * double(m.dims);
      done(row, points[b].z + r, PointResult<S>{log_joint, sum, logs.data(), log_unit});
    }
  }
}

// Backward.

// What one point's gradients multiply: grads by log q(z) and by log q(z_d), over the sums of the forward pass.
template <class S>
struct RowGradients {
  S joint[kRows], joint_max[kRows];
  S* marginals;  // [dims, kRows]
};

template <class S>
struct TileBuffers {
  Vec<S>*densities, *deviations, *d_z;  // each [dims, kRows]
};

// Adds the gradients of one tile. d_columns is [dims, 2] vectors: the sum of c v, and that of c (u^2 - 1) / 2, where
// c = d loss / d log-density of the pair in dimension d.
template <class S, Weights mode>
static void backward_tile(const Tile<S>& tile, const S* z, const RowGradients<S>& g, const PairWeights<S>* w,
                          const TileBuffers<S>& buffers, S* d_columns) {
  using V = Vec<S>;
  V joint[kRows] = {};
  find_exponents(tile, z, 0, tile.dims, joint, buffers.densities, buffers.deviations);
  for (int64_t k = 0; k < tile.dims * kRows; k += kRows) {
    for (int r = 0; r < kRows; ++r) {
      const V density = exp2_of_negative<V>(buffers.densities[k + r]);
      buffers.densities[k + r] = mode == Weights::equal ? density : density * w->weight[r];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    joint[r] = exp2_of_negative<V>(joint_exponent<S, mode>(tile, joint[r], w, r) - g.joint_max[r]) * g.joint[r];
    if constexpr (mode == Weights::own) joint[r] *= w->weight[r];
  }
  for (int64_t d = 0; d < tile.dims; ++d) {
    const V precision = load<V>(tile.precision(d));
    V by_mean{}, by_square{}, total{};
    for (int r = 0; r < kRows; ++r) {
      const int64_t k = d * kRows + r;
      const V c = fma<V>(buffers.densities[k], g.marginals[k], joint[r]), v = buffers.deviations[k], cv = c * v;
      buffers.d_z[k] = fma<V>(cv, precision, buffers.d_z[k]);
      by_mean += cv;
      by_square = fma<V>(cv, v, by_square);
      total += c;
    }
    S* columns = d_columns + 2 * d * kLanes<S>;
    store(columns, load<V>(columns) + by_mean);
    store(columns + kLanes<S>, load<V>(columns + kLanes<S>) + fma<V>(by_square, splat<V>(S(kLn2)), total * S(-0.5)));
  }
}

// Where the partial sums of one task lie.
template <class S>
FASTIB_INLINE S* partial_row(const Mixture& m, const PartialGradients& p, int64_t block, int64_t row) {
  return p.rows.as<S>() + (block * m.rows + row) * m.dims;
}

template <class S>
FASTIB_INLINE S* partial_column(const Mixture& m, const PartialGradients& p, int64_t group, int64_t tile) {
  return p.columns.as<S>() + (group * m.padded + tile * kLanes<S>)*m.dims * 2;
}

template <class S>
FASTIB_INLINE int64_t first_tile_of(const Mixture& m, const PartialGradients& p, int64_t block) {
  return block * tiles_of<S>(m) / p.blocks;
}

// One task: a group of rows against a block of components. coefficients(row, joint, marginals) gives the gradients of
// the loss by log q(z) and by log q(z_d).
template <class T, class Coefficients>
static void mixture_backward(const Mixture& m, const PartialGradients& out, const void* saved_data, int64_t task,
                             Coefficients coefficients) {
  using S = Compute<T>;
  using V = Vec<S>;
  const int64_t group = task / out.blocks, block = task % out.blocks, width = m.dims * kRows;
  const int64_t begin = out.first_row(m, group), end = out.first_row(m, group + 1);
  const int64_t first_tile = first_tile_of<S>(m, out, block), end_tile = first_tile_of<S>(m, out, block + 1);
  const Scratch memory(3 * width * int64_t(sizeof(V)));
  const TileBuffers<S> buffers{memory.as<V>(), memory.as<V>() + width, memory.as<V>() + 2 * width};
  std::vector<S> z(static_cast<size_t>(width)), marginals(static_cast<size_t>(width)), of_row(size_t(m.dims));
  RowGradients<S> g;
  g.marginals = marginals.data();
  double largest[kRows];
  std::fill(partial_column<S>(m, out, group, first_tile), partial_column<S>(m, out, group, end_tile), S(0));
  for (int64_t first = begin; first < end; first += kRows) {
    const Points<S> p = read_points<T, S>(m, first, end, z.data());
    for (int r = 0; r < kRows; ++r) {
      const int64_t row = first + std::min<int64_t>(r, p.count - 1);
      const S* saved = static_cast<const S*>(saved_data) + row * m.saved_columns();
      S joint = 0;
      coefficients(row, joint, of_row.data());
      const bool repeated = r >= p.count;
      largest[r] = largest_weight<S>(m, row);
      g.joint_max[r] = saved[0];
      g.joint[r] = repeated || saved[1] == S(0) || joint == S(0) ? S(0) : joint / saved[1];
      for (int64_t d = 0; d < m.dims; ++d)
        marginals[size_t(d * kRows + r)] = repeated || saved[2 + d] == S(0) ? S(0) : of_row[size_t(d)] / saved[2 + d];
    }
    std::fill_n(buffers.d_z, width, V{});
    for (int64_t i = first_tile; i < end_tile; ++i) {
      const Tile<S> tile(m, i);
      const Weights mode = mode_of(m, p, i);
      S* columns = partial_column<S>(m, out, group, i);
      if (mode == Weights::equal) {
        backward_tile<S, Weights::equal>(tile, p.z, g, nullptr, buffers, columns);
        continue;
      }
      PairWeights<S> w;
      weigh(w, m, p, i, mode, largest);
      if (mode == Weights::own) backward_tile<S, Weights::own>(tile, p.z, g, &w, buffers, columns);
      else backward_tile<S, Weights::given>(tile, p.z, g, &w, buffers, columns);
    }
    for (int64_t r = 0; r < p.count; ++r)
      for (int64_t d = 0; d < m.dims; ++d)
        partial_row<S>(m, out, block, first + r)[d] = fold_lanes<S>(buffers.d_z[d * kRows + r]);
  }
}

// The marginals that the forward pass summed apart: one task for each group of rows, after all of the tasks above.
template <class T, class Coefficients>
static void far_backward(const Mixture& m, const PartialGradients& out, const void* saved_data, int64_t group,
                         Coefficients coefficients) {
  using S = Compute<T>;
  using V = Vec<S>;
  std::vector<S> of_row(size_t(m.dims));
  for (int64_t row = out.first_row(m, group); row < out.first_row(m, group + 1); ++row) {
    const S* saved = static_cast<const S*>(saved_data) + row * m.saved_columns();
    if (std::find(saved + 2, saved + 2 + m.dims, S(0)) == saved + 2 + m.dims) continue;
    S joint = 0;
    coefficients(row, joint, of_row.data());
    const double largest = largest_weight<S>(m, row);
    for (int64_t d = 0; d < m.dims; ++d) {
      if (saved[2 + d] != S(0) || of_row[size_t(d)] == S(0)) continue;
      const S z = S(m.z.at<T>(row, d));
      const RunningSum<S> total = far_sum<S>(m, row, d, z, largest);
      if (total.sum == 0) continue;
      const S scale = S(double(of_row[size_t(d)]) / total.sum);
      V d_z{};
      for (int64_t i = 0; i < tiles_of<S>(m); ++i) {
        const Tile<S> tile(m, i);
        const V precision = load<V>(tile.precision(d));
        const V v = scaled_deviation<V>(z, load<V>(tile.mu(d)), precision);
        const V c = exp2_of_negative<V>(far_exponent<S>(m, row, d, z, i, largest) - splat<V>(total.max)) * scale;
        const V cv = c == S(0) ? V{} : c * v;  // v may be infinite
        d_z = fma<V>(cv, precision, d_z);
        S* columns = partial_column<S>(m, out, group, i) + 2 * d * kLanes<S>;
        store(columns, load<V>(columns) + cv);
        const V by_logvar = cv * v * S(kLn2) - c * S(0.5);
        store(columns + kLanes<S>, load<V>(columns + kLanes<S>) + (c == S(0) ? V{} : by_logvar));
      }
      partial_row<S>(m, out, 0, row)[d] += fold_lanes<S>(d_z);
    }
  }
}

// The sums of the partial gradients. add(i, d, value) may add what does not come from the mixture.
template <class T, class Add>
static void finish_rows(const Mixture& m, const PartialGradients& in, const Matrix& d_z, int64_t chunk, Add add) {
  using S = Compute<T>;
  const int64_t begin = chunk * kRowsPerChunk, end = std::min(begin + kRowsPerChunk, m.rows);
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t d = 0; d < m.dims; ++d) {
      double sum = 0;
      for (int64_t block = 0; block < in.blocks; ++block) sum += double(partial_row<S>(m, in, block, row)[d]);
      d_z.at<T>(row, d) = T(S(add(row, d, -2 * kLn2 * sum)));
    }
  }
}

template <class T, class Add>
static void finish_columns(const Mixture& m, const PartialGradients& in, const Matrix& d_mu, const Matrix& d_logvar,
                           int64_t chunk, Add add) {
  using S = Compute<T>;
  const int64_t begin = chunk * kComponentsPerChunk, end = std::min(begin + kComponentsPerChunk, m.components);
  for (int64_t j = begin; j < end; ++j) {
    const int64_t tile = j / kLanes<S>, lane = j % kLanes<S>;
    for (int64_t d = 0; d < m.dims; ++d) {
      double by_mean = 0, by_logvar = 0;
      for (int64_t group = 0; group < in.groups; ++group) {
        const S* columns = partial_column<S>(m, in, group, tile) + 2 * d * kLanes<S> + lane;
        by_mean += double(columns[0]);
        by_logvar += double(columns[kLanes<S>]);
      }
      by_mean *= 2 * kLn2 * double(Tile<S>(m, tile).precision(d)[lane]);
      add(j, d, by_mean, by_logvar);
      d_mu.at<T>(j, d) = T(S(by_mean));
      d_logvar.at<T>(j, d) = T(S(by_logvar));
    }
  }
}
