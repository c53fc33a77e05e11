// Information Dropout: multiplicative log-normal noise and its KL in one pass, and the gradients in another.
#include "reduce.cuh"

namespace fastib::cuda {

// A scalar tensor of any dtype, read on the device; 0 where there is none.
struct ScalarOperand {
  const void* data = nullptr;
  ScalarType dtype = ScalarType::Float;

  explicit ScalarOperand(const MaybeTensor& t) {
    if (t) data = t->const_data_ptr(), dtype = t->scalar_type();
  }
  __device__ double value() const {
    if (data == nullptr) return 0;
    switch (dtype) {
      case ScalarType::Float: return *static_cast<const float*>(data);
      case ScalarType::Half: return *static_cast<const Half*>(data);
      case ScalarType::BFloat16: return *static_cast<const BFloat16*>(data);
      default: return *static_cast<const double*>(data);
    }
  }
};

struct DropoutOptions {
  ScalarOperand mean, log_std;  // of the log-normal prior
  bool log_normal, mask_zero, mean_one;
};

template <class S>
struct DropoutPrior {
  S mean, log_std, inverse, shift;

  explicit __device__ DropoutPrior(const DropoutOptions& o)
      : mean(S(o.mean.value())),
        log_std(S(o.log_std.value())),
        inverse(o.log_normal ? S(::exp(-o.log_std.value())) : S(1)),
        shift(o.mean_one ? S(1) : S(0)) {}
  __device__ DropoutKl<S> kl(S x, S log_std_of_x, S std) const {
    return dropout_kl_log_normal<S>(x, log_std_of_x, std, mean, log_std, inverse, shift);
  }
};

template <class T>
struct Dropout {
  static constexpr bool kSummedOverBatch = false;
  DropoutOptions o;
  Operand x, log_std, noise;
  const int64_t* rng;
  Operand z;

  template <int N>
  __device__ void operator()(const Span<N>& span, Compute<T> (&kl)[N]) const {
    using S = Compute<T>;
    const DropoutPrior<S> prior(o);
    S f[N], a[N], eps[N];
    read<T>(x, span, f);
    read<T>(log_std, span, a);
    read_noise<T>(noise, rng, span, eps);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const S std = exponential<S>(a[i]).value;
      eps[i] = dropout_sample<S>(f[i], dropout_noise<S>(std, eps[i], prior.shift));
      if (o.log_normal) kl[i] = prior.kl(f[i], a[i], std).kl;
      else kl[i] = o.mask_zero && !(f[i] > S(0)) ? S(0) : -a[i];
    }
    write<T>(z, span, eps);
  }
};

template <class T>
struct DropoutBackward {
  DropoutOptions o;
  Operand grad_z, grad_kl;  // either may be absent
  Operand x, log_std, noise;
  const int64_t* rng;
  Operand d_x, d_log_std;  // those not asked for are absent
  double scale;

  // by_prior are the gradients by the prior's mean and its log_std, of all elements of the span.
  template <int N>
  __device__ void evaluate(const Span<N>& span, Compute<T> (&by_prior)[2]) const {
    using S = Compute<T>;
    const DropoutPrior<S> prior(o);
    S gz[N], gk[N], f[N], a[N], eps[N];
    read<T>(grad_z, span, gz);
    read<S>(grad_kl, span, gk);
    read<T>(x, span, f);
    read<T>(log_std, span, a);
    const bool noisy = grad_z.present();  // where the KL alone is used, the noise may overflow
    if (noisy) read_noise<T>(noise, rng, span, eps);
    by_prior[0] = by_prior[1] = S(0);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const S std = exponential<S>(a[i]).value, g = gk[i] * S(scale);
      S by_x = 0, by_log_std = 0;
      if (noisy) {
        const S factor = dropout_noise<S>(std, eps[i], prior.shift);
        by_x = gz[i] * factor;
        const S by_exponent = gz[i] * dropout_sample<S>(f[i], factor);
        by_log_std = by_exponent;  // 0 under noise of 0, where x is finite; the exponent may be infinite
        if (factor != S(0)) by_log_std *= fma<S>(std, eps[i], -dropout_shift<S>(std, prior.shift));
      }
      if (!grad_kl.present()) {
        // Only z is used: log x and its derivatives may be infinite.
      } else if (o.log_normal) {
        const DropoutKl<S> k = prior.kl(f[i], a[i], std);
        by_x = fma<S>(g, k.d_x, by_x);
        by_log_std = fma<S>(g, k.d_log_std, by_log_std);
        by_prior[0] += span.has(i) ? g * k.d_prior_mean : S(0);
        by_prior[1] += span.has(i) ? g * k.d_prior_log_std : S(0);
      } else {
        by_log_std -= o.mask_zero && !(f[i] > S(0)) ? S(0) : g;
      }
      f[i] = by_x;
      a[i] = by_log_std;
    }
    write<T>(d_x, span, f);
    write<T>(d_log_std, span, a);
  }

  template <int N>
  __device__ void operator()(const Span<N>& span) const {
    Compute<T> by_prior[2];
    evaluate(span, by_prior);
  }
};

