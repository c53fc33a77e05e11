// Blocks of elements: read from and written to tensors of any dtype and strides, and reduced.

// Half a vector of 16-bit lanes: what one vector of float32 is read from.
typedef uint16_t HalfVector __attribute__((vector_size(kVectorBytes / 2)));

template <class T>
constexpr bool kIsBFloat16 = std::is_same_v<T, torch::headeronly::BFloat16>;

// Whether whole vectors of T convert to and from float32 in a few instructions.
template <class T, class S>
constexpr bool kConverts =
    std::is_same_v<S, float> &&
    (kIsBFloat16<T> || (std::is_same_v<T, torch::headeronly::Half> && FASTIB_VECTOR_BYTES >= 32));

template <class T>
FASTIB_INLINE Vec<float> widen_vector(HalfVector h) {
  if constexpr (kIsBFloat16<T>) return (Vec<float>)(__builtin_convertvector(h, Vec<uint32_t>) << 16);
#if FASTIB_VECTOR_BYTES == 32
  return (Vec<float>)_mm256_cvtph_ps((__m128i)h);
#elif FASTIB_VECTOR_BYTES == 64
  return (Vec<float>)_mm512_cvtph_ps((__m256i)h);
#endif
}

// To the nearest, ties to even.
template <class T>
FASTIB_INLINE Vec<uint16_t> narrow_vectors(Vec<float> a, Vec<float> b) {
  if constexpr (kIsBFloat16<T>) {
    const auto rounded = [](Vec<float> x) {
      const auto bits = (Vec<uint32_t>)x;
      return (Vec<uint16_t>)((bits + 0x7fffu + ((bits >> 16) & 1u)) | (Vec<uint32_t>)(x != x));
    };
    Vec<uint16_t> high_halves;
    odd_lanes(rounded(a), rounded(b), high_halves, std::make_index_sequence<kLanes<uint16_t>>());
    return high_halves;
  }
#if FASTIB_VECTOR_BYTES == 32
  return (Vec<uint16_t>)_mm256_set_m128i(_mm256_cvtps_ph((__m256)b, _MM_FROUND_TO_NEAREST_INT),
                                         _mm256_cvtps_ph((__m256)a, _MM_FROUND_TO_NEAREST_INT));
#elif FASTIB_VECTOR_BYTES == 64
  return (Vec<uint16_t>)_mm512_inserti64x4(
      _mm512_castsi256_si512(_mm512_cvtps_ph((__m512)a, _MM_FROUND_TO_NEAREST_INT)),
      _mm512_cvtps_ph((__m512)b, _MM_FROUND_TO_NEAREST_INT), 1);
#endif
}

// n elements of type T, `stride` apart, as the compute type S.
template <class T, class S>
static void widen(const T* p, int64_t stride, int64_t n, S* out) {
  int64_t i = 0;
  if constexpr (kConverts<T, S>) {
    if (stride == 1)
      for (HalfVector h; i + kLanes<S> <= n; i += kLanes<S>) {
        std::memcpy(&h, p + i, sizeof(h));
        store(out + i, widen_vector<T>(h));
      }
  }
  if (stride == 1)
    for (; i < n; ++i) out[i] = S(p[i]);
  else
    for (; i < n; ++i) out[i] = S(p[i * stride]);
}

template <class T, class S>
static void narrow(const S* in, int64_t n, T* p, int64_t stride) {
  int64_t i = 0;
  if constexpr (kConverts<T, S>) {
    if (stride == 1)
      for (; i + 2 * kLanes<S> <= n; i += 2 * kLanes<S>) {
        const Vec<uint16_t> both = narrow_vectors<T>(load<Vec<S>>(in + i), load<Vec<S>>(in + i + kLanes<S>));
        std::memcpy(static_cast<void*>(p + i), &both, sizeof(both));
      }
  }
  if (stride == 1)
    for (; i < n; ++i) p[i] = T(in[i]);
  else
    for (; i < n; ++i) p[i * stride] = T(in[i]);
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
  Buffer<S> buffer;
  for (int64_t row = first_row; row < end_row; row += rows_per_block) {
    const int64_t rows = std::min(rows_per_block, end_row - row);
    const S* values = loss(row * r.columns + first_column, rows * columns, buffer.values);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t c = 0; c < columns; ++c) sums[c] += double(values[i * columns + c]);
  }
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
