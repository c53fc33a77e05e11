// Losses of elements, reduced in two stages: sums of fixed parts, and their sum. Which parts is up to the shape alone,
// and each sum has an order, so the result has the same bits on every card and in every run.
//
// A loss is a functor: loss(span, values) sets the values of a span, and may write other results of its elements.
#pragma once

#include "elements.cuh"

namespace fastib::cuda {

constexpr int kWarp = 32;
constexpr int64_t kPiece = 8192;  // elements of a long row that one block sums
constexpr int64_t kTile = 2048;   // elements of short rows that one block holds
constexpr unsigned kAllLanes = 0xffffffffu;

// The sum over the threads of a block, for all of them.
FASTIB_INLINE double block_sum(double value) {
  FASTIB_SHARED(of_warps, double[kThreads / kWarp]);
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) value += __shfl_xor_sync(kAllLanes, value, lanes);
  if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = value;
  __syncthreads();
  double total = 0;
#pragma unroll
  for (int warp = 0; warp < kThreads / kWarp; ++warp) total += of_warps[warp];
  __syncthreads();  // of_warps may be written again
  return total;
}

// Block by block the sums of the pieces of rows, or of whole rows if they have but one piece.
template <int N, class S, class Loss>
__global__ void __launch_bounds__(kThreads, kBlocks)
    sum_pieces(Loss loss, int64_t row, unsigned pieces, double* partials, S* out, double scale) {
  const unsigned r = blockIdx.x / pieces, piece = blockIdx.x % pieces;
  const int64_t first = r * row + piece * kPiece, end = piece + 1 == pieces ? (r + 1) * row : first + kPiece;
  double total = 0;
  for (int64_t begin = first / N * N + int64_t(threadIdx.x) * N; begin < end; begin += kThreads * N) {
    const Span<N> span(begin, first, end);
    S values[N], sum = 0;
    loss(span, values);
#pragma unroll
    for (int i = 0; i < N; ++i) sum += span.has(i) ? values[i] : S(0);
    total += double(sum);
  }
  total = block_sum(total);
  if (threadIdx.x != 0) return;
  if (pieces == 1) out[r] = S(total * scale);
  else partials[blockIdx.x] = total;
}

template <class S>
__global__ void __launch_bounds__(kThreads, kBlocks)
    finish_pieces(const double* partials, int64_t pieces, S* out, double scale) {
  double total = 0;
  for (int64_t i = threadIdx.x; i < pieces; i += kThreads) total += partials[blockIdx.x * pieces + i];
  total = block_sum(total);
  if (threadIdx.x == 0) out[blockIdx.x] = S(total * scale);
}

// Short rows, as many as fit a tile of shared memory: a team of threads sums each.
template <int N, class S, class Loss>
__global__ void __launch_bounds__(kThreads, kBlocks)
    sum_rows(Loss loss, int64_t rows, int64_t row, int64_t rows_of_block, int team, S* out, double scale) {
  FASTIB_SHARED(tile, S[kTile]);
  const int64_t first_row = blockIdx.x * rows_of_block;
  const int count = int(std::min(rows_of_block, rows - first_row));
  const int64_t first = first_row * row, end = first + count * row;
  for (int64_t begin = first / N * N + int64_t(threadIdx.x) * N; begin < end; begin += kThreads * N) {
    const Span<N> span(begin, first, end);
    S values[N];
    loss(span, values);
#pragma unroll
    for (int i = 0; i < N; ++i)
      if (span.has(i)) tile[begin + i - first] = values[i];
  }
  __syncthreads();
  const int member = int(threadIdx.x) % team;
  for (int r = int(threadIdx.x) / team; r - int(threadIdx.x) / team < count; r += kThreads / team) {
    double total = 0;
    if (r < count)
      for (int64_t i = member; i < row; i += team) total += double(tile[r * row + i]);
    for (int lanes = team / 2; lanes > 0; lanes /= 2) total += __shfl_xor_sync(kAllLanes, total, lanes);
    if (r < count && member == 0) out[first_row + r] = S(total * scale);
  }
}

// Sums down the columns of a matrix of elements, of K values each: a block has up to kThreads columns of a group of
// rows, and its threads share the rows among them.
struct ColumnParts {
  int64_t rows, columns, rows_of_group;
  int width;  // columns of a block

  ColumnParts(int64_t rows_, int64_t columns_)
      : rows(rows_), columns(columns_), width(int(std::clamp<int64_t>(columns_, 1, kThreads))) {
    constexpr int64_t most_groups = 512, rows_of_thread = 16;
    rows_of_group = std::max(divide_up(rows, most_groups), kThreads / width * rows_of_thread);
  }
  int64_t groups() const { return divide_up(rows, rows_of_group); }
  int64_t blocks_of_columns() const { return divide_up(columns, width); }
};

