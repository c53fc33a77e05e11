// The parts of a reduction that are not per instruction set: its geometry, and the last step, in a fixed order.
#include "cpu.h"

namespace fastib {

Columns::Columns(int64_t numel_, int64_t columns_)
    : numel(numel_),
      columns(columns_),
      // Enough rows that the partial sums stay small beside the input.
      rows_per_chunk(std::max<int64_t>(64, 4 * kChunk / std::max<int64_t>(columns_, 1))) {}

int64_t Columns::chunks() const {
  if (numel == 0) return 0;
  const int64_t rows = numel / columns;
  return (rows + rows_per_chunk - 1) / rows_per_chunk * blocks();
}

double Columns::total(const std::vector<double>& partials, int64_t column) const {
  double sum = 0;
  for (int64_t chunk = column / kBlock; chunk < chunks(); chunk += blocks())
    sum += partials[size_t(chunk * width() + column % kBlock)];
  return sum;
}

static int64_t elements_per_entry(const Tensor& t) {
  return t.dim() > 0 && t.size(0) > 0 ? t.numel() / t.size(0) : t.numel();
}

Reduction::Reduction(const Tensor& t, int64_t kind_, double scale_)
    : kind(ReductionKind(kind_)), scale(scale_), numel(t.numel()), columns(numel, elements_per_entry(t)) {
  const int64_t dims = t.dim();
  row = dims > 0 ? t.size(dims - 1) : 1;
  const ScalarType dtype = accumulate_type(t.scalar_type());
  if (kind == ReductionKind::none) {
    out = output_like(t, dtype);
    out_elements = Operand(out);
    return;
  }
  const auto sizes = t.sizes();
  std::vector<int64_t> shape;
  if (kind == ReductionKind::sample) shape.assign(sizes.begin(), sizes.end() - (dims > 0));
  if (kind == ReductionKind::batch) shape.assign(sizes.begin() + (dims > 0), sizes.end());
  out = output(shape, dtype, t);
  if (kind == ReductionKind::batch) partials = columns.partials();
  else partials.resize(size_t(2 * chunks()));
}

int64_t Reduction::chunks() const { return kind == ReductionKind::batch ? columns.chunks() : chunks_of(numel); }

namespace {

template <class S>
void finish_sum(const Reduction& r, S* out) {
  double sum = 0;
  for (size_t i = 0; i < r.partials.size(); i += 2) sum += r.partials[i];
  *out = S(sum * r.scale);
}

// Rows inside one chunk were written by it. What is left are the rows that cross chunks: a chunk's first partial sum
// belongs to the row that it found begun, its second to the row that it left unfinished.
template <class S>
void finish_samples(const Reduction& r, S* out) {
  if (r.row == 0) std::fill_n(out, r.out.numel(), S(0));
  double sum = 0;
  for (int64_t chunk = 0; chunk < r.chunks(); ++chunk) {
    const int64_t begin = chunk * kChunk, end = std::min(begin + kChunk, r.numel);
    const int64_t begun = begin / r.row;
    if (begin % r.row != 0) {
      sum += r.partials[2 * chunk];
      if ((begun + 1) * r.row <= end) out[begun] = S(sum * r.scale);
    }
    if (end % r.row != 0 && end / r.row * r.row >= begin) sum = r.partials[2 * chunk + 1];
  }
}

template <class S>
void finish_columns(const Reduction& r, S* out) {
  for (int64_t column = 0; column < r.out.numel(); ++column)
    out[column] = S(r.columns.total(r.partials, column) * r.scale);
}

template <class S>
void finish_as(const Reduction& r, S* out) {
  if (r.kind == ReductionKind::sum) finish_sum(r, out);
  if (r.kind == ReductionKind::sample) finish_samples(r, out);
  if (r.kind == ReductionKind::batch) finish_columns(r, out);
}

}  // namespace

Tensor Reduction::finish() {
  void* data = out.data_ptr();
  if (out.scalar_type() == ScalarType::Double) finish_as(*this, static_cast<double*>(data));
  else finish_as(*this, static_cast<float*>(data));
  return out;
}

}  // namespace fastib
