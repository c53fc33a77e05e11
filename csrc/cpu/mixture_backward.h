// The backward pass over a mixture. It follows mixture_forward.h, whose sums it takes and whose far points it sums
// again.

// What the gradients of a block of points are made of: those of the loss by log q(z), by log q(z|x) - log q(z) and by
// log q(z_d); the sums of the forward pass; and the quotients, for pairs whose density is all that matters.
template <class S>
struct RowGradients {
  S joint[kRows], relative[kRows], joint_max[kRows], joint_sum[kRows], joint_quotient[kRows];
  S *marginals, *marginal_sums, *marginal_quotients;  // [dims, kRows]
};

template <class S>
struct TileBuffers {
  Vec<S>*densities, *deviations, *d_z;  // each [dims, kRows]
};

// Adds the gradients of one tile. d_columns is [dims, 2] vectors: the sum of c v, and that of c (u^2 - 1) / 2, where
// c = d loss / d log-density of the pair in dimension d. Where a row's own component may be in the tile, a density is
// divided by its sum before anything else: a component that is all of a sum then has a share of exactly 1, and
// gradients that cancel leave nothing.
template <class S, Weights mode>
static void backward_tile(const Tile<S>& tile, const S* z, const RowGradients<S>& g, const PairWeights<S>* w,
                          const TileBuffers<S>& buffers, S* d_columns) {
  using V = Vec<S>;
  V joint[kRows] = {};
  find_exponents(tile, z, 0, tile.dims, joint, buffers.densities, buffers.deviations);
  for (int64_t k = 0; k < tile.dims * kRows; k += kRows) {
    for (int r = 0; r < kRows; ++r) {
      V& density = buffers.densities[k + r];
      density = fast_exp2<V>(density);
      if constexpr (mode != Weights::equal) density = density * w->weight[r] / g.marginal_sums[k + r];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    const V density = fast_exp2<V>(joint_exponent<S, mode>(tile, joint[r], w, r) - g.joint_max[r]);
    if constexpr (mode == Weights::equal) {
      joint[r] = density * g.joint_quotient[r];
    } else {
      const V share = (mode == Weights::own ? density * w->weight[r] : density) / g.joint_sum[r];
      joint[r] = fma<V>(w->is_own[r] - share, g.relative[r], share * g.joint[r]);
    }
  }
  const S* by_density = mode == Weights::equal ? g.marginal_quotients : g.marginals;
  for (int64_t d = 0; d < tile.dims; ++d) {
    const V precision = load<V>(tile.precision(d));
    V by_mean{}, by_square{}, total{};
    for (int r = 0; r < kRows; ++r) {
      const int64_t k = d * kRows + r;
      const V c = fma<V>(buffers.densities[k], by_density[k], joint[r]), v = buffers.deviations[k], cv = c * v;
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

// 0 where a point is repeated, or its sum was taken apart.
template <class S, class Coefficients>
static void read_gradients(RowGradients<S>& g, const Mixture& m, const Points<S>& p, const void* saved_data,
                           Coefficients coefficients) {
  std::vector<S> of_row(size_t(m.dims));
  for (int r = 0; r < kRows; ++r) {
    const int64_t row = p.row(r);
    const S* saved = static_cast<const S*>(saved_data) + row * m.saved_columns();
    const bool none = r >= p.count || saved[1] == S(0);
    coefficients(row, g.joint[r], g.relative[r], of_row.data());
    if (none) g.joint[r] = g.relative[r] = 0;
    g.joint_max[r] = saved[0];
    g.joint_sum[r] = none ? S(1) : saved[1];
    g.joint_quotient[r] = (g.joint[r] - g.relative[r]) / g.joint_sum[r];
    for (int64_t d = 0; d < m.dims; ++d) {
      const int64_t k = d * kRows + r;
      const bool absent = r >= p.count || saved[2 + d] == S(0);
      g.marginals[k] = absent ? S(0) : of_row[size_t(d)];
      g.marginal_sums[k] = absent ? S(1) : saved[2 + d];
      g.marginal_quotients[k] = g.marginals[k] / g.marginal_sums[k];
    }
  }
}

// Sums of S, taken to sums of double before they have so many terms that their digits suffer.
template <class S>
struct LongSums {
  int64_t count;
  Scratch memory;
  S* sums;  // add to these
  double* totals;

  explicit LongSums(int64_t n) : count(n), memory(n * int64_t(sizeof(S) + sizeof(double))), sums(memory.as<S>()) {
    totals = reinterpret_cast<double*>(sums + n);
    std::fill_n(sums, n, S(0));
    std::fill_n(totals, n, 0.0);
  }
  void carry() {
    for (int64_t i = 0; i < count; ++i) {
      totals[i] += double(sums[i]);
      sums[i] = 0;
    }
  }
};

template <class S>
static void add_gradients_of_tile(const Mixture& m, const Points<S>& p, int64_t i, const RowGradients<S>& g,
                                  const TileBuffers<S>& buffers, S* columns) {
  const Tile<S> tile(m, i);
  const Weights mode = mode_of(m, p, i);
  if (mode == Weights::equal) return backward_tile<S, Weights::equal>(tile, p.z, g, nullptr, buffers, columns);
  PairWeights<S> w;
  weigh(w, m, p, i, mode);
  if (mode == Weights::own) backward_tile<S, Weights::own>(tile, p.z, g, &w, buffers, columns);
  else backward_tile<S, Weights::given>(tile, p.z, g, &w, buffers, columns);
}

constexpr int64_t kBlocksPerSum = 64;  // of points, whose gradients of components are summed in S

// One task: a group of rows against a block of components. coefficients(row, joint, relative, marginals) gives the
// gradients of the loss that RowGradients has.
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
  std::vector<S> z(static_cast<size_t>(width)), marginals(static_cast<size_t>(3 * width));
  std::vector<double> d_z(static_cast<size_t>(width));
  RowGradients<S> g;
  g.marginals = marginals.data();
  g.marginal_sums = g.marginals + width;
  g.marginal_quotients = g.marginal_sums + width;
  const int64_t tile_size = 2 * m.dims * kLanes<S>;
  LongSums<S> columns((end_tile - first_tile) * tile_size);
  for (int64_t first = begin; first < end; first += kRows) {
    const Points<S> p = read_points<T, S>(m, first, end, z.data());
    read_gradients(g, m, p, saved_data, coefficients);
    std::fill(d_z.begin(), d_z.end(), 0.0);
    for (int64_t span = first_tile; span < end_tile; span += kTilesPerSum) {
      std::fill_n(buffers.d_z, width, V{});
      for (int64_t i = span; i < std::min(span + kTilesPerSum, end_tile); ++i)
        add_gradients_of_tile(m, p, i, g, buffers, columns.sums + (i - first_tile) * tile_size);
      for (int64_t k = 0; k < width; ++k) d_z[size_t(k)] += double(fold_lanes<S>(buffers.d_z[k]));
    }
    for (int64_t r = 0; r < p.count; ++r)
      for (int64_t d = 0; d < m.dims; ++d) partial_row<S>(m, out, block, first + r)[d] = S(d_z[size_t(d * kRows + r)]);
    if ((first - begin) / kRows % kBlocksPerSum == kBlocksPerSum - 1) columns.carry();
  }
  columns.carry();
  std::copy_n(columns.totals, columns.count, partial_column<S>(m, out, group, first_tile));
}

// The gradients by one marginal that the forward pass summed apart. `columns` is as in backward_tile, for all tiles.
template <class S>
static double add_far_gradients(const Mixture& m, int64_t row, int64_t d, S z, S gradient, double largest, S* columns) {
  using V = Vec<S>;
  const RunningSum<S> total = far_sum<S>(m, row, d, z, largest);
  if (total.sum == 0) return 0;
  const S scale = S(double(gradient) / total.sum);
  double d_z = 0;
  columns += 2 * d * kLanes<S>;
  for (int64_t i = 0; i < tiles_of<S>(m); ++i, columns += 2 * m.dims * kLanes<S>) {
    const Tile<S> tile(m, i);
    const V precision = load<V>(tile.precision(d));
    const V v = scaled_deviation<V>(z, load<V>(tile.mu(d)), precision);
    const V c = fast_exp2<V>(far_exponent<S>(m, row, d, z, i, largest) - splat<V>(total.max)) * scale;
    const V cv = c == S(0) ? V{} : c * v;  // v may be infinite
    d_z += double(fold_lanes<S>(cv * precision));
    store(columns, load<V>(columns) + cv);
    const V by_logvar = cv * v * S(kLn2) - c * S(0.5);
    store(columns + kLanes<S>, load<V>(columns + kLanes<S>) + (c == S(0) ? V{} : by_logvar));
  }
  return d_z;
}

// The rows of one group that have such marginals: one task for each group, after all of the tasks above.
template <class T, class Coefficients>
static void far_backward(const Mixture& m, const PartialGradients& out, const void* saved_data, int64_t group,
                         Coefficients coefficients) {
  using S = Compute<T>;
  const auto sums_of = [&](int64_t row) { return static_cast<const S*>(saved_data) + row * m.saved_columns() + 2; };
  std::vector<int64_t> rows;
  for (int64_t row = out.first_row(m, group); row < out.first_row(m, group + 1); ++row)
    if (std::find(sums_of(row), sums_of(row) + m.dims, S(0)) != sums_of(row) + m.dims) rows.push_back(row);
  if (rows.empty()) return;
  LongSums<S> columns(2 * m.dims * tiles_of<S>(m) * kLanes<S>);
  std::vector<S> of_row(size_t(m.dims));
  for (size_t i = 0; i < rows.size(); ++i) {
    const int64_t row = rows[i];
    S joint, relative;
    coefficients(row, joint, relative, of_row.data());
    const double largest = largest_weight<S>(m, row);
    for (int64_t d = 0; d < m.dims; ++d) {
      const S gradient = of_row[size_t(d)];
      if (sums_of(row)[d] == S(0) && gradient != S(0))
        partial_row<S>(m, out, 0, row)[d] +=
            S(add_far_gradients(m, row, d, S(m.z.at<T>(row, d)), gradient, largest, columns.sums));
    }
    if (i % (kBlocksPerSum * kRows) == kBlocksPerSum * kRows - 1) columns.carry();
  }
  columns.carry();
  S* partial = partial_column<S>(m, out, group, 0);
  for (int64_t i = 0; i < columns.count; ++i) partial[i] = S(double(partial[i]) + columns.totals[i]);
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

template <class T>
static void finish_columns(const Mixture& m, const PartialGradients& in, const Matrix& d_mu, const Matrix& d_logvar,
                           int64_t chunk) {
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
      d_mu.at<T>(j, d) = T(S(by_mean * 2 * kLn2 * double(Tile<S>(m, tile).precision(d)[lane])));
      d_logvar.at<T>(j, d) = T(S(by_logvar));
    }
  }
}
