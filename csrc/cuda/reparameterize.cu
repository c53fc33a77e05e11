// z = mu + exp(logvar / 2) eps, and the gradient by logvar (the one by mu is the gradient of z itself).
#include "elements.cuh"

namespace fastib::cuda {

template <class T>
struct ReparameterizeForward {
  Operand mu, logvar, noise;
  const int64_t* rng;
  Operand z;

  __device__ void operator()(const Span<kGroup<T>>& span) const {
    using S = Compute<T>;
    S m[kGroup<T>], lv[kGroup<T>], eps[kGroup<T>];
    read<T>(mu, span, m);
    read<T>(logvar, span, lv);
    read_noise<T>(noise, rng, span, eps);
#pragma unroll
    for (int i = 0; i < kGroup<T>; ++i) m[i] = fma<S>(exponential<S>(lv[i] * S(0.5)).value, eps[i], m[i]);
    write<T>(z, span, m);
  }
};

template <class T>
struct ReparameterizeBackward {
  Operand grad_z, logvar, noise;
  const int64_t* rng;
  Operand d_logvar;

  __device__ void operator()(const Span<kGroup<T>>& span) const {
    using S = Compute<T>;
    S g[kGroup<T>], lv[kGroup<T>], eps[kGroup<T>];
    read<T>(grad_z, span, g);
    read<T>(logvar, span, lv);
    read_noise<T>(noise, rng, span, eps);
#pragma unroll
    for (int i = 0; i < kGroup<T>; ++i) g[i] = g[i] * (S(0.5) * exponential<S>(lv[i] * S(0.5)).value * eps[i]);
    write<T>(d_logvar, span, g);
  }
};

Tensor reparameterize(const Tensor& mu, const Tensor& logvar, const MaybeTensor& noise, const MaybeTensor& rng) {
  Tensor z = output_like(mu);
  with_type(mu.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const ReparameterizeForward<T> act{Operand(mu), Operand(logvar), Operand(noise), rng_words(rng), Operand(z)};
    run_each_group<kGroup<T>>(mu, act, mu.numel());
  });
  return z;
}

Tensor reparameterize_backward(const Tensor& grad_z, const Tensor& logvar, const MaybeTensor& noise,
                               const MaybeTensor& rng) {
  Tensor d_logvar = output_like(logvar);
  with_type(logvar.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const ReparameterizeBackward<T> act{Operand(grad_z), Operand(logvar), Operand(noise), rng_words(rng),
                                        Operand(d_logvar)};
    run_each_group<kGroup<T>>(logvar, act, logvar.numel());
  });
  return d_logvar;
}

FASTIB_GPU_KERNELS(m) {
  m.impl("reparameterize", TORCH_BOX(&reparameterize));
  m.impl("reparameterize_backward", TORCH_BOX(&reparameterize_backward));
}

}  // namespace fastib::cuda
