// The random words themselves, so that backends can be compared bit for bit: word k of counter `start + i` at [i, k].
#include "elements.cuh"

namespace fastib::cuda {

struct PhiloxWordsOf {
  const int64_t* rng;
  uint64_t start;
  int64_t* words;

  __device__ void operator()(const Span<1>& span) const {
    const auto w =
        ::fastib::cuda::philox_words<uint64_t>(start + uint64_t(span.begin), uint64_t(rng[0]), uint64_t(rng[1]));
    int64_t* out = words + 4 * span.begin;
    out[0] = int64_t(w.w0 & 0xffffffffu);
    out[1] = int64_t(w.w1 & 0xffffffffu);
    out[2] = int64_t(w.w2 & 0xffffffffu);
    out[3] = int64_t(w.w3 & 0xffffffffu);
  }
};

Tensor philox_words_op(const Tensor& rng, int64_t start, int64_t count) {
  Tensor words = output({count, 4}, ScalarType::Long, rng);
  const PhiloxWordsOf act{static_cast<const int64_t*>(rng.const_data_ptr()), uint64_t(start),
                          static_cast<int64_t*>(words.data_ptr())};
  run_each_group<1>(rng, act, count);
  return words;
}

FASTIB_GPU_KERNELS(m) { m.impl("philox_words", TORCH_BOX(&philox_words_op)); }

}  // namespace fastib::cuda
