// What both passes over the marginals of one dimension begin with: points and components in order, cut into segments,
// and for each segment whether it is met on a grid or pair by pair. marginals_grid.h follows it in marginals.cpp,
// inside each instruction set and so without include guards.

using Real = Vec<double>;
constexpr int64_t kWidth = kLanes<double>;

// Memory on the boundaries of vectors.
template <class T>
struct OnBoundaries {
  using value_type = T;
  static constexpr std::align_val_t kBoundary{kVectorBytes};
  T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), kBoundary)); }
  void deallocate(T* p, size_t) { ::operator delete(p, kBoundary); }
  friend bool operator==(OnBoundaries, OnBoundaries) { return true; }
  friend bool operator!=(OnBoundaries, OnBoundaries) { return false; }
};

using Doubles = std::vector<double, OnBoundaries<double> >;

static Doubles zeros(int64_t count) { return Doubles(size_t(count + kWidth)); }  // and room for a whole vector

template <class Visit>
FASTIB_INLINE void for_each_lane(Visit visit) {
  for (int lane = 0; lane < kWidth; ++lane) visit(lane);
}

// {0, 1, 2, ...}
FASTIB_INLINE Real lane_numbers() {
  Real v;
  for_each_lane([&](int lane) { v[lane] = lane; });
  return v;
}

// x rounded down, for |x| < 2^51.
FASTIB_INLINE Real floor_of(Real x) {
  constexpr double shift = 0x1.8p52;
  return (x - 0.5 + shift) - shift;
}

// Components of one octave, or those of one octave that are near each other. Either all of them meet all points that
// may be near, pair by pair, or they meet on a grid.
struct Segment {
  int64_t begin, end;                // of components
  int64_t first_target, end_target;  // of points
  double h, first;                   // the distance of the nodes, a power of two; the first one is `first` times h
  int64_t nodes;
  bool pairs;
};

constexpr double kFewestNodes = 6;  // in a sigma; twice that are the most
constexpr double kSeen = 10;        // sigmas: what lies further away is less than e^-50 of what lies nearest
constexpr int64_t kMargin = 136;    // nodes around the components of a grid: kSeen sigmas and a vector
constexpr double kLargestNode = 0x1p50;
constexpr double kMostNodes = 0x1p20;  // of one grid: 8 MB

struct Plan {
  int64_t rows, components, row_offset;
  double own_weight, mass = 0;               // of all components; a component's is 1 / sigma
  Doubles z;                                 // of the points, in this order
  std::vector<int32_t> row;                  // of each
  Doubles mu, s, log2_s;                     // of the components, by octave; s is 1 / sigma
  std::vector<int32_t> component, position;  // what stands where, and where what stands
  std::vector<char> exact;                   // whether the component is met pair by pair
  std::vector<Segment> segments;
  bool sorted = false;  // the points, by z

  explicit Plan(const Latents& x)
      : rows(x.rows),
        components(x.components),
        row_offset(x.row_offset),
        own_weight(x.own_weight),
        z(zeros(rows)),
        row(size_t(rows)),
        mu(zeros(components)),
        s(mu),
        log2_s(mu),
        component(size_t(components)),
        position(component),
        exact(component.size()) {}
  bool has_own() const { return own_weight != 1; }
  int64_t own(int64_t target) const { return position[size_t(row[size_t(target)] + row_offset)]; }
};

// The density of a component, at y from its mean, less the factor 1 / sqrt(2 pi).
FASTIB_INLINE Real density(Real y, Real s) {
  const Real v = y * s * kRootHalfLog2E;
  return s * fast_exp2<Real>(-v * v);
}

// Sorts numbers of points or components by their place x, and those at one place by number.
static void sort_by_place(const float* x, int32_t* begin, int32_t* end) {
  std::vector<uint64_t> keys;
  for (const int32_t* i = begin; i != end; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + *i, sizeof(bits));
    bits ^= bits >> 31 != 0 ? 0xffffffffu : 0x80000000u;  // in the order of the floats
    keys.push_back(uint64_t(bits) << 32 | uint32_t(*i));
  }
  std::sort(keys.begin(), keys.end());
  for (const uint64_t key : keys) *begin++ = int32_t(uint32_t(key));
}

static void sort_targets(Plan& p, const float* z) {
  sort_by_place(z, p.row.data(), p.row.data() + p.rows);
  for (int64_t i = 0; i < p.rows; ++i) p.z[size_t(i)] = double(z[p.row[size_t(i)]]);
  p.sorted = true;
}

struct Range {
  int64_t begin, end;
};

// The points of [least, greatest], which may be one number where a component is narrower than that number's last digit.
static Range targets_in(const Plan& p, double least, double greatest) {
  const auto begin = p.z.begin(), end = begin + p.rows;
  return {std::lower_bound(begin, end, least) - begin, std::upper_bound(begin, end, greatest) - begin};
}

// The points that a component may be near to.
static Range window(const Plan& p, const Segment& segment, int64_t j) {
  if (!p.sorted) return {segment.first_target, segment.end_target};
  const double reach = kSeen / p.s[size_t(j)];
  return targets_in(p, p.mu[size_t(j)] - reach, p.mu[size_t(j)] + reach);
}

// Nanoseconds, measured once on a Zen 4: only which way is the shorter counts.
static bool pairs_are_cheaper(const Plan& p, const Segment& segment) {
  const int64_t count = segment.end - segment.begin, step = std::max<int64_t>(count / 24, 1);
  const double targets = double(segment.end_target - segment.first_target);
  double pairs = 0;
  for (int64_t j = segment.begin; j < segment.end; j += step) {
    const Range range = window(p, segment, j);
    pairs += double(range.end - range.begin) * double(step);
  }
  return 20 * double(count) + 1.4 * pairs < 45 * double(count) + 14 * targets + 0.5 * double(segment.nodes);
}