template <int K, class S, class Loss>
__global__ void __launch_bounds__(kThreads, kBlocks)
    sum_columns(Loss loss, ColumnParts parts, unsigned blocks_of_columns,
                double* partials) {  // [K, groups, columns]
  FASTIB_SHARED(sums, double[K][kThreads]);
  const int64_t group = blockIdx.x / blocks_of_columns, groups = gridDim.x / blocks_of_columns;
  const int sharers = kThreads / parts.width, sharer = int(threadIdx.x) / parts.width;
  const int64_t column = int64_t(blockIdx.x % blocks_of_columns) * parts.width + threadIdx.x % parts.width;
  const int64_t end = std::min((group + 1) * parts.rows_of_group, parts.rows), numel = parts.rows * parts.columns;
  double total[K] = {};
  if (sharer < sharers && column < parts.columns) {
    for (int64_t r = group * parts.rows_of_group + sharer; r < end; r += sharers) {
      S values[K];
      loss(Span<1>(r * parts.columns + column, 0, numel), values);
#pragma unroll
      for (int k = 0; k < K; ++k) total[k] += double(values[k]);
    }
  }
#pragma unroll
  for (int k = 0; k < K; ++k) sums[k][threadIdx.x] = total[k];
  __syncthreads();
  if (sharer != 0 || column >= parts.columns) return;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    double sum = 0;
    for (int other = 0; other < sharers; ++other) sum += sums[k][other * parts.width + threadIdx.x];
    partials[(k * groups + group) * parts.columns + column] = sum;
  }
}

// out[column] is the sum of those of `columns` that are a multiple of `count` beyond it.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks)
    finish_columns(const double* partials, int64_t groups, int64_t columns, Operand out, int64_t count, double scale) {
  const int64_t at = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= count) return;
  double total = 0;
  for (int64_t column = at; column < columns; column += count)
    for (int64_t group = 0; group < groups; ++group) total += partials[group * columns + column];
  reinterpret_cast<T*>(out.data)[out.offset(at)] = T(Compute<T>(total * scale));
}

inline double* doubles(const Tensor& t) { return static_cast<double*>(t.data_ptr()); }

// The losses themselves, of S.
template <class S, class Loss>
struct KeepLoss {
  Loss loss;
  Operand out;

  template <int N>
  __device__ void operator()(const Span<N>& span) const {
    S values[N];
    loss(span, values);
    write<S>(out, span, values);
  }
};

template <int N, class S, class Loss>
void reduce_rows(const Device& device, const Loss& loss, int64_t row, const Tensor& out, double scale) {
  const int64_t rows = out.numel();
  S* results = static_cast<S*>(out.data_ptr());
  if (row <= kTile / 2) {
    int64_t rows_of_block = kTile / std::max<int64_t>(row, 1);
    if (rows_of_block >= N) rows_of_block -= rows_of_block % N;  // blocks then begin with a whole vector
    int team = 1;
    while (team < kWarp && team < row && 2 * team * rows_of_block <= kThreads) team *= 2;
    FASTIB_RUN(device, (sum_rows<N, S, Loss>), divide_up(rows, rows_of_block), kThreads, loss, rows, row, rows_of_block,
               team, results, scale);
    return;
  }
  const int64_t pieces = divide_up(row, kPiece);
  const Tensor partials = output({pieces > 1 ? rows * pieces : 0}, ScalarType::Double, out);
  FASTIB_RUN(device, (sum_pieces<N, S, Loss>), rows * pieces, kThreads, loss, row, unsigned(pieces), doubles(partials),
             results, scale);
  if (pieces > 1) FASTIB_RUN(device, finish_pieces<S>, rows, kThreads, doubles(partials), pieces, results, scale);
}

// The result of reducing a loss over `elements`, tensors of T, times `scale`.
template <class T, class Loss>
Tensor reduce(const Loss& loss, const Tensor& elements, int64_t reduction, double scale) {
  using S = Compute<T>;
  const auto kind = ReductionKind(reduction);
  const ScalarType dtype = accumulate_type(elements.scalar_type());
  const Device device(elements);
  const auto sizes = elements.sizes();
  const int64_t dims = elements.dim(), numel = elements.numel();
  std::vector<int64_t> shape;
  if (kind == ReductionKind::none) {
    const Tensor out = output_like(elements, dtype);
    run_each_group<kGroup<T>>(elements, KeepLoss<S, Loss>{loss, Operand(out)}, numel);
    return out;
  }
  if (kind == ReductionKind::sample) shape.assign(sizes.begin(), sizes.end() - (dims > 0));
  if (kind == ReductionKind::batch) shape.assign(sizes.begin() + (dims > 0), sizes.end());
  const Tensor out = output(shape, dtype, elements);
  if (kind == ReductionKind::sum) reduce_rows<kGroup<T>, S>(device, loss, numel, out, scale);
  if (kind == ReductionKind::sample)
    reduce_rows<kGroup<T>, S>(device, loss, dims > 0 ? sizes[dims - 1] : 1, out, scale);
  if constexpr (Loss::kSummedOverBatch) {
    if (kind == ReductionKind::batch) {
      const ColumnParts parts(dims > 0 ? sizes[0] : 1, out.numel());
      const Tensor partials = output({parts.groups() * parts.columns}, ScalarType::Double, elements);
      FASTIB_RUN(device, (sum_columns<1, S, Loss>), parts.groups() * parts.blocks_of_columns(), kThreads, loss, parts,
                 unsigned(parts.blocks_of_columns()), doubles(partials));
      FASTIB_RUN(device, finish_columns<S>, divide_up(parts.columns, kThreads), kThreads, doubles(partials),
                 parts.groups(), parts.columns, Operand(out), parts.columns, scale);
    }
  }
  return out;
}

}  // namespace fastib::cuda
