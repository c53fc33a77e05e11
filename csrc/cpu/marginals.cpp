// The algorithm of marginals.h. One task is one dimension.
#ifndef FASTIB_ISA
#include "marginals.h"

#define FASTIB_KERNELS "marginals.cpp"
#include "each_isa.h"

namespace fastib {

void marginals_forward(const Marginals& m) {
  run_tasks([&](int64_t d) { FASTIB_KERNEL(forward)(m, d); }, m.latents->dims);
}

void marginals_backward(const MarginalGradients& g) {
  run_tasks([&](int64_t d) { FASTIB_KERNEL(backward)(g, d); }, g.latents->dims);
}

}  // namespace fastib

#else

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

// The polynomial.

constexpr int kNodes = 12, kPowers = 8, kPaddedNodes = 16;

// Between the two middle nodes of 12, at a distance of s from their centre, the polynomial is the sum over nodes t and
// powers p of value[t] by_node[t][p] s^p. It is the one through the nodes, of degree 11, brought to degree 7 by the
// Chebyshev polynomials of the higher degrees, which takes less from it than it is wrong by.
struct Interpolation {
  double by_node[kNodes][kPowers] = {};
  double by_power[kPowers][kPaddedNodes] = {};

  constexpr Interpolation() {
    double chebyshev[kNodes][kNodes] = {};  // T_n(2 s), by powers of s
    chebyshev[0][0] = 1;
    chebyshev[1][1] = 2;
    for (int n = 2; n < kNodes; ++n)
      for (int p = 0; p <= n; ++p) chebyshev[n][p] = (p > 0 ? 4 * chebyshev[n - 1][p - 1] : 0) - chebyshev[n - 2][p];
    for (int t = 0; t < kNodes; ++t) {
      double c[kNodes] = {1};
      for (int k = 0, degree = 0; k < kNodes; ++k) {
        if (k == t) continue;
        const double node = k - 0.5 * (kNodes - 1);
        ++degree;
        for (int p = degree; p >= 0; --p) c[p] = ((p > 0 ? c[p - 1] : 0) - node * c[p]) / (t - k);
      }
      for (int n = kNodes - 1; n >= kPowers; --n) {
        const double excess = c[n] / chebyshev[n][n];
        for (int p = 0; p <= n; ++p) c[p] -= excess * chebyshev[n][p];
      }
      for (int p = 0; p < kPowers; ++p) by_node[t][p] = by_power[p][t] = c[p];
    }
  }
};
static constexpr Interpolation kInterpolation;

// Rows of a square matrix become its columns.
FASTIB_INLINE void transpose(Real (&rows)[kWidth]) {
  for (int64_t stride = 1; stride < kWidth; stride *= 2) {  // each stage is one perfect shuffle of all the rows
    Real shuffled[kWidth];
    for (int64_t i = 0; i < kWidth / 2; ++i)
      interleave(rows[i], rows[i + kWidth / 2], shuffled[2 * i], shuffled[2 * i + 1],
                 std::make_index_sequence<kWidth>());
    for (int64_t i = 0; i < kWidth; ++i) rows[i] = shuffled[i];
  }
}

// Components and points of one dimension.

// Components of one octave, or those of one octave that are near each other. Either all of them meet all points that
// may be near, pair by pair, or they meet on a grid.
struct Segment {
  int64_t begin, end;                // of components
  int64_t first_target, end_target;  // of points
  double h, first;                   // the distance of the nodes, a power of two; the first one is `first` times h
  int64_t nodes;
  double mass;  // the sum of 1 / sigma
  bool pairs;
};

constexpr double kFewestNodes = 6;  // in a sigma; twice that are the most
constexpr double kSeen = 10;        // sigmas: what lies further away is less than e^-50 of what lies nearest
constexpr int64_t kMargin = 136;    // nodes around the components of a grid: kSeen sigmas and a vector
constexpr double kLargestNode = 0x1p50;

