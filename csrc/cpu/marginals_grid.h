// The grid of a segment: densities go to its nodes, and points read the polynomial between them; backwards, what points
// weigh goes to the nodes, and components read them. It follows marginals_plan.h.

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

// Memory for the nodes of one grid after the other, for their cells where these are worth it, and for the mass around
// each bin of kMargin nodes: that of the components in it and in its neighbours.
struct Grid {
  Doubles nodes, cells, masses;
  Doubles& cleared_nodes(const Segment& grid) {
    nodes.assign(size_t(grid.nodes + kPaddedNodes), 0.0);
    return nodes;
  }
};

static void find_masses(const Plan& p, const Segment& grid, Doubles& masses) {
  const int64_t bins = grid.nodes / kMargin + 1;
  masses.assign(size_t(bins + 2), 0.0);  // and an empty one at either end
  for (int64_t j = grid.begin; j < grid.end; ++j)
    masses[size_t(int64_t(p.mu[size_t(j)] * (1 / grid.h) - grid.first) / kMargin + 1)] += p.s[size_t(j)];
  double before = 0;
  for (int64_t bin = 1; bin <= bins; ++bin) {
    const double own = masses[size_t(bin)];
    masses[size_t(bin)] += before + masses[size_t(bin + 1)];
    before = own;
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

// Adds to sums and slopes of points, and the mass around them to `near` of those that are on the grid.
static void read_grid(const Plan& p, const Segment& grid, Grid& memory, Doubles& sums, Doubles& slopes, Doubles& near) {
  const Doubles& nodes = memory.nodes;
  Doubles& cells = memory.cells;
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
    Real mass{};
    for_each_lane([&](int lane) {
      if (at.node[lane] > 0) mass[lane] = memory.masses[size_t((int64_t(at.node[lane]) + 5) / kMargin + 1)];
    });
    add(near, mass);
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
