// Blocks of elements: read from and written to tensors of any strides, and reduced.

// Calls run(pointer, stride, count) for each run of equally spaced elements of x that makes up [begin, begin + n).
template <class T, class Run>
static void for_each_run(const Operand& x, int64_t begin, int64_t n, Run run) {
  T* p = reinterpret_cast<T*>(x.data);
  if (x.contiguous()) return run(p + begin, 1, n);
  int64_t index[kMaxDims], rest = begin;
  for (int d = x.dims - 1; d >= 0; --d) {
    index[d] = rest % x.sizes[d];
    rest /= x.sizes[d];
    p += index[d] * x.strides[d];
  }
  const int last = x.dims - 1;
  while (true) {
    const int64_t count = std::min(n, x.sizes[last] - index[last]);
    run(p, x.strides[last], count);
    n -= count;
    if (n == 0) return;
    p -= index[last] * x.strides[last];
    index[last] = 0;
    for (int d = last - 1; d >= 0; --d) {
      p += x.strides[d];
      if (++index[d] < x.sizes[d]) break;
      p -= x.sizes[d] * x.strides[d];
      index[d] = 0;
    }
  }
}

// A whole number of contiguous vectors is used where it lies.
template <class T>
FASTIB_INLINE bool in_place(const Operand& x, int64_t n) {
  return n % kLanes<Compute<T>> == 0 && x.contiguous();
}

// Elements [begin, begin + n) of x, a tensor of T: where they lie, or copied to `buffer`, whose last vector is then
// filled up with 0. A null operand, the gradient of an output that nobody used, reads as 0.
template <class T>
static const T* read(const Operand& x, int64_t begin, int64_t n, T* buffer) {
  if (!x) {
    std::fill_n(buffer, kBlock, T(0));
    return buffer;
  }
  if (in_place<T>(x, n)) return reinterpret_cast<const T*>(x.data) + begin;
  T* out = buffer;
  for_each_run<T>(x, begin, n, [&](const T* p, int64_t stride, int64_t count) {
    if (stride == 1) std::copy_n(p, count, out);
    else if (stride == 0) std::fill_n(out, count, *p);
    else
      for (int64_t i = 0; i < count; ++i) out[i] = p[i * stride];
    out += count;
  });
  for (; n % kLanes<Compute<T>> != 0; ++n) buffer[n] = T(0);
  return buffer;
}

// The gradient of a loss at i, times `scale`. It is the one tensor that kernels for 16 bits read as float, so that a
// NaN in it may have bits that round_to_bfloat16 would carry into others.
template <class T, class V>
FASTIB_INLINE V loss_gradient(const Scalar<V>* grad, int64_t i, double scale) {
  const V g = load<V>(grad + i) * Scalar<V>(scale);
  if constexpr (sizeof(T) == 2) return g == g ? g : splat<V>(Scalar<V>(NAN));
  else return g;
}

// Where to compute elements [begin, begin + n) of x; `write` then takes them there. Those of a null operand, an output
// that nobody wants, stay in the buffer.
template <class T>
static T* target(const Operand& x, int64_t begin, int64_t n, T* buffer) {
  return x && in_place<T>(x, n) ? reinterpret_cast<T*>(x.data) + begin : buffer;
}

// The same for an output that the kernel only stores to. One that the caches could not keep is written past them,
// without first reading the lines that it overwrites, where a vector is a whole line: in halves of lines it costs time
// instead.
template <class T>
struct Target {
  T* values;
  bool streamed;

  Target(const Operand& x, int64_t begin, int64_t n, T* buffer) : values(target<T>(x, begin, n, buffer)) {
    constexpr bool whole_lines = kVectorBytes == 64 && std::is_same_v<T, Compute<T>>;
    streamed = whole_lines && values != buffer && x.dims == 1 && x.sizes[0] * int64_t(sizeof(T)) >= kStreamedBytes &&
               reinterpret_cast<uintptr_t>(values) % kVectorBytes == 0;
  }
};

template <class V, class T>
FASTIB_INLINE void store(const Target<T>& to, int64_t i, V v) {
#if FASTIB_VECTOR_BYTES == 64
  if (to.streamed) return _mm512_stream_si512(reinterpret_cast<__m512i*>(to.values + i), (__m512i)v);
#endif
  store(to.values + i, v);
}

template <class T>
static void write(const Operand& x, int64_t begin, int64_t n, const T* values) {
  if (!x || (in_place<T>(x, n) && values == reinterpret_cast<const T*>(x.data) + begin)) return;
  const T* in = values;
  for_each_run<T>(x, begin, n, [&](T* p, int64_t stride, int64_t count) {
    if (stride == 1) std::copy_n(in, count, p);
    else
      for (int64_t i = 0; i < count; ++i) p[i * stride] = in[i];
    in += count;
  });
}

