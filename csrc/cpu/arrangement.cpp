// The order in which the joint density visits points and components: see joint.h.
#include "joint.h"

namespace fastib {

namespace {

constexpr int64_t kMostTested = 8;
constexpr double kTelling = 4;  // the least variance of the means of a telling dimension, in units of its components'
constexpr int64_t kLeaf = 8;    // neighbours that are in no order

// How far apart the means of a dimension are, in units of a typical variance; and that unit's inverse root.
struct Spread {
  double variance, scale;
};

Spread spread_of(const Latents& x, int64_t d) {
  const float *mu = x.mu_of(d), *logvar = x.logvar_of(d);
  double mean = 0, mean_logvar = 0, squares = 0;
  for (int64_t j = 0; j < x.components; ++j) mean += double(mu[j]), mean_logvar += double(logvar[j]);
  mean /= double(x.components);
  mean_logvar /= double(x.components);
  for (int64_t j = 0; j < x.components; ++j) squares += (double(mu[j]) - mean) * (double(mu[j]) - mean);
  return {squares / double(x.components) * std::exp(-mean_logvar), std::exp(-0.5 * mean_logvar)};
}

Extent extent_of(const Latents& x, int64_t d) {
  const float *mu = x.mu_of(d), *logvar = x.logvar_of(d);
  Extent extent;
  float largest = -INFINITY;
  for (int64_t j = 0; j < x.components; ++j) {
    extent.least = std::min(extent.least, mu[j]);
    extent.greatest = std::max(extent.greatest, mu[j]);
    largest = std::max(largest, logvar[j]);
  }
  extent.precision = kRootHalfLog2E * std::exp(-0.5 * double(largest));
  return extent;
}

// Halves a set of points at the median of the dimension in which it is longest, and the halves again.
struct Halving {
  int64_t count, dims;
  std::vector<float> points;  // [count, dims]
  std::vector<int32_t>& order;

  float at(int32_t i, int64_t d) const { return points[size_t(i * dims + d)]; }

  int64_t longest(int64_t begin, int64_t end) const {
    std::vector<float> least(size_t(dims), INFINITY), greatest(size_t(dims), -INFINITY);
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t d = 0; d < dims; ++d) {
        least[size_t(d)] = std::min(least[size_t(d)], at(order[size_t(i)], d));
        greatest[size_t(d)] = std::max(greatest[size_t(d)], at(order[size_t(i)], d));
      }
    }
    int64_t best = 0;
    for (int64_t d = 1; d < dims; ++d)
      if (greatest[size_t(d)] - least[size_t(d)] > greatest[size_t(best)] - least[size_t(best)]) best = d;
    return best;
  }

  void halve(int64_t begin, int64_t end) {
    if (end - begin <= kLeaf) return;
    const int64_t d = longest(begin, end), middle = begin + ((end - begin) / 2 + kLeaf - 1) / kLeaf * kLeaf;
    std::nth_element(order.begin() + begin, order.begin() + middle, order.begin() + end,
                     [&](int32_t a, int32_t b) { return at(a, d) < at(b, d) || (at(a, d) == at(b, d) && a < b); });
    halve(begin, middle);
    halve(middle, end);
  }
};

std::vector<int32_t> natural_order(int64_t count) {
  std::vector<int32_t> order(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) order[size_t(i)] = int32_t(i);
  return order;
}

// column(d) is the coordinate of all points in dimension d.
template <class Column>
std::vector<int32_t> neighbours_together(int64_t count, const std::vector<int32_t>& dims, int64_t tested,
                                         const std::vector<Spread>& spreads, Column column) {
  std::vector<int32_t> order = natural_order(count);
  if (tested == 0) return order;
  Halving halving{count, tested, std::vector<float>(size_t(count * tested)), order};
  for (int64_t k = 0; k < tested; ++k) {
    const int64_t d = dims[size_t(k)];
    const float* x = column(d);
    for (int64_t i = 0; i < count; ++i)
      halving.points[size_t(i * tested + k)] = float(double(x[i]) * spreads[size_t(d)].scale);
  }
  halving.halve(0, count);
  return order;
}

}  // namespace

Arrangement::Arrangement(const Latents& x) : dims(natural_order(x.dims)) {
  std::vector<Spread> spreads(static_cast<size_t>(x.dims));
  run_tasks([&](int64_t d) { spreads[size_t(d)] = spread_of(x, d); }, x.dims);
  const auto variance = [&](int32_t d) { return spreads[size_t(d)].variance; };
  std::stable_sort(dims.begin(), dims.end(), [&](int32_t a, int32_t b) { return variance(a) > variance(b); });
  for (tested = 0; tested < std::min(kMostTested, x.dims) && variance(dims[size_t(tested)]) > kTelling;) ++tested;
  extents.resize(dims.size());
  run_tasks([&](int64_t k) { extents[size_t(k)] = extent_of(x, dims[size_t(k)]); }, x.dims);
  components = neighbours_together(x.components, dims, tested, spreads, [&](int64_t d) { return x.mu_of(d); });
  rows = neighbours_together(x.rows, dims, tested, spreads, [&](int64_t d) { return x.z_of(d); });
  if (x.own_weight == 1 && x.row_offset + x.rows > x.components) return;
  std::vector<int32_t> position(size_t(x.components));
  for (int64_t j = 0; j < x.components; ++j) position[size_t(components[size_t(j)])] = int32_t(j);
  for (const int32_t row : rows) own.push_back(position[size_t(row + x.row_offset)]);
}

}  // namespace fastib
