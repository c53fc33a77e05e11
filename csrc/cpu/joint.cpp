// The algorithm of joint.h.
#ifndef FASTIB_ISA
#include "joint.h"

namespace fastib {

// What both passes read: tiles of one vector of components, blocks of points, and the boxes of the tiles.
struct JointPlan {
  const Latents& x;
  Arrangement order;
  int64_t padded_tiles;
  Scratch tiles;    // per tile {mu, sqrt(log2(e)/2) exp(-l/2)} per dimension, then C
  Scratch boxes;    // [tested, 3, tiles]: the least and the greatest mu, the least precision
  Scratch highest;  // [tiles]: the largest C
  Scratch z;        // [blocks, dims, points]
  double dropped;   // the logarithm of what share of a density a pair is dropped for
  float log2_own;   // the weight of own components

  explicit JointPlan(const Latents& latents);
};

struct JointForward {
  const JointPlan* plan;
  const Joint* out;
};

struct JointBackward {
  const JointPlan* plan;
  const JointGradients* gradients;
  const PartialGradients* partial;
};

}  // namespace fastib

#define FASTIB_KERNELS "joint.cpp"
#include "each_isa.h"

namespace fastib {

namespace {

constexpr int64_t kNarrowest = 4;  // lanes of float: memory is for the set with the most tiles

int64_t padded(int64_t count, int64_t to) { return (count + to - 1) / to * to; }

int64_t tasks_of(int64_t count, int64_t each) { return (count + each - 1) / each; }

}  // namespace

JointPlan::JointPlan(const Latents& latents)
    : x(latents),
      order(latents),
      padded_tiles(padded(tasks_of(x.components, kNarrowest), kWidest)),
      tiles(padded(x.components, kWidest) * (2 * x.dims + 1) * int64_t(sizeof(float))),
      boxes(order.tested * 3 * padded_tiles * int64_t(sizeof(float))),
      highest(padded_tiles * int64_t(sizeof(float))),
      z(padded(x.rows, kWidest) * x.dims * int64_t(sizeof(float))),
      dropped(-joint_dropped_bits - std::log2(double(x.components)) - 1),
      log2_own(x.own_weight > 0 ? float(std::log2(x.own_weight)) : std::numeric_limits<float>::lowest()) {
  run_tasks([&](int64_t task) { FASTIB_KERNEL(pack_tiles)(*this, task); }, tasks_of(x.components, kComponentsPerChunk));
  run_tasks([&](int64_t task) { FASTIB_KERNEL(pack_rows)(*this, task); }, tasks_of(x.rows, kRowsPerChunk));
}

void joint_forward(const Joint& out) {
  const JointPlan plan(*out.latents);
  const JointForward a{&plan, &out};
  run_tasks([&](int64_t task) { FASTIB_KERNEL(forward)(a, task); }, tasks_of(plan.x.rows, kRowsPerChunk));
}

void joint_backward(const JointGradients& gradients) {
  const JointPlan plan(*gradients.latents);
  const PartialGradients partial(plan.x.rows, plan.x.components, plan.x.dims, sizeof(float));
  const JointBackward a{&plan, &gradients, &partial};
  run_tasks([&](int64_t task) { FASTIB_KERNEL(backward)(a, task); }, partial.tasks());
  const int64_t chunks =
      std::max(tasks_of(plan.x.rows, kRowsPerChunk), tasks_of(plan.x.components, kComponentsPerChunk));
  run_tasks([&](int64_t task) { FASTIB_KERNEL(add_gradients)(a, task); }, chunks);
}

}  // namespace fastib

#else
#include "joint_tiles.h"

// The forward pass.

struct RowSums {
  float largest[kRows];  // what the exponents are relative to
  double sums[kRows];    // of weight times 2^(exponent - largest)
};

// The exponents of a tile, with those of components that have no weight out of sight.
FASTIB_INLINE Real exponent_of(const JointPlan& p, const Points& points, Real height, Real square, int64_t tile,
                               int r) {
  Real t = height - square;
  const int64_t lane = points.own[r] - tile * kWidth;
  if (p.x.own_weight == 0 && lane >= 0 && lane < kWidth) t[lane] = kLowest;
  return t;
}

static float largest_lane(Real t) {
  float largest = t[0];
  for (int lane = 1; lane < kWidth; ++lane) largest = t[lane] > largest ? t[lane] : largest;
  return largest;
}

