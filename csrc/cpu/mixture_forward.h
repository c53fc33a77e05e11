// The forward pass over a mixture: log densities of points, jointly and for each dimension.

constexpr int64_t kDims = 8;          // dimensions whose exponents wait in a buffer for their exponentials
constexpr int64_t kTilesPerSum = 64;  // sums in lanes of S are taken to a double after so many terms

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

template <class S, Weights mode>
static void add_tile(LaneSums<S>& sums, const Tile<S>& tile, const S* z, const PairWeights<S>* w) {
  using V = Vec<S>;
  V squares[kRows] = {}, exponents[kDims * kRows];
  for (int64_t begin = 0; begin < tile.dims; begin += kDims) {
    const int64_t end = std::min(begin + kDims, tile.dims);
    find_exponents(tile, z, begin, end, squares, exponents);
    for (int64_t d = begin; d < end; ++d) {
      for (int r = 0; r < kRows; ++r) {
        const V density = fast_exp2<V>(exponents[(d - begin) * kRows + r]);
        V& sum = sums.marginals[d * kRows + r];
        if constexpr (mode == Weights::equal) sum += density;
        else sum = fma<V>(density, w->weight[r], sum);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    const V t = joint_exponent<S, mode>(tile, squares[r], w, r), max = sums.max[r], sum = sums.sum[r];
    const auto larger = t > max;
    const V ratio = fast_exp2<V>(larger ? max - t : t - max);
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
  const V terms = sum * fast_exp2<V>(max - splat<V>(largest));
  total.sum = total.sum * std::exp2(double(total.max) - double(largest)) + double(fold_lanes<S>(terms));
  total.max = largest;
}

// Adds tiles [begin, end) to the sums of one block of points.
template <class S>
static void add_tiles(const Mixture& m, const Points<S>& p, int64_t begin, int64_t end, Vec<S>* marginals,
                      RunningSum<S>* joint, double* totals) {
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
    weigh(w, m, p, i, mode);
    if (mode == Weights::own) add_tile<S, Weights::own>(sums, tile, p.z, &w);
    else add_tile<S, Weights::given>(sums, tile, p.z, &w);
  }
  for (int r = 0; r < kRows; ++r) add_lanes<S>(joint[r], sums.max[r], sums.sum[r]);
  for (int64_t k = 0; k < m.dims * kRows; ++k) totals[k] += double(fold_lanes<S>(marginals[k]));
}

// A far marginal (kFarSum) is summed again, in two passes.

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
    total.sum += double(fold_lanes<S>(fast_exp2<V>(t - splat<V>(total.max))));
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

// The points of one chunk, in blocks, and their sums.
template <class S>
struct ChunkSums {
  static constexpr int64_t kBlocks = (kRowsPerChunk + kRows - 1) / kRows;
  int64_t count = 0;  // of blocks
  Points<S> points[kBlocks];
  RunningSum<S> joint[kBlocks * kRows];
  std::vector<S> z;               // [blocks, dims, kRows]
  std::vector<double> marginals;  // the same
};

template <class T, class S>
static void read_chunk(ChunkSums<S>& sums, const Mixture& m, int64_t chunk) {
  const int64_t begin = chunk * kRowsPerChunk, end = std::min(begin + kRowsPerChunk, m.rows), width = m.dims * kRows;
  sums.z.resize(size_t(ChunkSums<S>::kBlocks * width));
  sums.marginals.resize(sums.z.size());
  for (int64_t first = begin; first < end; first += kRows, ++sums.count)
    sums.points[sums.count] = read_points<T, S>(m, first, end, sums.z.data() + sums.count * width);
}

// A group of tiles stays in the cache while the blocks pass over it.
template <class S>
static void add_all_tiles(ChunkSums<S>& sums, const Mixture& m) {
  const int64_t width = m.dims * kRows, tiles = tiles_of<S>(m);
  const Scratch lanes(width * int64_t(sizeof(Vec<S>)));
  for (int64_t tile = 0; tile < tiles; tile += kTilesPerSum)
    for (int64_t b = 0; b < sums.count; ++b)
      add_tiles<S>(m, sums.points[b], tile, std::min(tile + kTilesPerSum, tiles), lanes.template as<Vec<S>>(),
                   sums.joint + b * kRows, sums.marginals.data() + b * width);
}

// The logarithms of the marginals of row r of block b, but for what all of them share, and in `saved` their sums, with
// 0 for those that were summed apart.
template <class S>
static void finish_marginals(const ChunkSums<S>& sums, const Mixture& m, int64_t b, int64_t r, S* saved, double* logs) {
  using V = Vec<double>;
  const int64_t first = b * m.dims * kRows + r;
  for (int64_t d = 0; d < m.dims; ++d) logs[d] = sums.marginals[size_t(first + d * kRows)];
  for (int64_t d = 0; d < m.dims; ++d) saved[d] = logs[d] >= kFarSum<S> ? S(logs[d]) : S(0);
  for (int64_t d = 0; d < m.dims; d += kLanes<double>) store(logs + d, logarithm<V>(load<V>(logs + d)));
  for (int64_t d = 0; d < m.dims; ++d) {
    if (saved[d] != S(0)) {
      logs[d] += kLn2 * m.shift[size_t(d)];
      continue;
    }
    const Points<S>& p = sums.points[b];
    const RunningSum<S> far = far_sum<S>(m, p.first + r, d, p.z[d * kRows + r], p.largest[r]);
    logs[d] = std::log(far.sum) + kLn2 * double(far.max);
  }
}

// Calls done(row, z, result) for the points of one chunk; element d of a point is z[d * kRows].
template <class T, class Done>
static void mixture_forward(const Mixture& m, int64_t chunk, void* saved_data, Done done) {
  using S = Compute<T>;
  ChunkSums<S> sums;
  read_chunk<T>(sums, m, chunk);
  add_all_tiles(sums, m);
  std::vector<double> logs(size_t(m.dims + kLanes<double>));
  for (int64_t b = 0; b < sums.count; ++b) {
    for (int64_t r = 0; r < sums.points[b].count; ++r) {
      const int64_t row = sums.points[b].first + r;
      const RunningSum<S>& joint = sums.joint[b * kRows + r];
      const double log_unit = m.log_base + kLn2 * sums.points[b].largest[r];
      S* saved = static_cast<S*>(saved_data) + row * m.saved_columns();
      saved[0] = joint.max;
      saved[1] = S(joint.sum);
      finish_marginals(sums, m, b, r, saved + 2, logs.data());
      std::fill_n(saved + 2 + m.dims, m.dims, S(0));
      for (int64_t d = 0; d < m.dims; ++d) logs[size_t(d)] += log_unit - 0.5 * kLog2Pi;
      const double log_joint =
          std::log(joint.sum) + kLn2 * double(joint.max) + log_unit - 0.5 * kLog2Pi * double(m.dims);
      done(row, sums.points[b].z + r, PointResult<S>{log_joint, joint, logs.data(), log_unit});
    }
  }
}
