// What both passes over a mixture are made of, for S float or double: tiles of components, blocks of points, the weight
// and the exponents of their pairs. mixture_forward.h and mixture_backward.h follow it in an operator's file, inside
// each instruction set and so without include guards. The formulas are at the top of common/mixture.h.
//
// A tile is one vector of components; a block is kRows points, which share the loads of a tile. Everything is summed
// in an order that depends on the shapes alone.

constexpr int kRows = kVectorBytes == 64 ? 8 : 4;

// x, with any NaN the usual one: fast_exp2 asks for it.
template <class S>
FASTIB_INLINE S canonical(S x) {
  return x == x ? x : S(NAN);
}

// Tiles.

template <class S>
struct Tile {
  const S* data;
  int64_t dims;
  const double* shift;  // [dims]
  Tile(const Mixture& m, int64_t tile)
      : data(m.packed.as<S>() + tile * (3 * m.dims + 1) * kLanes<S>), dims(m.dims), shift(m.shift.data()) {}
  const S* mu(int64_t d) const { return data + 3 * d * kLanes<S>; }
  const S* precision(int64_t d) const { return mu(d) + kLanes<S>; }  // sqrt(log2(e)/2) exp(-l/2)
  const S* c(int64_t d) const { return mu(d) + 2 * kLanes<S>; }
  const S* joint() const { return data + 3 * dims * kLanes<S>; }
};

template <class S>
FASTIB_INLINE int64_t tiles_of(const Mixture& m) {
  return (m.components + kLanes<S> - 1) / kLanes<S>;
}

template <class T>
static void find_largest(const Mixture& m, int64_t chunk) {
  using S = Compute<T>;
  const int64_t begin = chunk * kComponentsPerChunk, end = std::min(begin + kComponentsPerChunk, m.components);
  double* largest = m.largest_of_chunks.as<double>() + chunk * m.dims;
  std::fill_n(largest, m.dims, -double(INFINITY));
  for (int64_t j = begin; j < end; ++j) {
    for (int64_t d = 0; d < m.dims; ++d) {
      const double c = -0.5 * kLog2E * double(S(m.logvar.at<T>(j, d)));
      if (c > largest[d] && c < double(INFINITY)) largest[d] = c;
    }
  }
}

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
        const double c = half[lane] < double(INFINITY) ? kLog2E * half[lane] : double(NAN);
        joint[lane] += c;
        out[lane] = canonical(S(m.mu.at<T>(j, d)));
        out[2 * lanes + lane] = first + lane < m.components ? S(c) : -S(INFINITY);
      }
      for (int lane = 0; lane < lanes; lane += kLanes<double>)
        store(half + lane, exponential<V>(load<V>(half + lane)).value * kRootHalfLog2E);
      for (int lane = 0; lane < lanes; ++lane)
        out[lanes + lane] = half[lane] > kLargestPrecision<S> ? S(kLargestPrecision<S>) : canonical(S(half[lane]));
    }
    for (int lane = 0; lane < lanes; ++lane) out[lane] = first + lane < m.components ? S(joint[lane]) : -S(INFINITY);
  }
}

// Points.

// The largest given log-weight of a row, in powers of two: what its weights are relative to.
template <class S>
static double largest_weight(const Mixture& m, int64_t row) {
  if (!m.log_weights) return 0;
  double largest = -double(INFINITY);
  for (int64_t j = 0; j < m.components; ++j) largest = std::max(largest, double(m.log_weights.at<S>(row, j)));
  return largest > -double(INFINITY) && largest < double(INFINITY) ? largest * kLog2E : 0;
}

// kRows points, the last repeated where there are fewer.
template <class S>
struct Points {
  int64_t first, count;
  S* z;                   // [dims, kRows]
  double largest[kRows];  // of the weights of each

  int64_t row(int64_t r) const { return first + std::min(r, count - 1); }
};

