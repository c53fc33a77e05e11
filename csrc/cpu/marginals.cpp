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

using Doubles = std::vector<double>;

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
  int64_t rows, components;
  double own_weight, mass = 0;
  int64_t row_offset;
  Doubles z;                                 // of the points, in this order
  std::vector<int32_t> row;                  // of each
  Doubles mu, s;                             // of the components, by octave; s is 1 / sigma
  std::vector<int32_t> component, position;  // what stands where, and where what stands
  std::vector<char> exact;                   // whether the component is met pair by pair
  std::vector<Segment> segments;
  bool sorted = false;  // the points, by z

  bool has_own() const { return own_weight != 1; }
  int64_t own(int64_t target) const { return position[size_t(row[size_t(target)] + row_offset)]; }
};

// The density of a component, at y from its mean, less the factor 1 / sqrt(2 pi).
FASTIB_INLINE Real density(Real y, Real s) {
  const Real v = y * s * kRootHalfLog2E;
  return s * fast_exp2<Real>(-v * v);
}

static void sort_targets(Plan& p) {
  std::vector<std::pair<double, int32_t> > order;
  for (int64_t i = 0; i < p.rows; ++i) order.emplace_back(p.z[size_t(i)], int32_t(i));
  std::sort(order.begin(), order.end());
  for (int64_t i = 0; i < p.rows; ++i) std::tie(p.z[size_t(i)], p.row[size_t(i)]) = order[size_t(i)];
  p.sorted = true;
}

static int64_t first_target_from(const Plan& p, double z) {
  return std::lower_bound(p.z.begin(), p.z.begin() + p.rows, z) - p.z.begin();
}

struct Range {
  int64_t begin, end;
};

// The points that a component may be near to.
static Range window(const Plan& p, const Segment& segment, int64_t j) {
  if (!p.sorted) return {segment.first_target, segment.end_target};
  const double reach = kSeen / p.s[size_t(j)];
  return {first_target_from(p, p.mu[size_t(j)] - reach), first_target_from(p, p.mu[size_t(j)] + reach)};
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
  return 20 * double(count) + 1.4 * pairs < 70 * double(count) + 14 * targets + 0.5 * double(segment.nodes);
}

