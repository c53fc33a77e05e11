// z and the KL to N(0, 1) in one pass over mu and logvar; both gradients in another, with the noise drawn again.
#ifndef FASTIB_ISA
#include "cpu.h"

namespace fastib {
struct ReparameterizeWithKlArguments {
  Operand mu, logvar, noise;
  const int64_t* rng;
  Operand z;
  Reduction* reduction;
};

struct ReparameterizeWithKlBackwardArguments {
  int64_t numel;
  double scale;
  Operand grad_z, grad_kl;  // either may be null
  Operand mu, logvar, noise;
  const int64_t* rng;
  Operand d_mu, d_logvar;  // those not asked for are null
};
}  // namespace fastib

#define FASTIB_KERNELS "reparameterize_with_kl.cpp"
#include "each_isa.h"

namespace fastib {

std::tuple<Tensor, Tensor> reparameterize_with_kl(const Tensor& mu, const Tensor& logvar, const MaybeTensor& noise,
                                                  const MaybeTensor& rng, int64_t reduction, int64_t divisor) {
  check_reduction_with_noise(reduction);
  Tensor z = output_like(mu);
  Reduction r(mu, reduction, scale_of(divisor));
  const ReparameterizeWithKlArguments a{Operand(mu), Operand(logvar), Operand(noise), rng_words(rng), Operand(z), &r};
  run_chunks(FASTIB_KERNEL_OF(mu.scalar_type(), forward), a, r.chunks());
  return {z, r.finish()};
}

std::tuple<Tensor, Tensor> reparameterize_with_kl_backward(const MaybeTensor& grad_z, const MaybeTensor& grad_kl,
                                                           const Tensor& mu, const Tensor& logvar,
                                                           const MaybeTensor& noise, const MaybeTensor& rng,
                                                           int64_t reduction, int64_t divisor, int64_t wanted) {
  Tensor d_mu = gradient_like(mu, wanted & 1), d_logvar = gradient_like(logvar, wanted & 2);
  const ReparameterizeWithKlBackwardArguments a{
      mu.numel(),    scale_of(divisor), Operand(grad_z), Operand::gradient(grad_kl, mu, reduction),
      Operand(mu),   Operand(logvar),   Operand(noise),  rng_words(rng),
      Operand(d_mu), Operand(d_logvar)};
  run_chunks(FASTIB_KERNEL_OF(mu.scalar_type(), backward), a, chunks_of(a.numel));
  return {d_mu, d_logvar};
}

STABLE_TORCH_LIBRARY_IMPL(fastib, CPU, m) {
  m.impl("reparameterize_with_kl", FASTIB_BOX(reparameterize_with_kl));
  m.impl("reparameterize_with_kl_backward", FASTIB_BOX(reparameterize_with_kl_backward));
}

}  // namespace fastib

#else

template <class T>
static void forward(const ReparameterizeWithKlArguments& a, int64_t chunk) {
  using S = Compute<T>;
  using V = Vec<S>;
  Buffer<T> mu_buffer, logvar_buffer, z_buffer;
  Buffer<S> noise_buffer;
  reduce_chunk<S>(*a.reduction, chunk, [&](int64_t begin, int64_t n, S* kl) {
    const T* mu = read<T>(a.mu, begin, n, mu_buffer);
    const T* logvar = read<T>(a.logvar, begin, n, logvar_buffer);
    const S* noise = noise_block<T>(a.noise, a.rng, begin, n, noise_buffer);
    const Target<T> z(a.z, begin, n, z_buffer);
    for (int64_t i = 0; i < n; i += kLanes<S>) {
      const V m = load<V>(mu + i);
      const Exp<V> half = exponential<V>(load<V>(logvar + i) * S(0.5));
      store(z, i, fma<V>(half.value, load<V>(noise + i), m));
      store(kl + i, kl_standard<V>(m, expm1_minus_logvar<V>(half)));
    }
    write<T>(a.z, begin, n, z.values);
    return kl;
  });
}

template <class T>
static void backward(const ReparameterizeWithKlBackwardArguments& a, int64_t chunk) {
  using S = Compute<T>;
  using V = Vec<S>;
  Buffer<T> grad_z_buffer, mu_buffer, logvar_buffer, d_mu_buffer, d_logvar_buffer;
  Buffer<S> grad_kl_buffer, noise_buffer;
  for_each_block(chunk, a.numel, [&](int64_t begin, int64_t n) {
    const T* grad_z = read<T>(a.grad_z, begin, n, grad_z_buffer);
    const S* grad_kl = read<S>(a.grad_kl, begin, n, grad_kl_buffer);
    const T* mu = read<T>(a.mu, begin, n, mu_buffer);
    const T* logvar = read<T>(a.logvar, begin, n, logvar_buffer);
    const bool noisy = a.grad_z && a.d_logvar;  // the KL has no noise, nor has the gradient by mu
    const S* noise = noisy ? noise_block<T>(a.noise, a.rng, begin, n, noise_buffer) : nullptr;
    const Target<T> d_mu(a.d_mu, begin, n, d_mu_buffer);
    const Target<T> d_logvar(a.d_logvar, begin, n, d_logvar_buffer);
    for (int64_t i = 0; i < n; i += kLanes<S>) {
      const Exp<V> half = exponential<V>(load<V>(logvar + i) * S(0.5));
      const V gz = load<V>(grad_z + i), gk = loss_gradient<T, V>(grad_kl, i, a.scale);
      store(d_mu, i, a.grad_kl ? fma<V>(gk, load<V>(mu + i), gz) : gz);  // mu may be infinite
      V by_logvar{};
      if (noisy) by_logvar = gz * (half.value * load<V>(noise + i));
      if (a.grad_kl)
        by_logvar = fma<V>(gk, expm1_logvar<V>(half), by_logvar);  // where z alone is used, e^logvar may overflow
      store(d_logvar, i, S(0.5) * by_logvar);
    }
    write<T>(a.d_mu, begin, n, d_mu.values);
    write<T>(a.d_logvar, begin, n, d_logvar.values);
  });
}

#endif