// A tile where a point's density may be large: its own component's, or the one whose box is nearest.
static int64_t likely_tile(const JointPlan& p, const Points& points, int r) {
  if (points.own[r] >= 0 && p.x.own_weight > 0) return points.own[r] / kWidth;
  int64_t best = 0;
  float highest = -INFINITY;
  for (int64_t first = 0; first < tiles_of(p); first += kWidth) {
    const Real bound = bounds_of_tiles(p, points, first);
    for (int64_t i = first; i < std::min(first + kWidth, tiles_of(p)); ++i)
      if (bound[i - first] > highest) highest = bound[i - first], best = i;
  }
  return best;
}

static float largest_in_tile(const JointPlan& p, const Points& points, int64_t i, int r) {
  const Tile tile(p, i);
  Real squares[kRows] = {};
  add_squares(tile, points.z, 0, p.x.dims, squares);
  Real t = load<Real>(tile.height()) - squares[r];
  const int64_t lane = points.own[r] - i * kWidth;
  if (lane >= 0 && lane < kWidth) t[lane] += p.log2_own;
  return largest_lane(t);
}

// Sets what the exponents of the points are relative to, and so what may be left out.
static void find_likely(const JointPlan& p, Points& points, RowSums& rows) {
  float least = INFINITY;
  for (int r = 0; r < kRows; ++r) {
    float largest = largest_in_tile(p, points, likely_tile(p, points, r), r);
    for (int64_t i = 0; i < tiles_of(p) && largest <= kLowest; ++i) largest = largest_in_tile(p, points, i, r);
    rows.largest[r] = std::max(largest, kLowest);
    rows.sums[r] = 0;
    points.thresholds[r] = threshold(p, points, r, double(rows.largest[r]));
    least = std::min(least, points.thresholds[r]);
  }
  points.threshold = least;
}

struct SpanSums {
  Real sums[kRows], largest[kRows];
};

template <bool with_own>
FASTIB_INLINE void add_tile(const JointPlan& p, const Points& points, const RowSums& rows, int64_t i, SpanSums& span) {
  const Tile tile(p, i);
  Real squares[kRows];
  if (!find_squares(p, tile, points, !with_own, squares)) return;
  const Real height = load<Real>(tile.height());
  for (int r = 0; r < kRows; ++r) {
    const Real t = with_own ? exponent_of(p, points, height, squares[r], i, r) : height - squares[r];
    Real density = fast_exp2<Real>(t - rows.largest[r]);
    if constexpr (with_own) {
      const int64_t lane = points.own[r] - i * kWidth;
      if (lane >= 0 && lane < kWidth) density[lane] *= float(p.x.own_weight);
    }
    span.sums[r] += density;
    span.largest[r] = t > span.largest[r] ? t : span.largest[r];
  }
}

constexpr float kMostAbove = 64;  // exponents above what they are relative to

// Adds the tiles of a list to the sums. What the exponents are relative to is raised where they prove much larger.
static void add_tiles(const JointPlan& p, const Points& points, const int64_t* list, int64_t count, RowSums& rows) {
  for (;;) {
    SpanSums span;
    for (int r = 0; r < kRows; ++r) span.sums[r] = Real{}, span.largest[r] = splat<Real>(kLowest);
    for (int64_t k = 0; k < count; ++k) {
      if (points.own_in(list[k])) add_tile<true>(p, points, rows, list[k], span);
      else add_tile<false>(p, points, rows, list[k], span);
    }
    bool raised = false;
    for (int r = 0; r < kRows; ++r) {
      const float largest = largest_lane(span.largest[r]);
      if (largest <= rows.largest[r] + kMostAbove) continue;
      rows.sums[r] *= std::exp2(double(rows.largest[r]) - double(largest));
      rows.largest[r] = largest;
      raised = true;
    }
    if (raised) continue;
    for (int r = 0; r < kRows; ++r) rows.sums[r] += double(fold_lanes<float>(span.sums[r]));
    return;
  }
}

static float own_exponent(const JointPlan& p, const Points& points, int r) {
  const int64_t i = points.own[r] / kWidth;
  const Tile tile(p, i);
  Real squares[kRows] = {};
  add_squares(tile, points.z, 0, p.x.dims, squares);
  return (load<Real>(tile.height()) - squares[r])[points.own[r] % kWidth];
}

static void write_sums(const JointPlan& p, const Points& points, const RowSums& rows, const Joint& out) {
  for (int64_t r = 0; r < points.count; ++r) {
    const int64_t row = p.order.rows[size_t(points.first + r)];
    out.largest[row] = rows.largest[r];
    out.sums[row] = float(rows.sums[r]);
    if (out.own != nullptr) out.own[row] = own_exponent(p, points, int(r));
  }
}

