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
#include "marginals_plan.h"

#include "marginals_grid.h"

// The forward pass.

static void add_grid(const Plan& p, const Segment& grid, Grid& memory, Doubles& sums, Doubles& slopes, Doubles& near) {
  struct Nothing {};
  Doubles& nodes = memory.cleared_nodes(grid);
  visit_nodes<Nothing>(
      p, grid, [&](Nothing, int64_t k, Real n, Real) { store(&nodes[size_t(k)], load<Real>(&nodes[size_t(k)]) + n); },
      [](int64_t, Nothing) {});
  find_masses(p, grid, memory.masses);
  read_grid(p, grid, memory, sums, slopes, near);
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