struct Plan {
  int64_t rows, components, row_offset;
  double own_weight, mass = 0;
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
  Segment segment{begin, end, 0, p.rows, h, std::floor(*least_greatest.first / h) - kMargin, 0, 0, false};
  const double last = std::floor(*least_greatest.second / h) + kMargin;
  segment.nodes = int64_t(std::min(last - segment.first, kLargestNode)) + 1;
  if (p.sorted) {
    const Range targets = targets_in(p, segment.first * h, last * h);
    segment.first_target = targets.begin;
    segment.end_target = targets.end;
  }
  for (int64_t j = begin; j < end; ++j) segment.mass += p.s[size_t(j)];
  p.mass += segment.mass;
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
    octaves.push_back({begin, end, h, nodes > 128 * double(end - begin) + 8192});
  }
  return octaves;
}

static void add_octave(Plan& p, const Octave& octave) {
  int64_t begin = octave.begin;
  for (int64_t j = octave.begin + 1; octave.sparse && j < octave.end; ++j) {
    if (p.mu[size_t(j)] - p.mu[size_t(j - 1)] <= 2 * kMargin * octave.h) continue;
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

// Grids.

FASTIB_INLINE Real power(Real x, int64_t n) {
  Real result = splat<Real>(1);
  for (; n > 0; n /= 2, x *= x)
    if (n % 2 == 1) result *= x;
  return result;
}

// The walks of a vector of components over the nodes within the cutoff of each: the numbers of the first node and of
// the last; how far the first is from the mean; and the densities at the first vector of nodes. Those at the next are
// these times a ratio, which itself is geometric.
struct Walks {
  double first[kWidth], last[kWidth], y[kWidth], next_ratio[kWidth];
  Real n[kWidth], ratio[kWidth];

  Walks(const Segment& grid, const double* means, const double* precisions) {
    const Real mu = load<Real>(means), s = load<Real>(precisions), reach = marginal_cutoff / s;
    const auto node = [&](Real x) { return floor_of(x * (1 / grid.h)) - grid.first; };
    const Real begin = floor_of(node(mu - reach) * (1.0 / kWidth)) * double(kWidth);  // on the boundary of a vector
    const Real from_mean = (begin + grid.first) * grid.h - mu;
    store(first, begin);
    store(last, node(mu + reach));
    store(y, from_mean);
    const Real p2h = s * s * (kRootHalfLog2E * kRootHalfLog2E * grid.h);
    Real to_next = fast_exp2<Real>(-p2h * (from_mean + from_mean + grid.h));
    const Real growth = fast_exp2<Real>(p2h * (-2 * grid.h));
    n[0] = density(from_mean, s);
    ratio[0] = power(to_next, kWidth) * power(growth, kWidth * (kWidth - 1) / 2);
    const Real ratio_growth = power(growth, kWidth);
    store(next_ratio, power(ratio_growth, kWidth));
    for (int64_t lane = 1; lane < kWidth; ++lane) {
      n[lane] = n[lane - 1] * to_next;
      to_next *= growth;
      ratio[lane] = ratio[lane - 1] * ratio_growth;
    }
    transpose(n);
    transpose(ratio);
  }
};

// For each component of a grid, calls visit(sums, k, n, y) for the vectors of nodes near it, k being the first node,
// and then done(j, sums): these begin as Sums{}.
template <class Sums, class Visit, class Done>
FASTIB_INLINE void visit_nodes(const Plan& p, const Segment& grid, Visit visit, Done done) {
  const double step = double(kWidth) * grid.h;
  for (int64_t begin = grid.begin; begin < grid.end; begin += kWidth) {
    const Walks walks(grid, &p.mu[size_t(begin)], &p.s[size_t(begin)]);
    for (int64_t i = 0; i < std::min(kWidth, grid.end - begin); ++i) {
      Real y = walks.y[i] + lane_numbers() * grid.h, n = walks.n[i], ratio = walks.ratio[i];
      const Real next_ratio = splat<Real>(walks.next_ratio[i]);
      const auto last = int64_t(walks.last[i]);
      Sums sums{};
      for (auto k = int64_t(walks.first[i]); k <= last; k += kWidth) {
        visit(sums, k, n, y);
        n *= ratio;
        ratio *= next_ratio;
        y += step;
      }
      done(begin + i, sums);
    }
  }
}

// Memory for the nodes of one grid after the other, and for their cells where these are worth it.
struct Grid {
  Doubles nodes, cells;
  Doubles& cleared_nodes(const Segment& grid) {
    nodes.assign(size_t(grid.nodes + kPaddedNodes), 0.0);
    return nodes;
  }
};

// Where a vector of points lies in a grid: the first of the 12 nodes of each, and how far it is from their centre.
// What lies beyond the grid is put to its beginning, where all nodes are 0.
struct Places {
  Real node, s;
  Places(const Segment& grid, const double* z) {
    Real x = load<Real>(z) * (1 / grid.h) - grid.first;
    const Real last = splat<Real>(double(grid.nodes));
    x = x < 0 ? Real{} : x;
    x = x > last ? last : x;
    const Real cell = floor_of(x);
    s = x - cell - 0.5;
    node = cell - 5;
    const auto inside = (node >= 0) & (node <= double(grid.nodes - kNodes));
    node = inside ? node : Real{};
  }
};

// The polynomial of a cell, by powers: the one between the middle two of the 12 nodes from `first` on.
struct Polynomial {
  static constexpr int64_t kParts = kPowers / kWidth;
  Real part[kParts];

  static Polynomial through(const double* first) {
    Polynomial c{};
    for (int64_t i = 0; i < kParts; ++i)
      for (int t = 0; t < kNodes; ++t)
        c.part[i] = fma<Real>(load<Real>(kInterpolation.by_node[t] + i * kWidth), first[t], c.part[i]);
    return c;
  }
  static Polynomial at(const double* powers) {
    Polynomial c;
    for (int64_t i = 0; i < kParts; ++i) c.part[i] = load<Real>(powers + i * kWidth);
    return c;
  }
  void write(double* powers) const {
    for (int64_t i = 0; i < kParts; ++i) store(powers + i * kWidth, part[i]);
  }
};

// Whether there are so many points to a cell that each cell's polynomial is formed but once.
FASTIB_INLINE bool is_crowded(const Segment& grid) { return 2 * grid.nodes < grid.end_target - grid.first_target; }

// Adds to sums and slopes of points, and the grid's mass to `near` of those that are on it.
static void read_grid(const Plan& p, const Segment& grid, const Doubles& nodes, Doubles& cells, Doubles& sums,
                      Doubles& slopes, Doubles& near) {
  const bool crowded = is_crowded(grid);
  if (crowded) {
    cells.resize(size_t(grid.nodes * kPowers));
    for (int64_t cell = 0; cell < grid.nodes; ++cell)
      Polynomial::through(&nodes[size_t(cell)]).write(&cells[size_t(cell * kPowers)]);
  }
  for (int64_t i = grid.first_target; i < grid.end_target; i += kWidth) {
    const Places at(grid, &p.z[size_t(i)]);
    Real rows[Polynomial::kParts][kWidth];
    for_each_lane([&](int lane) {
      const auto cell = size_t(at.node[lane]);
      const Polynomial c = crowded ? Polynomial::at(&cells[cell * kPowers]) : Polynomial::through(&nodes[cell]);
      for (int64_t part = 0; part < Polynomial::kParts; ++part) rows[part][lane] = c.part[part];
    });
    for (auto& part : rows) transpose(part);
    const auto coefficient = [&](int power) { return rows[power / kWidth][power % kWidth]; };
    Real value = coefficient(kPowers - 1), slope{};
    for (int power = kPowers - 2; power >= 0; --power) {
      slope = fma<Real>(slope, at.s, value);
      value = fma<Real>(value, at.s, coefficient(power));
    }
    const auto add = [&](Doubles& to, Real x) { store(&to[size_t(i)], load<Real>(&to[size_t(i)]) + x); };
    add(sums, value);
    add(slopes, slope * (1 / grid.h));
    add(near, at.node > 0 ? splat<Real>(grid.mass) : Real{});
  }
}

// The transpose of Polynomial::through.
FASTIB_INLINE void add_to_nodes(const double* powers, double* first) {
  for (int64_t i = 0; i < kPaddedNodes; i += kWidth) {
    Real sum{};
    for (int k = 0; k < kPowers; ++k) sum = fma<Real>(load<Real>(kInterpolation.by_power[k] + i), powers[k], sum);
    store(first + i, load<Real>(first + i) + sum);
  }
}

// The transpose: adds to the nodes what points weigh.
static void fill_grid(const Plan& p, const Segment& grid, const Doubles& weights, Doubles& cells, Doubles& nodes) {
  const bool crowded = is_crowded(grid);
  if (crowded) cells.assign(size_t(grid.nodes * kPowers), 0.0);
  for (int64_t i = grid.first_target; i < grid.end_target; i += kWidth) {
    const Places at(grid, &p.z[size_t(i)]);
    Real rows[Polynomial::kParts][kWidth];
    Real power = load<Real>(&weights[size_t(i)]);
    for (int k = 0; k < kPowers; ++k) {
      rows[k / kWidth][k % kWidth] = power;
      power *= at.s;
    }
    for (auto& part : rows) transpose(part);
    for_each_lane([&](int lane) {
      if (at.node[lane] == 0) return;
      const auto cell = size_t(at.node[lane]);
      double powers[kPowers];
      double* to = crowded ? &cells[cell * kPowers] : powers;
      for (int64_t part = 0; part < Polynomial::kParts; ++part)
        store(to + part * kWidth, crowded ? load<Real>(to + part * kWidth) + rows[part][lane] : rows[part][lane]);
      if (!crowded) add_to_nodes(powers, &nodes[cell]);
    });
  }
  for (int64_t cell = 0; crowded && cell < grid.nodes; ++cell)
    add_to_nodes(&cells[size_t(cell * kPowers)], &nodes[size_t(cell)]);
}

// The forward pass.

static void add_grid(const Plan& p, const Segment& grid, Grid& memory, Doubles& sums, Doubles& slopes, Doubles& near) {
  struct Nothing {};
  Doubles& nodes = memory.cleared_nodes(grid);
  visit_nodes<Nothing>(
      p, grid, [&](Nothing, int64_t k, Real n, Real) { store(&nodes[size_t(k)], load<Real>(&nodes[size_t(k)]) + n); },
      [](int64_t, Nothing) {});
  read_grid(p, grid, nodes, memory.cells, sums, slopes, near);
}

// Calls visit(i, n, y) for the vectors of points in a window, with their density under component j.
template <class Visit>
FASTIB_INLINE void visit_window(const Plan& p, const Segment& segment, int64_t j, Visit visit) {
  const Range range = window(p, segment, j);
  const double mu = p.mu[size_t(j)];
  const Real s = splat<Real>(p.s[size_t(j)]);
  for (int64_t i = range.begin; i < range.end; i += kWidth) {
    const Real y = load<Real>(&p.z[size_t(i)]) - mu;
    const auto inside = lane_numbers() < double(range.end - i);
    visit(i, inside ? density(y, s) : Real{}, y);
  }
}

static void add_pairs(const Plan& p, const Segment& segment, Doubles& sums, Doubles& slopes) {
  for (int64_t j = segment.begin; j < segment.end; ++j) {
    const double s2 = p.s[size_t(j)] * p.s[size_t(j)];
    visit_window(p, segment, j, [&](int64_t i, Real n, Real y) {
      store(&sums[size_t(i)], load<Real>(&sums[size_t(i)]) + n);
      store(&slopes[size_t(i)], load<Real>(&slopes[size_t(i)]) - n * y * s2);
    });
  }
}

// The densities of a vector of points under their own components, which are where `at` says.
struct Own {
  Real y, s, n;
  Own(const Plan& p, int64_t i, int64_t count, int64_t (&at)[kWidth]) {
    Real mu{};
    s = Real{};
    for (int64_t lane = 0; lane < count; ++lane) {
      at[lane] = p.own(i + lane);
      mu[lane] = p.mu[size_t(at[lane])];
      s[lane] = p.s[size_t(at[lane])];
    }
    y = load<Real>(&p.z[size_t(i)]) - mu;
    n = density(y, s);
  }
};

// Own components were summed with the weight of all others; of the largest of them a grid keeps 2.5e-10.
static void weigh_own(const Plan& p, Doubles& sums, Doubles& slopes) {
  for (int64_t i = 0; i < p.rows; i += kWidth) {
    const int64_t count = std::min(kWidth, p.rows - i);
    int64_t at[kWidth];
    const Own own(p, i, count, at);
    for (int64_t lane = 0; lane < count; ++lane) {
      const size_t k = size_t(i + lane);
      const double n = own.n[lane], s = own.s[lane], excess = (p.own_weight - 1) * n;
      const double lost = p.exact[size_t(at[lane])] ? 1e-14 * n : 2.5e-10 * s;
      sums[k] += excess;
      slopes[k] -= excess * own.y[lane] * s * s;
      if (lost * (1 - p.own_weight) > 5e-8 * sums[k]) sums[k] = 0;
    }
  }
}

// Points that are summed apart: all is relative to the largest density of a component at the point.

// What is 2^-80 of the largest term is left out; the largest itself is above this however large it is.
FASTIB_INLINE double negligible(double largest) { return largest - 80 - 0x1p-50 * std::abs(largest); }

FASTIB_INLINE Real exponent_of(const Plan& p, int64_t j, Real y) {
  const Real v = y * load<Real>(&p.s[size_t(j)]) * kRootHalfLog2E;
  return load<Real>(&p.log2_s[size_t(j)]) - v * v;
}

// Calls visit(j, t, y) for the vectors of components with an exponent t above `least`.
template <class Visit>
FASTIB_INLINE void visit_components(const Plan& p, double z, double least, Visit visit) {
  for (int64_t j = 0; j < p.components; j += kWidth) {
    const Real y = z - load<Real>(&p.mu[size_t(j)]), t = exponent_of(p, j, y);
    if (any_less(splat<Real>(least), t)) visit(j, t, y);
  }
}

static double largest_exponent(const Plan& p, double z) {
  Real largest = splat<Real>(-INFINITY);
  visit_components(p, z, -INFINITY, [&](int64_t, Real t, Real) { largest = t > largest ? t : largest; });
  double result = largest[0];
  for_each_lane([&](int lane) { result = std::max(result, double(largest[lane])); });
  return result;
}

// A point's own component apart from the others, among which it has no density here: its weight may be far from theirs.
struct Alone {
  int64_t at = -1;
  double y = 0, s = 0, log2_s = 0, exponent = -INFINITY;

  Alone(Plan& p, int64_t i) {
    if (!p.has_own()) return;
    at = p.own(i);
    y = p.z[size_t(i)] - p.mu[size_t(at)];
    s = p.s[size_t(at)];
    log2_s = p.log2_s[size_t(at)];
    p.log2_s[size_t(at)] = -INFINITY;
    const double v = y * s * kRootHalfLog2E;
    if (p.own_weight > 0) exponent = log2_s + std::log2(p.own_weight) - v * v;
  }
  double density(double largest) const { return exponent > -INFINITY ? std::exp2(exponent - largest) : 0; }
  void restore(Plan& p) const {
    if (at >= 0) p.log2_s[size_t(at)] = log2_s;
  }
};

// The sum times 2^largest, and the derivative of its logarithm.
struct ApartSum {
  double sum, slope, largest;
};

static ApartSum sum_apart(Plan& p, int64_t i) {
  const Alone own(p, i);
  const double z = p.z[size_t(i)], largest = std::max(largest_exponent(p, z), own.exponent);
  Real sum{}, slope{};
  visit_components(p, z, negligible(largest), [&](int64_t j, Real t, Real y) {
    const Real n = fast_exp2<Real>(t - largest), s = load<Real>(&p.s[size_t(j)]);
    sum += n;
    slope -= n * y * s * s;
  });
  own.restore(p);
  const double n = own.density(largest), total = fold_lanes<double>(sum) + n;
  if (largest == -INFINITY) return {0, 0, 0};
  return {total, (fold_lanes<double>(slope) - n * own.y * own.s * own.s) / total, largest};
}

constexpr double kSmallestSum = 0x1p-120;  // that float holds, and its inverse

static void write_logarithms(const Plan& p, const Doubles& sums, const Marginals& m, int64_t d) {
  for (int64_t i = 0; i < p.rows; i += kWidth) {
    const Real log = logarithm<Real>(load<Real>(&sums[size_t(i)]));
    for (int64_t lane = 0; lane < std::min(kWidth, p.rows - i); ++lane) {
      const int64_t out = d * p.rows + p.row[size_t(i + lane)];
      if (m.sums[out] > 0) m.logs[out] = log[lane];
    }
  }
}

static void forward(const Marginals& m, int64_t d) {
  Plan p = make_plan(*m.latents, d);
  Grid grid;
  Doubles sums = zeros(p.rows), slopes = zeros(p.rows), near = zeros(p.rows);
  for (const Segment& segment : p.segments) {
    if (segment.pairs) add_pairs(p, segment, sums, slopes);
    else add_grid(p, segment, grid, sums, slopes, near);
  }
  if (p.has_own()) weigh_own(p, sums, slopes);
  const double tail =
      4e-6 * std::exp(-12.5) + 9e-5 * std::exp(-18.0) + std::exp(-0.5 * marginal_cutoff * marginal_cutoff);
  for (int64_t i = 0; i < p.rows; ++i) {
    const size_t k = size_t(i);
    const double lost = tail * near[k] + std::exp(-0.5 * kSeen * kSeen) * (p.mass - near[k]);
    const bool certified = sums[k] >= kSmallestSum && lost <= (kLargestError - 2e-7) * sums[k];
    const int64_t out = d * p.rows + p.row[k];
    if (certified) {
      m.sums[out] = float(sums[k]);
      m.slopes[out] = float(slopes[k] / sums[k]);
    } else {
      const ApartSum apart = sum_apart(p, i);
      m.sums[out] = -float(apart.sum);
      m.slopes[out] = float(apart.slope);
      m.logs[out] = std::log(apart.sum) + kLn2 * apart.largest;
    }
  }
  write_logarithms(p, sums, m, d);
}

// The backward pass.

struct MomentLanes {
  Real zeroth{}, first{}, second{};
  void add(Real c, Real y) {
    const Real by_mean = c * y;
    zeroth += c;
    first += by_mean;
    second = fma<Real>(by_mean, y, second);
  }
};

// Sums over points, for each component: of weight times density times y to the power of 0, 1 and 2.
struct Moments {
  Doubles zeroth, first, second;
  explicit Moments(int64_t components) : zeroth(zeros(components)), first(zeroth), second(zeroth) {}

  void add(int64_t j, const MomentLanes& sums) {
    zeroth[size_t(j)] += fold_lanes<double>(sums.zeroth);
    first[size_t(j)] += fold_lanes<double>(sums.first);
    second[size_t(j)] += fold_lanes<double>(sums.second);
  }
  void add(int64_t j, double n, double y) {
    zeroth[size_t(j)] += n;
    first[size_t(j)] += n * y;
    second[size_t(j)] += n * y * y;
  }
};

static void add_grid_gradients(const Plan& p, const Segment& grid, const Doubles& weights, Grid& memory, Moments& m) {
  Doubles& nodes = memory.cleared_nodes(grid);
  fill_grid(p, grid, weights, memory.cells, nodes);
  visit_nodes<MomentLanes>(
      p, grid, [&](MomentLanes& sums, int64_t k, Real n, Real y) { sums.add(n * load<Real>(&nodes[size_t(k)]), y); },
      [&](int64_t j, const MomentLanes& sums) { m.add(j, sums); });
}

static void add_pair_gradients(const Plan& p, const Segment& segment, const Doubles& weights, Moments& m) {
  for (int64_t j = segment.begin; j < segment.end; ++j) {
    MomentLanes sums;
    visit_window(p, segment, j, [&](int64_t i, Real n, Real y) { sums.add(n * load<Real>(&weights[size_t(i)]), y); });
    m.add(j, sums);
  }
}

static void add_own_gradients(const Plan& p, const Doubles& weights, Moments& m) {
  for (int64_t i = 0; i < p.rows; i += kWidth) {
    const int64_t count = std::min(kWidth, p.rows - i);
    int64_t at[kWidth];
    const Own own(p, i, count, at);
    for (int64_t lane = 0; lane < count; ++lane)
      m.add(at[lane], (p.own_weight - 1) * weights[size_t(i + lane)] * own.n[lane], own.y[lane]);
  }
}

// For a point that was summed apart, or whose gradient is not finite: that all components are to see.
static void add_apart_gradients(Plan& p, int64_t i, double grad, double sum, Moments& m) {
  const Alone own(p, i);
  const double z = p.z[size_t(i)], largest = std::max(largest_exponent(p, z), own.exponent);
  const double scale = grad / (sum < 0 ? -sum : sum * std::exp2(-largest));
  const double least = std::abs(grad) < double(INFINITY) ? negligible(largest) : -double(INFINITY);
  visit_components(p, z, least, [&](int64_t j, Real t, Real y) {
    const auto add = [j](Doubles& to, Real x) { store(&to[size_t(j)], load<Real>(&to[size_t(j)]) + x); };
    const Real c = fast_exp2<Real>(t - largest) * scale, by_mean = c * y;
    add(m.zeroth, c);
    add(m.first, by_mean);
    add(m.second, by_mean * y);
  });
  if (own.at >= 0) m.add(own.at, scale * own.density(largest), own.y);
  own.restore(p);
}

static void backward(const MarginalGradients& g, int64_t d) {
  Plan p = make_plan(*g.latents, d);
  const float *sums = g.sums + d * p.rows, *slopes = g.slopes + d * p.rows;
  Grid grid;
  Doubles weights = zeros(p.rows);
  Moments m(p.components + kWidth);
  float* d_z = g.d_z + d * p.rows;
  for (int64_t i = 0; i < p.rows; ++i) {
    const int64_t row = p.row[size_t(i)];
    const double grad = double(g.grads.at<float>(d, row)), sum = double(sums[row]);
    if (sum == 0 || grad == 0) continue;  // a density of 0 has no gradient
    d_z[row] += float(grad * double(slopes[row]));
    if (sum > 0 && std::abs(grad) < double(INFINITY)) weights[size_t(i)] = grad / sum;
    else add_apart_gradients(p, i, grad, sum, m);
  }
  for (const Segment& segment : p.segments) {
    if (segment.pairs) add_pair_gradients(p, segment, weights, m);
    else add_grid_gradients(p, segment, weights, grid, m);
  }
  if (p.has_own()) add_own_gradients(p, weights, m);
  for (int64_t j = 0; j < p.components; ++j) {
    const size_t k = size_t(j);
    const double s2 = p.s[k] * p.s[k];
    const int64_t out = d * p.components + p.component[k];
    g.d_mu[out] += float(s2 * m.first[k]);
    g.d_logvar[out] += float(0.5 * (s2 * m.second[k] - m.zeroth[k]));
  }
}

#endif