// Spans of tiles stay in the cache while the blocks of a task pass over them.
static void forward(const JointForward& a, int64_t task) {
  const JointPlan& p = *a.plan;
  const int64_t first = task * kRowsPerChunk / kRows;
  const int64_t end = (std::min((task + 1) * kRowsPerChunk, p.x.rows) + kRows - 1) / kRows;
  std::vector<Points> blocks;
  std::vector<RowSums> rows(size_t(end - first));
  for (int64_t block = first; block < end; ++block) {
    blocks.emplace_back(p, block);
    find_likely(p, blocks.back(), rows[size_t(block - first)]);
  }
  int64_t list[kTilesPerSum];
  for (int64_t begin = 0; begin < tiles_of(p); begin += kTilesPerSum) {
    for (size_t b = 0; b < blocks.size(); ++b) {
      const int64_t count = near_tiles(p, blocks[b], begin, std::min(begin + kTilesPerSum, tiles_of(p)), list);
      add_tiles(p, blocks[b], list, count, rows[b]);
    }
  }
  for (size_t b = 0; b < blocks.size(); ++b) write_sums(p, blocks[b], rows[b], *a.out);
}

// The backward pass.

struct RowGradients {
  float largest[kRows], quotient[kRows], share[kRows], by_density[kRows], by_information[kRows];
};

static RowGradients read_gradients(const JointBackward& a, Points& points) {
  const JointGradients& g = *a.gradients;
  RowGradients rows;
  points.threshold = INFINITY;
  for (int64_t r = 0; r < kRows; ++r) {
    const int64_t row = a.plan->order.rows[size_t(points.first + std::min(r, points.count - 1))];
    const bool none = r >= points.count || g.sums[row] == 0;
    rows.largest[r] = none ? -kLowest : g.largest[row];  // then all densities are 0
    rows.share[r] = none ? 0 : 1 / g.sums[row];
    rows.by_density[r] = none ? 0 : g.by_density[row];
    rows.by_information[r] = none ? 0 : g.by_information[row];
    rows.quotient[r] = (rows.by_density[r] - rows.by_information[r]) * rows.share[r];
    const double density = double(g.largest[row]) + std::log2(double(g.sums[row]));
    const bool finite = std::abs(rows.quotient[r]) < INFINITY && !none;
    const bool nothing = rows.quotient[r] == 0;
    points.thresholds[r] = nothing ? INFINITY : finite ? threshold(*a.plan, points, r, density) : -INFINITY;
    points.threshold = std::min(points.threshold, points.thresholds[r]);
  }
  return rows;
}

// What each pair of a tile adds to the gradient by its exponent.
template <bool with_own>
FASTIB_INLINE bool find_coefficients(const JointPlan& p, const Points& points, const RowGradients& rows, int64_t i,
                                     Real* coefficients) {
  const Tile tile(p, i);
  Real squares[kRows];
  if (!find_squares(p, tile, points, !with_own, squares)) return false;
  const Real height = load<Real>(tile.height());
  for (int r = 0; r < kRows; ++r) {
    Real density = fast_exp2<Real>(height - squares[r] - rows.largest[r]);
    if constexpr (with_own) {
      Real is_own{};
      const int64_t lane = points.own[r] - i * kWidth;
      if (lane >= 0 && lane < kWidth) {
        is_own[lane] = 1;
        density[lane] = p.x.own_weight == 0 ? 0 : density[lane] * float(p.x.own_weight);
      }
      const Real share = density * rows.share[r];
      coefficients[r] = fma<Real>(is_own - share, rows.by_information[r], share * rows.by_density[r]);
    } else {
      coefficients[r] = density * rows.quotient[r];
    }
  }
  return true;
}

