// Standard normal noise for a block of elements (common/philox.h says which words make which element).

// Fills `out` with the noise of elements [begin, begin + n): begin is a multiple of 4, and out has room for n rounded
// up to four vectors.
static void fill_normal(float* out, int64_t begin, int64_t n, const int64_t* rng) {
  using V = Vec<float>;
  using W = Vec<uint64_t>;
  using U = Vec<uint32_t>;
  constexpr int groups = kLanes<uint64_t>, lanes = kLanes<float>;
  constexpr uint64_t low = 0xffffffffu;
  W group;
  for (int i = 0; i < groups; ++i) group[i] = uint64_t(begin / 4) + uint64_t(i);
  // Words first, normals second: each loop alone is short enough for the processor to overlap its iterations, whose
  // dependent chains (ten rounds; logarithm, root) are long.
  U radius[kBlock / (2 * lanes)], angle[kBlock / (2 * lanes)];
  const int64_t steps = (n + 2 * lanes - 1) / (2 * lanes);
  for (int64_t i = 0; i < steps; ++i, group += uint64_t(groups)) {
    const PhiloxWords<W> w = philox_words<W>(group, uint64_t(rng[0]), uint64_t(rng[1]));
    radius[i] = U((w.w0 & low) | (w.w2 << 32));
    angle[i] = U((w.w1 & low) | (w.w3 << 32));
  }
  for (int64_t i = 0; i < steps; ++i) {
    V even, odd, first, second;
    box_muller<V>(radius[i], angle[i], even, odd);
    interleave(even, odd, first, second, std::make_index_sequence<lanes>());
    store(out + 2 * lanes * i, first);
    store(out + 2 * lanes * i + lanes, second);
  }
}

static void fill_normal(double* out, int64_t begin, int64_t n, const int64_t* rng) {
  using V = Vec<double>;
  using W = Vec<uint64_t>;
  constexpr int lanes = kLanes<double>;
  constexpr uint64_t low = 0xffffffffu;
  W group;
  for (int i = 0; i < lanes; ++i) group[i] = uint64_t(begin / 4) + uint64_t(i);
  for (int64_t i = 0; i < n; i += 4 * lanes, group += uint64_t(lanes)) {
    const PhiloxWords<W> w = philox_words<W>(group, uint64_t(rng[0]), uint64_t(rng[1]));
    V z[4];
    box_muller<V>(w.w0 & low, w.w1 & low, z[0], z[1]);
    box_muller<V>(w.w2 & low, w.w3 & low, z[2], z[3]);
    for (int lane = 0; lane < lanes; ++lane)
      for (int k = 0; k < 4; ++k) out[i + 4 * lane + k] = z[k][lane];
  }
}

// The noise of elements [begin, begin + n): the given one, or, where there is none, drawn from rng.
template <class T>
static const Compute<T>* noise_block(const Operand& given, const int64_t* rng, int64_t begin, int64_t n,
                                     Compute<T>* buffer) {
  using S = Compute<T>;
  if (rng != nullptr) {
    fill_normal(buffer, begin, n, rng);
  } else if constexpr (std::is_same_v<T, S>) {
    return read<T>(given, begin, n, buffer);
  } else {
    Buffer<T> narrow;
    const T* noise = read<T>(given, begin, n, narrow);
    for (int64_t i = 0; i < n; i += kLanes<S>) store(buffer + i, load<Vec<S>>(noise + i));
  }
  return buffer;
}