template <class T, class S>
static Points<S> read_points(const Mixture& m, int64_t first, int64_t end, S* z) {
  Points<S> p{first, std::min<int64_t>(kRows, end - first), z, {}};
  for (int64_t d = 0; d < m.dims; ++d)
    for (int r = 0; r < kRows; ++r) z[d * kRows + r] = canonical(S(m.z.at<T>(p.row(r), d)));
  for (int r = 0; r < kRows; ++r) p.largest[r] = largest_weight<S>(m, p.row(r));
  return p;
}

// Weights.

// What the pairs of a tile weigh: all 1; all 1 but a row's own component; each what its logarithm says.
enum class Weights { equal, own, given };

template <class S>
struct PairWeights {
  Vec<S> weight[kRows], log2_weight[kRows];  // relative to Mixture::base; the logarithm only where given
  Vec<S> is_own[kRows];                      // 1 for a row's own component, else 0
};

// log2 of the weights of a row in one tile, relative to Mixture::base or to `largest`.
template <class S>
FASTIB_INLINE Vec<S> log2_weights(const Mixture& m, int64_t row, int64_t tile, double largest) {
  using V = Vec<S>;
  constexpr int lanes = kLanes<S>;
  const int64_t first = tile * lanes, own = row + m.row_offset - first;
  V log2 = splat<V>(m.log_weights ? -S(INFINITY) : S(m.log2_other));
  if (m.log_weights) {
    const int64_t count = std::min<int64_t>(lanes, m.components - first);
    for (int64_t lane = 0; lane < count; ++lane)
      log2[lane] = canonical(S(double(m.log_weights.at<S>(row, first + lane)) * kLog2E - largest));
  } else if (own >= 0 && own < lanes) {
    log2[own] = S(m.log2_own);
  }
  return log2;
}

template <class S>
static void weigh(PairWeights<S>& w, const Mixture& m, const Points<S>& p, int64_t tile, Weights mode) {
  using V = Vec<S>;
  for (int r = 0; r < kRows; ++r) {
    const int64_t row = p.row(r), lane = row + m.row_offset - tile * kLanes<S>;
    w.is_own[r] = V{};
    if (lane >= 0 && lane < kLanes<S>) w.is_own[r][lane] = 1;
    if (mode == Weights::given) {
      w.log2_weight[r] = log2_weights<S>(m, row, tile, p.largest[r]);
      w.weight[r] = fast_exp2<V>(w.log2_weight[r]);
    } else {
      w.weight[r] = w.is_own[r] == S(0) ? splat<V>(S(1)) : splat<V>(S(m.own));
    }
  }
}

template <class S>
FASTIB_INLINE Weights mode_of(const Mixture& m, const Points<S>& p, int64_t tile) {
  if (m.weights_given()) return Weights::given;
  const int64_t first_own = p.first + m.row_offset, last_own = first_own + p.count - 1;
  const bool has_own = tile >= first_own / kLanes<S> && tile <= last_own / kLanes<S>;
  return has_own ? Weights::own : Weights::equal;
}

// Exponents.

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
  if constexpr (mode == Weights::own) {
    const V none = t == t ? splat<V>(std::numeric_limits<S>::lowest()) : t;
    return w->weight[r] > S(0) ? t : none;
  }
  return t;
}

// The exponents c - shift - v^2 of dimensions [begin, end), and the sums of v^2 so far. They are a loop of their own
// because a processor looks only so far ahead: with the exponentials in the same loop it finds too little to do at
// once.
template <class S>
FASTIB_INLINE void find_exponents(const Tile<S>& tile, const S* z, int64_t begin, int64_t end, Vec<S>* squares,
                                  Vec<S>* exponents, Vec<S>* deviations = nullptr) {
  using V = Vec<S>;
  for (int64_t d = begin; d < end; ++d) {
    const V mu = load<V>(tile.mu(d)), precision = load<V>(tile.precision(d));
    const V c = load<V>(tile.c(d)) - S(tile.shift[d]);
    for (int r = 0; r < kRows; ++r) {
      const V v = scaled_deviation<V>(z[d * kRows + r], mu, precision);
      squares[r] = fma<V>(v, v, squares[r]);
      exponents[(d - begin) * kRows + r] = fma<V>(-v, v, c);
      if (deviations != nullptr) deviations[(d - begin) * kRows + r] = v;
    }
  }
}
