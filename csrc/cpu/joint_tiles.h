// What both passes of the joint density are made of: tiles of components, blocks of points, and which pairs of them may
// be left out. joint.cpp includes it inside each instruction set, and so without include guards.

using Real = Vec<float>;
constexpr int64_t kWidth = kLanes<float>;
constexpr int kRows = kVectorBytes == 64 ? 8 : 4;

constexpr float kLowest = std::numeric_limits<float>::lowest();

constexpr int64_t kTilesPerSum = 128;  // so many terms are summed in float
constexpr int64_t kTilesAtOnce = 8;    // whose gradients are summed in registers

struct Tile {
  float* data;
  int64_t dims;
  Tile(const JointPlan& p, int64_t i) : data(p.tiles.as<float>() + i * (2 * p.x.dims + 1) * kWidth), dims(p.x.dims) {}
  float* mu(int64_t d) const { return data + 2 * d * kWidth; }
  float* precision(int64_t d) const { return mu(d) + kWidth; }
  float* height() const { return data + 2 * dims * kWidth; }
};

FASTIB_INLINE int64_t tiles_of(const JointPlan& p) { return (p.x.components + kWidth - 1) / kWidth; }

struct Box {
  float *least, *greatest, *precision;  // of all tiles
  Box(const JointPlan& p, int64_t k)
      : least(p.boxes.as<float>() + 3 * k * p.padded_tiles),
        greatest(least + p.padded_tiles),
        precision(greatest + p.padded_tiles) {}
};

FASTIB_INLINE const float* points_of(const JointPlan& p, int64_t block) {
  return p.z.as<float>() + block * p.x.dims * kRows;
}

static void pack_tile(const JointPlan& p, int64_t i) {
  const Tile tile(p, i);
  double height[kWidth] = {};
  for (int64_t k = 0; k < p.x.dims; ++k) {
    const int64_t d = p.order.dims[size_t(k)];
    double half[kWidth];
    for (int64_t lane = 0; lane < kWidth; ++lane) {
      const int64_t at = std::min(i * kWidth + lane, p.x.components - 1);  // the last is repeated, without height
      const int64_t j = p.order.components[size_t(at)];
      tile.mu(k)[lane] = p.x.mu_of(d)[j];
      half[lane] = -0.5 * double(p.x.logvar_of(d)[j]);
      height[lane] += kLog2E * half[lane];
    }
    for (int64_t lane = 0; lane < kWidth; lane += kLanes<double>)
      store(half + lane, exponential<Vec<double> >(load<Vec<double> >(half + lane)).value * kRootHalfLog2E);
    for (int64_t lane = 0; lane < kWidth; ++lane) tile.precision(k)[lane] = float(half[lane]);
  }
  for (int64_t lane = 0; lane < kWidth; ++lane)
    tile.height()[lane] = i * kWidth + lane < p.x.components ? float(height[lane]) : -INFINITY;
  for (int64_t k = 0; k < p.order.tested; ++k) {
    const Box box(p, k);
    box.least[i] = *std::min_element(tile.mu(k), tile.mu(k) + kWidth);
    box.greatest[i] = *std::max_element(tile.mu(k), tile.mu(k) + kWidth);
    box.precision[i] = *std::min_element(tile.precision(k), tile.precision(k) + kWidth);
  }
  p.highest.as<float>()[i] = *std::max_element(tile.height(), tile.height() + kWidth);
}

static void pack_tiles(const JointPlan& p, int64_t task) {
  const int64_t each = kComponentsPerChunk / kWidth;
  for (int64_t i = task * each; i < std::min((task + 1) * each, tiles_of(p)); ++i) pack_tile(p, i);
}

static void pack_rows(const JointPlan& p, int64_t task) {
  const int64_t begin = task * kRowsPerChunk, end = std::min(begin + kRowsPerChunk, p.x.rows);
  for (int64_t first = begin; first < end; first += kRows) {
    float* z = const_cast<float*>(points_of(p, first / kRows));
    for (int64_t k = 0; k < p.x.dims; ++k)
      for (int r = 0; r < kRows; ++r)
        z[k * kRows + r] = p.x.z_of(p.order.dims[size_t(k)])[p.order.rows[size_t(std::min(first + r, p.x.rows - 1))]];
  }
}

