// z and the KL to N(0, 1) in one pass over mu and logvar; both gradients in another, with the noise drawn again.
#include "reduce.cuh"

namespace fastib::cuda {

template <class T>
struct SampleAndKl {
  static constexpr bool kSummedOverBatch = false;
  Operand mu, logvar, noise;
  const int64_t* rng;
  Operand z;

  template <int N>
  __device__ void operator()(const Span<N>& span, Compute<T> (&kl)[N]) const {
    using S = Compute<T>;
    S m[N], lv[N], eps[N];
    read<T>(mu, span, m);
    read<T>(logvar, span, lv);
    read_noise<T>(noise, rng, span, eps);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const Exp<S> half = exponential<S>(lv[i] * S(0.5));
      kl[i] = kl_standard<S>(m[i], expm1_minus_logvar<S>(half));
      eps[i] = fma<S>(half.value, eps[i], m[i]);
    }
    write<T>(z, span, eps);
  }
};

template <class T>
struct SampleAndKlBackward {
  Operand grad_z, grad_kl;  // either may be absent
  Operand mu, logvar, noise;
  const int64_t* rng;
  Operand d_mu, d_logvar;  // those not asked for are absent
  double scale;

  template <int N>
  __device__ void operator()(const Span<N>& span) const {
    using S = Compute<T>;
    S gz[N], gk[N], m[N], lv[N], eps[N];
    read<T>(grad_z, span, gz);
    read<S>(grad_kl, span, gk);
    read<T>(mu, span, m);
    read<T>(logvar, span, lv);
    const bool noisy = grad_z.present() && d_logvar.present();  // the KL has no noise, nor has the gradient by mu
    if (noisy) read_noise<T>(noise, rng, span, eps);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const Exp<S> half = exponential<S>(lv[i] * S(0.5));
      const S g = gk[i] * S(scale);
      S by_logvar = noisy ? gz[i] * (half.value * eps[i]) : S(0);
      // Where z alone is used, mu may be infinite and e^logvar may overflow.
      if (grad_kl.present()) by_logvar = fma<S>(g, expm1_logvar<S>(half), by_logvar);
      m[i] = grad_kl.present() ? fma<S>(g, m[i], gz[i]) : gz[i];
      lv[i] = S(0.5) * by_logvar;
    }
    write<T>(d_mu, span, m);
    write<T>(d_logvar, span, lv);
  }
};

std::tuple<Tensor, Tensor> reparameterize_with_kl(const Tensor& mu, const Tensor& logvar, const MaybeTensor& noise,
                                                  const MaybeTensor& rng, int64_t reduction, int64_t divisor) {
  check_reduction_with_noise(reduction);
  const Tensor z = output_like(mu);
  const Tensor kl = with_type(mu.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const SampleAndKl<T> loss{Operand(mu), Operand(logvar), Operand(noise), rng_words(rng), Operand(z)};
    return reduce<T>(loss, mu, reduction, scale_of(divisor));
  });
  return {z, kl};
}

std::tuple<Tensor, Tensor> reparameterize_with_kl_backward(const MaybeTensor& grad_z, const MaybeTensor& grad_kl,
                                                           const Tensor& mu, const Tensor& logvar,
                                                           const MaybeTensor& noise, const MaybeTensor& rng,
                                                           int64_t reduction, int64_t divisor, int64_t wanted) {
  const Tensor d_mu = gradient_like(mu, wanted & 1), d_logvar = gradient_like(logvar, wanted & 2);
  with_type(mu.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const SampleAndKlBackward<T> act{Operand(grad_z),  Operand::gradient(grad_kl, mu, reduction),
                                     Operand(mu),      Operand(logvar),
                                     Operand(noise),   rng_words(rng),
                                     Operand(d_mu),    Operand(d_logvar),
                                     scale_of(divisor)};
    run_each_group<kGroup<T>>(mu, act, mu.numel());
  });
  return {d_mu, d_logvar};
}

FASTIB_GPU_KERNELS(m) {
  m.impl("reparameterize_with_kl", TORCH_BOX(&reparameterize_with_kl));
  m.impl("reparameterize_with_kl_backward", TORCH_BOX(&reparameterize_with_kl_backward));
}

}  // namespace fastib::cuda