// Adds the gradients of up to kTilesAtOnce tiles: to d_z, [dims, kRows] vectors, the sums of c y p^2, where y = z - mu
// and p is the precision; to the columns of each tile, [dims, 2] vectors, those of c y and of c y^2; and the sum of c.
static void add_gradients_of_tiles(const JointPlan& p, const Points& points, const float* const* tiles, int64_t count,
                                   const Real* coefficients, Real* d_z, float* const* columns) {
  for (int64_t d = 0; d < p.x.dims; ++d) {
    Real z[kRows], by_z[kRows];
    for (int r = 0; r < kRows; ++r) z[r] = splat<Real>(points.z[d * kRows + r]), by_z[r] = d_z[d * kRows + r];
    for (int64_t k = 0; k < count; ++k) {
      const float* tile = tiles[k] + 2 * d * kWidth;
      const Real mu = load<Real>(tile), precision = load<Real>(tile + kWidth), p2 = precision * precision;
      float* column = columns[k] + 2 * d * kWidth;
      Real by_mean[2] = {load<Real>(column), Real{}}, by_square[2] = {load<Real>(column + kWidth), Real{}};
      for (int r = 0; r < kRows; ++r) {
        const Real y = z[r] - mu, c = coefficients[k * kRows + r] * y;
        by_mean[r % 2] += c;
        by_square[r % 2] = fma<Real>(c, y, by_square[r % 2]);
        by_z[r] = fma<Real>(c, p2, by_z[r]);
      }
      store(column, by_mean[0] + by_mean[1]);
      store(column + kWidth, by_square[0] + by_square[1]);
    }
    for (int r = 0; r < kRows; ++r) d_z[d * kRows + r] = by_z[r];
  }
  for (int64_t k = 0; k < count; ++k) {
    float* column = columns[k] + 2 * p.x.dims * kWidth;
    Real total = load<Real>(column);
    for (int r = 0; r < kRows; ++r) total += coefficients[k * kRows + r];
    store(column, total);
  }
}

// The sums over lanes of kRows vectors, in order. Two vectors become one with half the lanes for each, and so on.
FASTIB_INLINE void fold_rows(const Real* vectors, float* sums) {
  Real v[kRows];
  std::copy_n(vectors, kRows, v);
  for (int64_t count = kRows / 2; count > 0; count /= 2) {
    for (int64_t i = 0; i < count; ++i) {
      Real low, high;
      interleave(v[i], v[i + count], low, high, std::make_index_sequence<kWidth>());
      v[i] = low + high;
    }
  }
  for (int r = 0; r < kRows; ++r) {
    sums[r] = v[0][r];
    for (int64_t lane = r + kRows; lane < kWidth; lane += kRows) sums[r] += v[0][lane];
  }
}

// One task's sums, of a span of tiles at a time.
struct SpanGradients {
  int64_t first, column_size;
  std::vector<float> columns;  // [tiles, 2 dims + 1] vectors
  std::vector<double> totals;  // of them
  SpanGradients(const JointPlan& p, int64_t begin, int64_t end)
      : first(begin),
        column_size((2 * p.x.dims + 1) * kWidth),
        columns(size_t((end - begin) * column_size)),
        totals(columns.size()) {}
  float* column(int64_t tile) { return columns.data() + (tile - first) * column_size; }
  void carry() {
    for (size_t k = 0; k < columns.size(); ++k) totals[k] += double(columns[k]), columns[k] = 0;
  }
};

constexpr int64_t kBlocksPerSum = 64;

static void add_gradients_of_block(const JointBackward& a, Points& points, SpanGradients& span, int64_t end,
                                   Real* d_z) {
  const JointPlan& p = *a.plan;
  const RowGradients rows = read_gradients(a, points);
  int64_t list[kTilesPerSum];
  const float* tiles[kTilesAtOnce];
  float* columns[kTilesAtOnce];
  Real coefficients[kTilesAtOnce * kRows];
  const int64_t count = near_tiles(p, points, span.first, end, list);
  int64_t found = 0;
  for (int64_t k = 0; k < count; ++k) {
    Real* out = coefficients + found * kRows;
    if (points.own_in(list[k]) ? find_coefficients<true>(p, points, rows, list[k], out)
                               : find_coefficients<false>(p, points, rows, list[k], out)) {
      tiles[found] = Tile(p, list[k]).data;
      columns[found++] = span.column(list[k]);
    }
    if (found == kTilesAtOnce || (k + 1 == count && found > 0)) {
      add_gradients_of_tiles(p, points, tiles, found, coefficients, d_z, columns);
      found = 0;
    }
  }
}