// A block of points.
struct Points {
  int64_t first, count;
  const float* z;               // [dims, kRows]
  float thresholds[kRows];      // pairs of each with a smaller exponent may be left out
  float threshold = -INFINITY;  // the least of them
  int64_t own[kRows];           // the components that are the points' own, or -1

  Points(const JointPlan& p, int64_t block)
      : first(block * kRows), count(std::min<int64_t>(kRows, p.x.rows - first)), z(points_of(p, block)) {
    for (int64_t r = 0; r < kRows; ++r)
      own[r] = p.order.own.empty() || r >= count ? -1 : p.order.own[size_t(first + r)];
  }
  bool own_in(int64_t tile) const {
    bool in = false;
    for (const int64_t j : own) in |= j >= 0 && j / kWidth == tile;
    return in;
  }
};

FASTIB_INLINE void add_squares(const Tile& tile, const float* z, int64_t begin, int64_t end, Real (&squares)[kRows]) {
  for (int64_t d = begin; d < end; ++d) {
    const Real mu = load<Real>(tile.mu(d)), precision = load<Real>(tile.precision(d));
    for (int r = 0; r < kRows; ++r) {
      const Real v = (mu - z[d * kRows + r]) * precision;
      squares[r] = fma<Real>(v, v, squares[r]);
    }
  }
}

// The sums of v^2, or false where the tile can be left out.
FASTIB_INLINE bool find_squares(const JointPlan& p, const Tile& tile, const Points& points, bool test,
                                Real (&squares)[kRows]) {
  for (Real& square : squares) square = Real{};
  int64_t d = 0;
  if (test) {
    const Real height = load<Real>(tile.height());
    while (d < p.order.tested) {
      const int64_t next = std::min(d + 4, p.order.tested);
      add_squares(tile, points.z, d, next, squares);
      d = next;
      Real least = splat<Real>(INFINITY);
      for (int r = 0; r < kRows; ++r) {
        const Real sum = squares[r] + points.thresholds[r];
        least = sum < least ? sum : least;
      }
      if (!any_less(least, height)) return false;
    }
  }
  add_squares(tile, points.z, d, p.x.dims, squares);
  return true;
}

// The largest exponent that a pair of each tile may have, for tiles [begin, begin + kWidth).
static Real bounds_of_tiles(const JointPlan& p, const Points& points, int64_t begin) {
  Real bound = load<Real>(p.highest.as<float>() + begin);
  for (int64_t k = 0; k < p.order.tested; ++k) {
    const float* z = points.z + k * kRows;
    const float least = *std::min_element(z, z + kRows), greatest = *std::max_element(z, z + kRows);
    const Box box(p, k);
    const Real above = load<Real>(box.least + begin) - greatest, below = least - load<Real>(box.greatest + begin);
    Real gap = above > below ? above : below;
    gap = gap > 0 ? gap : Real{};
    const Real v = gap * load<Real>(box.precision + begin);
    bound = fma<Real>(-v, v, bound);
  }
  return bound;
}

// The tiles of [begin, end) that can't be left out.
static int64_t near_tiles(const JointPlan& p, const Points& points, int64_t begin, int64_t end, int64_t* list) {
  int64_t count = 0;
  for (int64_t first = begin; first < end; first += kWidth) {
    const Real bound = bounds_of_tiles(p, points, first);
    for (int64_t i = first; i < std::min(first + kWidth, end); ++i)
      if (bound[i - first] > points.threshold || points.own_in(i)) list[count++] = i;
  }
  return count;
}

// What no component's exponent is spared in the dimensions that are not tested.
static double loss_untested(const JointPlan& p, const Points& points, int64_t r) {
  double squares = 0;
  for (int64_t k = p.order.tested; k < p.x.dims; ++k) {
    const Extent& extent = p.order.extents[size_t(k)];
    const double z = double(points.z[k * kRows + r]);
    const double gap = std::max({z - double(extent.greatest), double(extent.least) - z, 0.0}) * extent.precision;
    squares += gap * gap;
  }
  return squares;
}

// What the exponents in the tested dimensions are held against: a density is dropped only where so much less than a
// part of it that is known, 2^exponent.
static float threshold(const JointPlan& p, const Points& points, int64_t r, double exponent) {
  const double loss = loss_untested(p, points, r);
  return float(exponent + p.dropped + loss - 0x1p-18 * (std::abs(exponent) + loss));
}