static void add_segment(Plan& p, int64_t begin, int64_t end, double h) {
  const auto least_greatest = std::minmax_element(p.mu.begin() + begin, p.mu.begin() + end);
  Segment segment{begin, end, 0, p.rows, h, std::floor(*least_greatest.first / h) - kMargin, 0, false};
  const double last = std::floor(*least_greatest.second / h) + kMargin;
  segment.nodes = int64_t(std::min(last - segment.first, kLargestNode)) + 1;
  if (p.sorted) {
    const Range targets = targets_in(p, segment.first * h, last * h);
    segment.first_target = targets.begin;
    segment.end_target = targets.end;
  }
  for (int64_t j = begin; j < end; ++j) p.mass += p.s[size_t(j)];
  const bool too_far = std::max(std::abs(segment.first), std::abs(last)) > kLargestNode;
  segment.pairs = too_far || pairs_are_cheaper(p, segment);
  if (segment.pairs) std::fill(p.exact.begin() + begin, p.exact.begin() + end, char(1));
  if (segment.end_target > segment.first_target) p.segments.push_back(segment);
}

// An octave of components, as they lie in the plan.
struct Octave {
  int64_t begin, end;
  double h;
  bool sparse;  // components far apart: a grid over all would be mostly empty
};

static std::vector<Octave> find_octaves(Plan& p, const std::vector<int32_t>& keys, const float* mu) {
  const auto range = std::minmax_element(keys.begin(), keys.end());
  const int32_t least = *range.first;
  std::vector<int64_t> starts(size_t(*range.second - least) + 2);
  for (const int32_t key : keys) ++starts[size_t(key - least) + 1];
  for (size_t k = 1; k < starts.size(); ++k) starts[k] += starts[k - 1];
  std::vector<int64_t> next(starts);
  for (int64_t j = 0; j < p.components; ++j) p.component[size_t(next[size_t(keys[size_t(j)] - least)]++)] = int32_t(j);
  std::vector<Octave> octaves;
  for (size_t k = 0; k + 1 < starts.size(); ++k) {
    const int64_t begin = starts[k], end = starts[k + 1];
    if (begin == end) continue;
    float smallest = mu[p.component[size_t(begin)]], largest = smallest;
    for (int64_t j = begin; j < end; ++j) {
      smallest = std::min(smallest, mu[p.component[size_t(j)]]);
      largest = std::max(largest, mu[p.component[size_t(j)]]);
    }
    const double h = std::ldexp(1.0, least + int32_t(k)), nodes = (double(largest) - double(smallest)) / h;
    octaves.push_back({begin, end, h, nodes > std::min(128 * double(end - begin) + 8192, kMostNodes)});
  }
  return octaves;
}

static void add_octave(Plan& p, const Octave& octave) {
  int64_t begin = octave.begin;
  for (int64_t j = octave.begin + 1; octave.sparse && j < octave.end; ++j) {
    const double gap = p.mu[size_t(j)] - p.mu[size_t(j - 1)], length = p.mu[size_t(j)] - p.mu[size_t(begin)];
    if (gap <= 2 * kMargin * octave.h && length <= kMostNodes * octave.h) continue;
    add_segment(p, begin, j, octave.h);
    begin = j;
  }
  add_segment(p, begin, octave.end, octave.h);
}

constexpr int64_t kFewTargets = 32;  // are summed apart, all of them, sooner than a grid is made

// Puts the components in the order of their octaves, and those of sparse ones in that of their means.
static std::vector<Octave> order_components(Plan& p, const float* mu, const float* logvar) {
  if (p.rows < kFewTargets) {
    for (int64_t j = 0; j < p.components; ++j) p.component[size_t(j)] = int32_t(j);
    p.mass = INFINITY;  // so that none is certified
    return {};
  }
  std::vector<int32_t> keys(size_t(p.components));
  const double log2_nodes = std::log2(kFewestNodes);
  for (int64_t j = 0; j < p.components; ++j)
    keys[size_t(j)] = int32_t(std::floor(0.5 * kLog2E * double(logvar[j]) - log2_nodes));
  const std::vector<Octave> octaves = find_octaves(p, keys, mu);
  for (const Octave& octave : octaves) {
    if (!octave.sparse) continue;
    sort_by_place(mu, p.component.data() + octave.begin, p.component.data() + octave.end);
  }
  return octaves;
}

static Plan make_plan(const Latents& x, int64_t d) {
  Plan p(x);
  const float *z = x.z_of(d), *mu = x.mu_of(d), *logvar = x.logvar_of(d);
  for (int64_t i = 0; i < p.rows; ++i) p.z[size_t(i)] = double(z[i]), p.row[size_t(i)] = int32_t(i);
  const std::vector<Octave> octaves = order_components(p, mu, logvar);
  if (std::any_of(octaves.begin(), octaves.end(), [](const Octave& octave) { return octave.sparse; }))
    sort_targets(p, z);
  for (int64_t j = 0; j < p.components; ++j) {
    const int32_t source = p.component[size_t(j)];
    p.position[size_t(source)] = int32_t(j);
    p.mu[size_t(j)] = double(mu[source]);
    p.s[size_t(j)] = -0.5 * double(logvar[source]);
    p.log2_s[size_t(j)] = kLog2E * p.s[size_t(j)];
  }
  for (int64_t j = 0; j < p.components; j += kWidth)
    store(&p.s[size_t(j)], exponential<Real>(load<Real>(&p.s[size_t(j)])).value);
  for (int64_t j = p.components; j < int64_t(p.log2_s.size()); ++j) p.log2_s[size_t(j)] = -INFINITY;
  for (const Octave& octave : octaves) add_octave(p, octave);
  return p;
}
