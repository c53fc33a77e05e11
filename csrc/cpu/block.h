// Blocks of elements: read from and written to tensors of any dtype and strides, and reduced.

// n elements of type T, `stride` apart, as the compute type S.
template <class T, class S>
static void widen(const T* p, int64_t stride, int64_t n, S* out) {
  if constexpr (std::is_same_v<T, torch::headeronly::BFloat16> && std::is_same_v<S, float>) {
    const char* bytes = reinterpret_cast<const char*>(p);
    for (int64_t i = 0; i < n; ++i) {
      uint16_t half;
      std::memcpy(&half, bytes + 2 * i * stride, 2);
      const uint32_t bits = uint32_t(half) << 16;
      std::memcpy(out + i, &bits, 4);
    }
    return;
  }
#if FASTIB_VECTOR_BYTES >= 32
  if constexpr (std::is_same_v<T, torch::headeronly::Half> && std::is_same_v<S, float>) {
    if (stride == 1)
      for (; n >= 8; n -= 8, p += 8, out += 8)
        _mm256_storeu_ps(out, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
#endif
  if (stride == 1)
    for (int64_t i = 0; i < n; ++i) out[i] = S(p[i]);
  else
    for (int64_t i = 0; i < n; ++i) out[i] = S(p[i * stride]);
}

template <class T, class S>
static void narrow(const S* in, int64_t n, T* p, int64_t stride) {
  if constexpr (std::is_same_v<T, torch::headeronly::BFloat16> && std::is_same_v<S, float>) {
    char* bytes = reinterpret_cast<char*>(p);
    for (int64_t i = 0; i < n; ++i) {
      uint32_t bits;
      std::memcpy(&bits, in + i, 4);
      const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
      const uint16_t half = uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
      std::memcpy(bytes + 2 * i * stride, &half, 2);
    }
    return;
  }
#if FASTIB_VECTOR_BYTES >= 32
  if constexpr (std::is_same_v<T, torch::headeronly::Half> && std::is_same_v<S, float>) {
    if (stride == 1)
      for (; n >= 8; n -= 8, p += 8, in += 8)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                         _mm256_cvtps_ph(_mm256_loadu_ps(in), _MM_FROUND_TO_NEAREST_INT));
  }
#endif
  if (stride == 1)
    for (int64_t i = 0; i < n; ++i) p[i] = T(in[i]);
  else
    for (int64_t i = 0; i < n; ++i) p[i * stride] = T(in[i]);
}

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

template <class Act>
static void with_type(ScalarType dtype, Act act) {
  switch (dtype) {
    case ScalarType::Double: return act(double());
    case ScalarType::Float: return act(float());
    case ScalarType::Half: return act(torch::headeronly::Half());
    case ScalarType::BFloat16: return act(torch::headeronly::BFloat16());
    default: STD_TORCH_CHECK(false, "fastib: unsupported dtype");
  }
}

template <class S>
constexpr ScalarType kTypeOf = sizeof(S) == 8 ? ScalarType::Double : ScalarType::Float;

// A whole number of vectors of contiguous S is used where it lies.
template <class S>
FASTIB_INLINE bool in_place(const Operand& x, int64_t n) {
  return x.dtype == kTypeOf<S> && n % kLanes<S> == 0 && x.contiguous();
}

// Elements [begin, begin + n) of x: where they lie, or copied to `buffer`, whose last vector is then filled up with 0.
// A null operand, the gradient of an output that nobody used, reads as 0.
template <class S>
static const S* read(const Operand& x, int64_t begin, int64_t n, S* buffer) {
  if (!x) {
    std::fill_n(buffer, kBlock, S(0));
    return buffer;
  }
  if (in_place<S>(x, n)) return reinterpret_cast<const S*>(x.data) + begin;
  S* out = buffer;
  with_type(x.dtype, [&](auto t) {
    for_each_run<decltype(t)>(x, begin, n, [&](auto* p, int64_t stride, int64_t count) {
      widen(p, stride, count, out);
      out += count;
    });
  });
  for (; n % kLanes<S> != 0; ++n) buffer[n] = 0;
  return buffer;
}

// Where to compute elements [begin, begin + n) of x; `write` then takes them there.
template <class S>
static S* target(const Operand& x, int64_t begin, int64_t n, S* buffer) {
  return in_place<S>(x, n) ? reinterpret_cast<S*>(x.data) + begin : buffer;
}

template <class S>
static void write(const Operand& x, int64_t begin, int64_t n, const S* values) {
  if (in_place<S>(x, n) && values == reinterpret_cast<const S*>(x.data) + begin) return;
  const S* in = values;
  with_type(x.dtype, [&](auto t) {
    for_each_run<decltype(t)>(x, begin, n, [&](auto* p, int64_t stride, int64_t count) {
      narrow(in, count, p, stride);
      in += count;
    });
  });
}

template <class S>
struct alignas(64) Buffer {
  S values[kBlock];
  operator S*() { return values; }
};

template <class S>
static S sum(const S* values, int64_t n) {
  using V = Vec<S>;
  constexpr int lanes = kLanes<S>;
  V a{}, b{};
  int64_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
    a += load<V>(values + i);
    b += load<V>(values + i + lanes);
  }
  S total = i > 0 ? sum_lanes<S>(a + b) : S(0);
  for (; i < n; ++i) total += values[i];
  return total;
}

// Calls act(begin, n) for each block of a chunk.
template <class Act>
static void for_each_block(int64_t chunk, int64_t numel, Act act) {
  const int64_t end = std::min((chunk + 1) * kChunk, numel);
  for (int64_t begin = chunk * kChunk; begin < end; begin += kBlock) act(begin, std::min(kBlock, end - begin));
}

template <class S, class Loss>
static void reduce_columns(const Reduction& r, int64_t chunk, Loss loss) {
  const int64_t width = std::min(r.columns, kBlock), blocks = r.column_blocks();
  const int64_t first_column = chunk % blocks * kBlock, columns = std::min(width, r.columns - first_column);
  const int64_t first_row = chunk / blocks * r.rows_per_chunk;
  const int64_t end_row = std::min(first_row + r.rows_per_chunk, r.numel / r.columns);
  const int64_t rows_per_block = blocks == 1 ? kBlock / columns : 1;
  double* sums = const_cast<double*>(r.partials.data()) + chunk * width;
  std::fill_n(sums, width, 0.0);
  Buffer<S> values;
  for (int64_t row = first_row; row < end_row; row += rows_per_block) {
    const int64_t rows = std::min(rows_per_block, end_row - row);
    loss(row * r.columns + first_column, rows * columns, values.values);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t c = 0; c < columns; ++c) sums[c] += double(values[i * columns + c]);
  }
}

// Reduces one chunk of the per-element loss that loss(begin, n, values) computes block by block.
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
      loss(begin, n, values);
      return write<S>(r.out_elements, begin, n, values);
    }
    loss(begin, n, buffer.values);
    if (r.kind == ReductionKind::sum) {
      total += double(sum<S>(buffer, n));
      return;
    }
    for (int64_t i = 0; i < n;) {
      const int64_t count = std::min(n - i, left_in_row);
      total += double(sum<S>(buffer + i, count));
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
