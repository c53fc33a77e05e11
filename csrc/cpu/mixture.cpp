// The parts of a mixture that are not per instruction set.
#include "mixture.h"

namespace fastib {

Mixture::Mixture(const Tensor& z_, const Tensor& mu_, const Tensor& logvar_, const MaybeTensor& log_weights_,
                 Weights weights, int64_t row_offset_)
    : PairWeighting(weights),
      dtype(z_.scalar_type()),
      rows(z_.size(0)),
      components(mu_.size(0)),
      dims(mu_.size(1)),
      z(z_),
      mu(mu_),
      logvar(logvar_),
      row_offset(row_offset_),
      log_weights(log_weights_),
      padded((components + kWidest - 1) / kWidest * kWidest),
      shift(size_t(dims)),
      largest_of_chunks(dims * component_chunks() * int64_t(sizeof(double))),
      packed(padded * (3 * dims + 1) * element_size()) {}

void Mixture::choose_shifts() {
  for (int64_t d = 0; d < dims; ++d) {
    double largest = -double(INFINITY);
    for (int64_t chunk = 0; chunk < component_chunks(); ++chunk)
      largest = std::max(largest, largest_of_chunks.as<double>()[chunk * dims + d]);
    shift[size_t(d)] = is_double() ? shift_for<double>(largest) : shift_for<float>(largest);
  }
}

PartialGradients::PartialGradients(int64_t rows_, int64_t components, int64_t dims, int64_t element_size)
    : rows(0), columns(0) {
  choose_tasks(rows_, components, dims);
  const auto padded = [](int64_t count) { return (count + kWidest - 1) / kWidest * kWidest; };
  rows = Scratch(blocks * padded(rows_) * dims * element_size);
  columns = Scratch(groups * padded(components) * (2 * dims + 1) * element_size);
}

// Doubles the number of groups or of blocks, whichever costs less memory: a group has two numbers per component and
// dimension, a block one per row and dimension.
void PartialGradients::choose_tasks(int64_t row_count, int64_t components, int64_t dims) {
  constexpr int64_t most_tasks = 32, pairs_per_task = 1 << 17, fewest_rows = 32, fewest_components = 128;
  const double pairs = double(row_count) * double(components) * double(dims);
  const auto wanted = int64_t(std::min(double(most_tasks), pairs / pairs_per_task));
  while (tasks() < wanted) {
    const bool more_groups = row_count >= 2 * groups * fewest_rows;
    const bool more_blocks = components >= 2 * blocks * fewest_components;
    if (!more_groups && !more_blocks) return;
    const bool group_is_cheaper = 2 * groups * components <= blocks * row_count;
    (more_groups && (group_is_cheaper || !more_blocks) ? groups : blocks) *= 2;
  }
}

}  // namespace fastib
