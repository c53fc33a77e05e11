// z = mu + exp(logvar / 2) eps, and the gradient by logvar (the one by mu is the gradient of z itself).
#ifndef FASTIB_ISA
#include "cpu.h"

namespace fastib {
struct ReparameterizeArguments {
  int64_t numel;
  Operand mu, logvar, noise;
  const int64_t* rng;
  Operand z;
};

struct ReparameterizeBackwardArguments {
  int64_t numel;
  Operand grad_z, logvar, noise;
  const int64_t* rng;
  Operand d_logvar;
};
}  // namespace fastib

#define FASTIB_KERNELS "reparameterize.cpp"
#include "each_isa.h"

namespace fastib {

Tensor reparameterize(const Tensor& mu, const Tensor& logvar, const MaybeTensor& noise, const MaybeTensor& rng) {
  Tensor z = output_like(mu);
  const ReparameterizeArguments a{mu.numel(), Operand(mu), Operand(logvar), Operand(noise), rng_words(rng), Operand(z)};
  run_chunks(FASTIB_KERNEL_OF(mu.scalar_type(), forward), a, chunks_of(a.numel));
  return z;
}

Tensor reparameterize_backward(const Tensor& grad_z, const Tensor& logvar, const MaybeTensor& noise,
                               const MaybeTensor& rng) {
  Tensor d_logvar = output_like(logvar);
  const ReparameterizeBackwardArguments a{logvar.numel(), Operand(grad_z), Operand(logvar),
                                          Operand(noise), rng_words(rng),  Operand(d_logvar)};
  run_chunks(FASTIB_KERNEL_OF(logvar.scalar_type(), backward), a, chunks_of(a.numel));
  return d_logvar;
}

STABLE_TORCH_LIBRARY_IMPL(fastib, CPU, m) {
  m.impl("reparameterize", FASTIB_BOX(reparameterize));
  m.impl("reparameterize_backward", FASTIB_BOX(reparameterize_backward));
}

}  // namespace fastib

#else

template <class T>
static void forward(const ReparameterizeArguments& a, int64_t chunk) {
  using S = Compute<T>;
  using V = Vec<S>;
  Buffer<T> mu_buffer, logvar_buffer, z_buffer;
  Buffer<S> noise_buffer;
  for_each_block(chunk, a.numel, [&](int64_t begin, int64_t n) {
    const T* mu = read<T>(a.mu, begin, n, mu_buffer);
    const T* logvar = read<T>(a.logvar, begin, n, logvar_buffer);
    const S* noise = noise_block<T>(a.noise, a.rng, begin, n, noise_buffer);
    const Target<T> z(a.z, begin, n, z_buffer);
    for (int64_t i = 0; i < n; i += kLanes<S>) {
      const V std = exponential<V>(load<V>(logvar + i) * S(0.5)).value;
      store(z, i, fma<V>(std, load<V>(noise + i), load<V>(mu + i)));
    }
    write<T>(a.z, begin, n, z.values);
  });
}

template <class T>
static void backward(const ReparameterizeBackwardArguments& a, int64_t chunk) {
  using S = Compute<T>;
  using V = Vec<S>;
  Buffer<T> grad_buffer, logvar_buffer, d_buffer;
  Buffer<S> noise_buffer;
  for_each_block(chunk, a.numel, [&](int64_t begin, int64_t n) {
    const T* grad = read<T>(a.grad_z, begin, n, grad_buffer);
    const T* logvar = read<T>(a.logvar, begin, n, logvar_buffer);
    const S* noise = noise_block<T>(a.noise, a.rng, begin, n, noise_buffer);
    const Target<T> d_logvar(a.d_logvar, begin, n, d_buffer);
    for (int64_t i = 0; i < n; i += kLanes<S>) {
      const V std = exponential<V>(load<V>(logvar + i) * S(0.5)).value;
      store(d_logvar, i, load<V>(grad + i) * (S(0.5) * std * load<V>(noise + i)));
    }
    write<T>(a.d_logvar, begin, n, d_logvar.values);
  });
}

#endif