template <class T>
struct alignas(64) Buffer {
  T values[kBlock];
  operator T*() { return values; }
};

template <class S>
static S sum(const S* values, int64_t n) {
  using V = Vec<S>;
  constexpr int lanes = kLanes<S>;
  V a{}, b{}, c{}, d{};  // four chains of additions: the latency of one is four times its issue
  int64_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    a += load<V>(values + i);
    b += load<V>(values + i + lanes);
    c += load<V>(values + i + 2 * lanes);
    d += load<V>(values + i + 3 * lanes);
  }
  S total = i > 0 ? sum_lanes<S>((a + b) + (c + d)) : S(0);
  for (; i < n; ++i) total += values[i];
  return total;
}

// The blocks of a chunk: up to n elements each from begin, begin + step, ..., before end.
struct Blocks {
  int64_t begin, end, step, n;
};

static Blocks blocks_of(int64_t chunk, int64_t numel) {
  return {chunk * kChunk, std::min((chunk + 1) * kChunk, numel), kBlock, kBlock};
}

// Whole rows, as many as fit a block, or part of one row.
static Blocks blocks_of(const Columns& c, int64_t chunk) {
  const int64_t first_column = chunk % c.blocks() * kBlock, width = std::min(c.width(), c.columns - first_column);
  const int64_t first_row = chunk / c.blocks() * c.rows_per_chunk;
  const int64_t end_row = std::min(first_row + c.rows_per_chunk, c.numel / c.columns);
  const int64_t rows = c.blocks() == 1 ? kBlock / width : 1;
  return {first_row * c.columns + first_column, end_row * c.columns, rows * c.columns, rows * width};
}

// Calls act(begin, n) for each block.
template <class Act>
static void for_each_block(const Blocks& b, Act act) {
  for (int64_t begin = b.begin; begin < b.end; begin += b.step) act(begin, std::min(b.n, b.end - begin));
}

template <class Act>
static void for_each_block(int64_t chunk, int64_t numel, Act act) {
  for_each_block(blocks_of(chunk, numel), act);
}

// Adds the n values of a block to the partial sums of its chunk.
template <class S>
static void add_to_columns(const Columns& c, int64_t chunk, const S* values, int64_t n, double* partials) {
  double* sums = partials + chunk * c.width();
  if (c.columns == 1) {
    sums[0] += double(sum<S>(values, n));
    return;
  }
  const int64_t width = std::min(c.width(), c.columns - chunk % c.blocks() * kBlock);
  for (int64_t i = 0; i < n; i += width)
    for (int64_t column = 0; column < width; ++column) sums[column] += double(values[i + column]);
}

template <class S, class Loss>
static void reduce_columns(const Reduction& r, int64_t chunk, Loss loss) {
  Buffer<S> buffer;
  for_each_block(blocks_of(r.columns, chunk), [&](int64_t begin, int64_t n) {
    add_to_columns(r.columns, chunk, loss(begin, n, buffer.values), n, const_cast<double*>(r.partials.data()));
  });
}

// Reduces one chunk of the per-element loss that loss(begin, n, room) computes block by block. It returns where its
// values lie: in `room`, or elsewhere if they lay there before.
template <class S, class Loss>
static void reduce_chunk(const Reduction& r, int64_t chunk, Loss loss) {
  if (r.kind == ReductionKind::batch) return reduce_columns<S>(r, chunk, loss);
  Buffer<S> buffer;
  double* partial = const_cast<double*>(r.partials.data()) + 2 * chunk;
  double total = 0;
  int64_t left_in_row = r.row - (r.kind == ReductionKind::sample ? chunk * kChunk % r.row : 0);
  bool begun = left_in_row != r.row;
  for_each_block(chunk, r.numel, [&](int64_t begin, int64_t n) {
    if (r.kind == ReductionKind::none) {
      S* values = target<S>(r.out_elements, begin, n, buffer);
      return write<S>(r.out_elements, begin, n, loss(begin, n, values));
    }
    const S* values = loss(begin, n, buffer.values);
    if (r.kind == ReductionKind::sum) {
      total += double(sum<S>(values, n));
      return;
    }
    for (int64_t i = 0; i < n;) {
      const int64_t count = std::min(n - i, left_in_row);
      total += double(sum<S>(values + i, count));
      i += count;
      left_in_row -= count;
      if (left_in_row > 0) continue;
      if (begun) partial[0] = total;
      else static_cast<S*>(r.out.data_ptr())[(begin + i) / r.row - 1] = S(total * r.scale);
      begun = false;
      total = 0;
      left_in_row = r.row;
    }
  });
  if (r.kind == ReductionKind::sum) partial[0] = total;
  if (r.kind == ReductionKind::sample && left_in_row < r.row) partial[begun ? 0 : 1] = total;
}