// A piece of all elements per block, and its two sums for the prior.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks)
    dropout_backward_with_prior(DropoutBackward<T> act, int64_t numel, double* partials) {  // [2, blocks]
  constexpr int N = kGroup<T>;
  const int64_t first = blockIdx.x * kPiece, end = std::min(first + kPiece, numel);
  double totals[2] = {};
  for (int64_t begin = first + int64_t(threadIdx.x) * N; begin < end; begin += kThreads * N) {
    Compute<T> by_prior[2];
    act.evaluate(Span<N>(begin, first, end), by_prior);
    totals[0] += double(by_prior[0]);
    totals[1] += double(by_prior[1]);
  }
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const double total = block_sum(totals[k]);
    if (threadIdx.x == 0) partials[k * gridDim.x + blockIdx.x] = total;
  }
}

std::tuple<Tensor, Tensor> information_dropout(const Tensor& x, const Tensor& log_std, const MaybeTensor& prior_mean,
                                               const MaybeTensor& prior_log_std, const MaybeTensor& noise,
                                               const MaybeTensor& rng, bool log_normal, bool mask_zero, bool mean_one,
                                               int64_t reduction, int64_t divisor) {
  check_reduction_with_noise(reduction);
  const Tensor z = output_like(x);
  const Tensor kl = with_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const Dropout<T> loss{{ScalarOperand(prior_mean), ScalarOperand(prior_log_std), log_normal, mask_zero, mean_one},
                          Operand(x),
                          Operand(log_std),
                          Operand(noise),
                          rng_words(rng),
                          Operand(z)};
    return reduce<T>(loss, x, reduction, scale_of(divisor));
  });
  return {z, kl};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> information_dropout_backward(
    const MaybeTensor& grad_z, const MaybeTensor& grad_kl, const Tensor& x, const Tensor& log_std,
    const MaybeTensor& prior_mean, const MaybeTensor& prior_log_std, const MaybeTensor& noise, const MaybeTensor& rng,
    bool log_normal, bool mask_zero, bool mean_one, int64_t reduction, int64_t divisor, int64_t wanted) {
  const Tensor d_x = gradient_like(x, wanted & 1), d_log_std = gradient_like(log_std, wanted & 2);
  const ScalarType dtype = accumulate_type(x.scalar_type());
  const Tensor d_mean = output({}, dtype, x), d_prior_log_std = output({}, dtype, x);
  with_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using S = Compute<T>;
    const DropoutBackward<T> act{
        {ScalarOperand(prior_mean), ScalarOperand(prior_log_std), log_normal, mask_zero, mean_one},
        Operand(grad_z),
        Operand::gradient(grad_kl, x, reduction),
        Operand(x),
        Operand(log_std),
        Operand(noise),
        rng_words(rng),
        Operand(d_x),
        Operand(d_log_std),
        scale_of(divisor)};
    const bool by_prior = log_normal && grad_kl;
    const int64_t blocks = by_prior ? divide_up(x.numel(), kPiece) : 0;
    const Device device(x);
    const Tensor partials = output({2 * blocks}, ScalarType::Double, x);
    if (by_prior)
      FASTIB_RUN(device, dropout_backward_with_prior<T>, blocks, kThreads, act, x.numel(), doubles(partials));
    else run_each_group<kGroup<T>>(x, act, x.numel());
    int64_t k = 0;
    for (const Tensor* out : {&d_mean, &d_prior_log_std})
      FASTIB_RUN(device, finish_pieces<S>, 1, kThreads, doubles(partials) + k++ * blocks, blocks,
                 static_cast<S*>(out->data_ptr()), 1.0);
  });
  return {d_x, d_log_std, d_mean, d_prior_log_std};
}

FASTIB_GPU_KERNELS(m) {
  m.impl("information_dropout", TORCH_BOX(&information_dropout));
  m.impl("information_dropout_backward", TORCH_BOX(&information_dropout_backward));
}

}  // namespace fastib::cuda