static void add_segment(Plan& p, int64_t begin, int64_t end, double h) {
  const auto least_greatest = std::minmax_element(p.mu.begin() + begin, p.mu.begin() + end);
  Segment segment{begin, end, 0, p.rows, h, std::floor(*least_greatest.first / h) - kMargin, 0, 0, false};
  const double last = std::floor(*least_greatest.second / h) + kMargin;
  segment.nodes = int64_t(std::min(last - segment.first, kLargestNode)) + 1;
  if (p.sorted) {
    segment.first_target = first_target_from(p, segment.first * h);
    segment.end_target = first_target_from(p, last * h);
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

static Plan make_plan(const Latents& x, int64_t d) {
  Plan p{x.rows, x.components,        x.own_weight,        0,  x.row_offset, zeros(x.rows),
         {},     zeros(x.components), zeros(x.components), {}, {},           {},
         {}};
  p.row.resize(size_t(p.rows));
  p.component.resize(size_t(p.components));
  p.position.resize(size_t(p.components));
  p.exact.resize(size_t(p.components));
  const float *z = x.z_of(d), *mu = x.mu_of(d), *logvar = x.logvar_of(d);
  for (int64_t i = 0; i < p.rows; ++i) p.z[size_t(i)] = double(z[i]), p.row[size_t(i)] = int32_t(i);

  Doubles precision = zeros(p.components);
  std::vector<int32_t> keys(size_t(p.components));
  const double log2_nodes = std::log2(kFewestNodes);
  for (int64_t j = 0; j < p.components; ++j) {
    precision[size_t(j)] = -0.5 * double(logvar[j]);
    keys[size_t(j)] = int32_t(std::floor(-kLog2E * precision[size_t(j)] - log2_nodes));
  }
  for (int64_t j = 0; j < p.components; j += kWidth)
    store(&precision[size_t(j)], exponential<Real>(load<Real>(&precision[size_t(j)])).value);

  const std::vector<Octave> octaves = find_octaves(p, keys, mu);
  for (const Octave& octave : octaves) {
    if (!octave.sparse) continue;
    std::sort(p.component.begin() + octave.begin, p.component.begin() + octave.end,
              [mu](int32_t a, int32_t b) { return mu[a] < mu[b] || (mu[a] == mu[b] && a < b); });
    if (!p.sorted) sort_targets(p);
  }
  for (int64_t j = 0; j < p.components; ++j) {
    const int32_t source = p.component[size_t(j)];
    p.mu[size_t(j)] = double(mu[source]);
    p.s[size_t(j)] = precision[size_t(source)];
    p.position[size_t(source)] = int32_t(j);
  }
  for (const Octave& octave : octaves) add_octave(p, octave);
  return p;
}

// Grids.

// Calls visit(k, n, y) for the vectors of nodes within the cutoff of a component: the number of the first node, the
// density there, the distance from the mean. The next density is this one times a ratio, which itself is geometric.
template <class Visit>
FASTIB_INLINE void visit_nodes(const Segment& grid, double mu, double s, Visit visit) {
  const double reach = marginal_cutoff / s, step = double(kWidth) * grid.h,
               p2 = kRootHalfLog2E * kRootHalfLog2E * s * s;
  const double first = std::floor((mu - reach) / grid.h), last = std::floor((mu + reach) / grid.h);
  Real y = (lane_numbers() + first) * grid.h - mu, n = density(y, splat<Real>(s));
  Real ratio = fast_exp2<Real>((y + y + step) * (-step * p2));
  const Real next_ratio = fast_exp2<Real>(splat<Real>(-2 * step * step * p2));
  const int64_t end = int64_t(last - grid.first);
  for (int64_t k = int64_t(first - grid.first); k <= end; k += kWidth) {
    visit(k, n, y);
    n *= ratio;
    ratio *= next_ratio;
    y += step;
  }
}

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

// Adds to sums and slopes of points, and the grid's mass to `near` of those that are on it.
static void read_grid(const Plan& p, const Segment& grid, const double* nodes, Doubles& sums, Doubles& slopes,
                      Doubles& near) {
  constexpr int64_t parts = kPowers / kWidth;
  for (int64_t i = grid.first_target; i < grid.end_target; i += kWidth) {
    const Places at(grid, &p.z[size_t(i)]);
    Real rows[parts][kWidth];
    for_each_lane([&](int lane) {
      const double* first = nodes + int64_t(at.node[lane]);
      for (int64_t part = 0; part < parts; ++part) {
        Real c{};
        for (int t = 0; t < kNodes; ++t)
          c = fma<Real>(load<Real>(kInterpolation.by_node[t] + part * kWidth), first[t], c);
        rows[part][lane] = c;
      }
    });
    for (int64_t part = 0; part < parts; ++part) transpose(rows[part]);
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

// The transpose: adds to the nodes what points weigh.
static void fill_grid(const Plan& p, const Segment& grid, const Doubles& weights, double* nodes) {
  constexpr int64_t parts = kPaddedNodes / kWidth;
  for (int64_t i = grid.first_target; i < grid.end_target; i += kWidth) {
    const Places at(grid, &p.z[size_t(i)]);
    double powers[kPowers][kWidth];
    Real power = load<Real>(&weights[size_t(i)]);
    for (auto& row : powers) {
      store(row, power);
      power *= at.s;
    }
    for (int lane = 0; lane < kWidth; ++lane) {
      if (at.node[lane] == 0) continue;
      double* first = nodes + int64_t(at.node[lane]);
      for (int64_t part = 0; part < parts; ++part) {
        Real sum = load<Real>(first + part * kWidth);
        for (int k = 0; k < kPowers; ++k)
          sum = fma<Real>(load<Real>(kInterpolation.by_power[k] + part * kWidth), powers[k][lane], sum);
        store(first + part * kWidth, sum);
      }
    }
  }
}

// The forward pass.

static void add_grid(const Plan& p, const Segment& grid, Doubles& nodes, Doubles& sums, Doubles& slopes,
                     Doubles& near) {
  nodes.assign(size_t(grid.nodes + kPaddedNodes), 0.0);
  for (int64_t j = grid.begin; j < grid.end; ++j)
    visit_nodes(grid, p.mu[size_t(j)], p.s[size_t(j)],
                [&](int64_t k, Real n, Real) { store(&nodes[size_t(k)], load<Real>(&nodes[size_t(k)]) + n); });
  read_grid(p, grid, nodes.data(), sums, slopes, near);
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

// Points that are summed apart.

struct ApartSum {
  double sum, slope, shift;  // the sum times 2^shift
};

// Calls visit(j, n, y) for all vectors of components, with their densities at z times 2^shift. The own one is as heavy
// as the others, or has no weight at all.
template <class Visit>
FASTIB_INLINE void visit_components(const Plan& p, double z, double shift, Visit visit) {
  for (int64_t j = 0; j < p.components; j += kWidth) {
    const Real y = z - load<Real>(&p.mu[size_t(j)]), s = load<Real>(&p.s[size_t(j)]), v = y * s * kRootHalfLog2E;
    visit(j, s * fast_exp2<Real>(shift - v * v), y);
  }
}

static double least_square(const Plan& p, double z) {
  const Real infinity = splat<Real>(double(INFINITY));
  Real least = infinity;
  for (int64_t j = 0; j < p.components; j += kWidth) {
    const Real s = load<Real>(&p.s[size_t(j)]), v = (z - load<Real>(&p.mu[size_t(j)])) * s * kRootHalfLog2E;
    const Real square = s > 0 ? v * v : infinity;
    least = square < least ? square : least;
  }
  double result = least[0];
  for_each_lane([&](int lane) { result = std::min(result, double(least[lane])); });
  return result;
}

// Its own component apart from the others, since its weight may be far from theirs: 0 here where there is none.
struct Alone {
  int64_t at = -1;
  double s = 0, y = 0, square = double(INFINITY);

  Alone(Plan& p, int64_t i) {
    if (!p.has_own()) return;
    at = p.own(i);
    std::swap(s, p.s[size_t(at)]);
    y = p.z[size_t(i)] - p.mu[size_t(at)];
    const double v = y * s * kRootHalfLog2E;
    if (p.own_weight > 0) square = v * v - std::log2(p.own_weight);
  }
  double density(double shift) const { return square < double(INFINITY) ? s * std::exp2(shift - square) : 0; }
  void restore(Plan& p) const {
    if (at >= 0) p.s[size_t(at)] = s;
  }
};

static ApartSum sum_apart(const Plan& p, double z, const Alone& own) {
  const double shift = std::min(least_square(p, z), own.square);
  if (shift == double(INFINITY)) return {0, 0, 0};
  Real sum{}, slope{};
  visit_components(p, z, shift, [&](int64_t j, Real n, Real y) {
    const Real s = load<Real>(&p.s[size_t(j)]);
    sum += n;
    slope -= n * y * s * s;
  });
  const double n = own.density(shift);
  return {fold_lanes<double>(sum) + n, fold_lanes<double>(slope) - n * own.y * own.s * own.s, shift};
}

static double log_apart(Plan& p, int64_t i) {
  const Alone own(p, i);
  const ApartSum apart = sum_apart(p, p.z[size_t(i)], own);
  own.restore(p);
  return std::log(apart.sum) - kLn2 * apart.shift;
}

constexpr double kSmallestSum = 0x1p-120;  // that float holds, and its inverse

static void write_logarithms(const Plan& p, const Doubles& sums, const Marginals& m, int64_t d) {
  for (int64_t i = 0; i < p.rows; i += kWidth) {
    const Real log = logarithm<Real>(load<Real>(&sums[size_t(i)]));
    for (int64_t lane = 0; lane < std::min(kWidth, p.rows - i); ++lane) {
      const int64_t out = d * p.rows + p.row[size_t(i + lane)];
      if (m.sums[out] > 0) m.logs[out] = float(log[lane]);
    }
  }
}

static void forward(const Marginals& m, int64_t d) {
  Plan p = make_plan(*m.latents, d);
  Doubles nodes, sums = zeros(p.rows), slopes = zeros(p.rows), near = zeros(p.rows);
  for (const Segment& segment : p.segments) {
    if (segment.pairs) add_pairs(p, segment, sums, slopes);
    else add_grid(p, segment, nodes, sums, slopes, near);
  }
  if (p.has_own()) weigh_own(p, sums, slopes);
  const double tail =
      4e-6 * std::exp(-12.5) + 9e-5 * std::exp(-18.0) + std::exp(-0.5 * marginal_cutoff * marginal_cutoff);
  for (int64_t i = 0; i < p.rows; ++i) {
    const size_t k = size_t(i);
    const double lost = tail * near[k] + std::exp(-0.5 * kSeen * kSeen) * (p.mass - near[k]);
    const bool certified = sums[k] >= kSmallestSum && lost <= (kLargestError - 2e-7) * sums[k];
    const int64_t out = d * p.rows + p.row[k];
    m.sums[out] = certified ? float(sums[k]) : 0;
    m.slopes[out] = certified ? float(slopes[k] / sums[k]) : 0;
    if (!certified) m.logs[out] = float(log_apart(p, i));
  }
  write_logarithms(p, sums, m, d);
}

// The backward pass.

// Sums over points, for each component: of weight times density times y to the power of 0, 1 and 2.
struct Moments {
  Doubles zeroth, first, second;
  explicit Moments(int64_t components) : zeroth(zeros(components)), first(zeroth), second(zeroth) {}

  void add(int64_t j, Real zero, Real one, Real two) {
    zeroth[size_t(j)] += fold_lanes<double>(zero);
    first[size_t(j)] += fold_lanes<double>(one);
    second[size_t(j)] += fold_lanes<double>(two);
  }
  void add(int64_t j, double n, double y) {
    zeroth[size_t(j)] += n;
    first[size_t(j)] += n * y;
    second[size_t(j)] += n * y * y;
  }
};

static void add_grid_gradients(const Plan& p, const Segment& grid, const Doubles& weights, Doubles& nodes, Moments& m) {
  nodes.assign(size_t(grid.nodes + kPaddedNodes), 0.0);
  fill_grid(p, grid, weights, nodes.data());
  for (int64_t j = grid.begin; j < grid.end; ++j) {
    Real zero{}, one{}, two{};
    visit_nodes(grid, p.mu[size_t(j)], p.s[size_t(j)], [&](int64_t k, Real n, Real y) {
      const Real c = n * load<Real>(&nodes[size_t(k)]), by_mean = c * y;
      zero += c;
      one += by_mean;
      two = fma<Real>(by_mean, y, two);
    });
    m.add(j, zero, one, two);
  }
}

static void add_pair_gradients(const Plan& p, const Segment& segment, const Doubles& weights, Moments& m) {
  for (int64_t j = segment.begin; j < segment.end; ++j) {
    Real zero{}, one{}, two{};
    visit_window(p, segment, j, [&](int64_t i, Real n, Real y) {
      const Real c = n * load<Real>(&weights[size_t(i)]), by_mean = c * y;
      zero += c;
      one += by_mean;
      two = fma<Real>(by_mean, y, two);
    });
    m.add(j, zero, one, two);
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

// Returns the gradient of z.
static double add_apart_gradients(Plan& p, int64_t i, double grad, Moments& m) {
  const Alone own(p, i);
  const double z = p.z[size_t(i)];
  const ApartSum apart = sum_apart(p, z, own);
  const double scale = apart.sum > 0 ? grad / apart.sum : 0;  // a density of 0 has no gradient
  if (apart.sum > 0) {
    visit_components(p, z, apart.shift, [&](int64_t j, Real n, Real y) {
      const auto add = [j](Doubles& to, Real x) { store(&to[size_t(j)], load<Real>(&to[size_t(j)]) + x); };
      const Real c = n * scale;
      add(m.zeroth, c);
      add(m.first, c * y);
      add(m.second, c * y * y);
    });
    if (own.at >= 0) m.add(own.at, scale * own.density(apart.shift), own.y);
  }
  own.restore(p);
  return scale * apart.slope;
}

static void backward(const MarginalGradients& g, int64_t d) {
  Plan p = make_plan(*g.latents, d);
  const float *sums = g.sums + d * p.rows, *slopes = g.slopes + d * p.rows;
  Doubles nodes, weights = zeros(p.rows);
  Moments m(p.components + kWidth);
  float* d_z = g.d_z + d * p.rows;
  for (int64_t i = 0; i < p.rows; ++i) {
    const int64_t row = p.row[size_t(i)];
    const double grad = double(g.grads.at<float>(d, row));
    if (sums[row] > 0 && std::abs(grad) < double(INFINITY)) {
      weights[size_t(i)] = grad / double(sums[row]);
      d_z[row] += float(grad * double(slopes[row]));
    } else {  // also what is not finite: all components are to see it
      d_z[row] += grad == 0 ? 0 : float(add_apart_gradients(p, i, grad, m));
    }
  }
  for (const Segment& segment : p.segments) {
    if (segment.pairs) add_pair_gradients(p, segment, weights, m);
    else add_grid_gradients(p, segment, weights, nodes, m);
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