static void backward(const JointBackward& a, int64_t task) {
  const JointPlan& p = *a.plan;
  const int64_t group = task / a.partial->blocks, block = task % a.partial->blocks, width = p.x.dims * kRows;
  const int64_t all_blocks = (p.x.rows + kRows - 1) / kRows, all_tiles = tiles_of(p);
  const int64_t begin = group * all_blocks / a.partial->groups, end = (group + 1) * all_blocks / a.partial->groups;
  const int64_t first_tile = block * all_tiles / a.partial->blocks;
  const int64_t end_tile = (block + 1) * all_tiles / a.partial->blocks;
  const Scratch memory(width * int64_t(sizeof(Real)));
  Real* d_z = memory.as<Real>();
  std::vector<double> row_sums(size_t((end - begin) * width));
  for (int64_t first = first_tile; first < end_tile; first += kTilesPerSum) {
    const int64_t last = std::min(first + kTilesPerSum, end_tile);
    SpanGradients span(p, first, last);
    for (int64_t b = begin; b < end; ++b) {
      Points points(p, b);
      std::fill_n(d_z, width, Real{});
      add_gradients_of_block(a, points, span, last, d_z);
      double* sums = row_sums.data() + (b - begin) * width;
      for (int64_t d = 0; d < p.x.dims; ++d) {
        float of_rows[kRows];
        fold_rows(d_z + d * kRows, of_rows);
        for (int r = 0; r < kRows; ++r) sums[d * kRows + r] += double(of_rows[r]);
      }
      if ((b - begin) % kBlocksPerSum == kBlocksPerSum - 1) span.carry();
    }
    span.carry();
    float* columns = a.partial->columns.as<float>() + (group * all_tiles + first) * span.column_size;
    std::copy(span.totals.begin(), span.totals.end(), columns);
  }
  float* rows = a.partial->rows.as<float>() + (block * all_blocks + begin) * width;
  std::copy(row_sums.begin(), row_sums.end(), rows);
}

// Adds the sums of all tasks to the gradients of a block of points.
static void add_gradients_of_rows(const JointBackward& a, int64_t b) {
  const JointPlan& p = *a.plan;
  const int64_t width = p.x.dims * kRows, all_blocks = (p.x.rows + kRows - 1) / kRows;
  const Points points(p, b);
  for (int64_t k = 0; k < p.x.dims; ++k) {
    double sums[kRows] = {};
    for (int64_t block = 0; block < a.partial->blocks; ++block) {
      const float* rows = a.partial->rows.as<float>() + (block * all_blocks + b) * width + k * kRows;
      for (int r = 0; r < kRows; ++r) sums[r] += double(rows[r]);
    }
    float* d_z = a.gradients->d_z + p.order.dims[size_t(k)] * p.x.rows;
    for (int64_t r = 0; r < points.count; ++r)
      d_z[p.order.rows[size_t(points.first + r)]] += float(-2 * kLn2 * sums[r]);
  }
}

// And to those of a tile of components.
static void add_gradients_of_columns(const JointBackward& a, int64_t i) {
  const JointPlan& p = *a.plan;
  const Tile tile(p, i);
  const int64_t column_size = (2 * p.x.dims + 1) * kWidth;
  const auto sum = [&](int64_t column, double (&sums)[kWidth]) {
    std::fill_n(sums, kWidth, 0.0);
    for (int64_t group = 0; group < a.partial->groups; ++group) {
      const float* columns = a.partial->columns.as<float>() + (group * tiles_of(p) + i) * column_size + column * kWidth;
      for (int64_t lane = 0; lane < kWidth; ++lane) sums[lane] += double(columns[lane]);
    }
  };
  double total[kWidth], by_mean[kWidth], by_square[kWidth];
  sum(2 * p.x.dims, total);
  for (int64_t k = 0; k < p.x.dims; ++k) {
    sum(2 * k, by_mean);
    sum(2 * k + 1, by_square);
    const int64_t first = p.order.dims[size_t(k)] * p.x.components;
    for (int64_t lane = 0; lane < std::min(kWidth, p.x.components - i * kWidth); ++lane) {
      const double precision = double(tile.precision(k)[lane]), p2 = 2 * kLn2 * precision * precision;
      const int64_t out = first + p.order.components[size_t(i * kWidth + lane)];
      a.gradients->d_mu[out] += float(p2 * by_mean[lane]);
      a.gradients->d_logvar[out] += float(0.5 * (p2 * by_square[lane] - total[lane]));
    }
  }
}

static void add_gradients(const JointBackward& a, int64_t task) {
  const int64_t blocks = kRowsPerChunk / kRows, tiles = kComponentsPerChunk / kWidth;
  const int64_t all_blocks = (a.plan->x.rows + kRows - 1) / kRows;
  for (int64_t b = task * blocks; b < std::min((task + 1) * blocks, all_blocks); ++b) add_gradients_of_rows(a, b);
  for (int64_t i = task * tiles; i < std::min((task + 1) * tiles, tiles_of(*a.plan)); ++i)
    add_gradients_of_columns(a, i);
}

#endif
