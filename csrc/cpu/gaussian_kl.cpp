// KL of a diagonal Gaussian to N(0, 1), or to another diagonal Gaussian, reduced as asked.
#ifndef FASTIB_ISA
#include "cpu.h"

namespace fastib {
struct GaussianKlArguments {
  Operand mu, logvar, prior_mu, prior_logvar;  // both priors or neither
  Reduction* reduction;
};

struct GaussianKlBackwardArguments {
  int64_t numel;
  double scale;
  Operand grad, mu, logvar, prior_mu, prior_logvar;
  Operand d_mu, d_logvar, d_prior_mu, d_prior_logvar;  // those not asked for are null
};
}  // namespace fastib

#define FASTIB_KERNELS "gaussian_kl.cpp"
#include "each_isa.h"

namespace fastib {

Tensor gaussian_kl(const Tensor& mu, const Tensor& logvar, const MaybeTensor& prior_mu, const MaybeTensor& prior_logvar,
                   int64_t reduction, double scale) {
  Reduction r(mu, reduction, scale);
  const GaussianKlArguments a{Operand(mu), Operand(logvar), Operand(prior_mu), Operand(prior_logvar), &r};
  run_chunks(FASTIB_KERNEL_OF(mu.scalar_type(), forward), a, r.chunks());
  return r.finish();
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gaussian_kl_backward(const Tensor& grad, const Tensor& mu,
                                                                const Tensor& logvar, const MaybeTensor& prior_mu,
                                                                const MaybeTensor& prior_logvar, int64_t reduction,
                                                                double scale, bool prior_needs_grad) {
  Tensor d_mu = output_like(mu), d_logvar = output_like(logvar);
  GaussianKlBackwardArguments a{mu.numel(),
                                scale,
                                Reduction::gradient(grad, mu, reduction),
                                Operand(mu),
                                Operand(logvar),
                                Operand(prior_mu),
                                Operand(prior_logvar),
                                Operand(d_mu),
                                Operand(d_logvar),
                                {},
                                {}};
  const auto if_needed = [&] { return prior_needs_grad ? output_like(mu) : output({0}, mu.scalar_type(), mu); };
  Tensor d_prior_mu = if_needed(), d_prior_logvar = if_needed();
  if (prior_needs_grad) {
    a.d_prior_mu = Operand(d_prior_mu);
    a.d_prior_logvar = Operand(d_prior_logvar);
  }
  run_chunks(FASTIB_KERNEL_OF(mu.scalar_type(), backward), a, chunks_of(a.numel));
  return {d_mu, d_logvar, d_prior_mu, d_prior_logvar};
}

STABLE_TORCH_LIBRARY_IMPL(fastib, CPU, m) {
  m.impl("gaussian_kl", TORCH_BOX(&gaussian_kl));
  m.impl("gaussian_kl_backward", TORCH_BOX(&gaussian_kl_backward));
}

}  // namespace fastib

#else

template <class T>
static void forward(const GaussianKlArguments& a, int64_t chunk) {
  using S = Compute<T>;
  using V = Vec<S>;
  Buffer<T> mu_buffer, logvar_buffer, prior_mu_buffer, prior_logvar_buffer;
  reduce_chunk<S>(*a.reduction, chunk, [&](int64_t begin, int64_t n, S* kl) {
    const T* mu = read<T>(a.mu, begin, n, mu_buffer);
    const T* logvar = read<T>(a.logvar, begin, n, logvar_buffer);
    if (!a.prior_mu) {
      for (int64_t i = 0; i < n; i += kLanes<S>)
        store(kl + i, kl_standard<V>(load<V>(mu + i), exponential<V>(load<V>(logvar + i)).minus_1_minus_x));
      return kl;
    }
    const T* prior_mu = read<T>(a.prior_mu, begin, n, prior_mu_buffer);
    const T* prior_logvar = read<T>(a.prior_logvar, begin, n, prior_logvar_buffer);
    for (int64_t i = 0; i < n; i += kLanes<S>)
      store(kl + i,
            kl_between<V>(load<V>(mu + i), load<V>(logvar + i), load<V>(prior_mu + i), load<V>(prior_logvar + i)).kl);
    return kl;
  });
}

template <class T>
static void backward_standard(const GaussianKlBackwardArguments& a, int64_t chunk) {
  using S = Compute<T>;
  using V = Vec<S>;
  Buffer<T> mu_buffer, logvar_buffer, d_mu_buffer, d_logvar_buffer;
  Buffer<S> grad_buffer;
  for_each_block(chunk, a.numel, [&](int64_t begin, int64_t n) {
    const S* grad = read<S>(a.grad, begin, n, grad_buffer);
    const T* mu = read<T>(a.mu, begin, n, mu_buffer);
    const T* logvar = read<T>(a.logvar, begin, n, logvar_buffer);
    T* d_mu = target<T>(a.d_mu, begin, n, d_mu_buffer);
    T* d_logvar = target<T>(a.d_logvar, begin, n, d_logvar_buffer);
    for (int64_t i = 0; i < n; i += kLanes<S>) {
      const V g = load<V>(grad + i) * S(a.scale);
      store(d_mu + i, g * load<V>(mu + i));
      store(d_logvar + i, g * (S(0.5) * exponential<V>(load<V>(logvar + i)).minus_1));
    }
    write<T>(a.d_mu, begin, n, d_mu);
    write<T>(a.d_logvar, begin, n, d_logvar);
  });
}

template <class T>
static void backward(const GaussianKlBackwardArguments& a, int64_t chunk) {
  if (!a.prior_mu) return backward_standard<T>(a, chunk);
  using S = Compute<T>;
  using V = Vec<S>;
  Buffer<T> mu_buffer, logvar_buffer, prior_mu_buffer, prior_logvar_buffer;
  Buffer<S> grad_buffer;
  Buffer<T> d_mu, d_logvar, d_prior_mu, d_prior_logvar;
  for_each_block(chunk, a.numel, [&](int64_t begin, int64_t n) {
    const S* grad = read<S>(a.grad, begin, n, grad_buffer);
    const T* mu = read<T>(a.mu, begin, n, mu_buffer);
    const T* logvar = read<T>(a.logvar, begin, n, logvar_buffer);
    const T* prior_mu = read<T>(a.prior_mu, begin, n, prior_mu_buffer);
    const T* prior_logvar = read<T>(a.prior_logvar, begin, n, prior_logvar_buffer);
    for (int64_t i = 0; i < n; i += kLanes<S>) {
      const KlBetween<V> d =
          kl_between<V>(load<V>(mu + i), load<V>(logvar + i), load<V>(prior_mu + i), load<V>(prior_logvar + i));
      const V g = load<V>(grad + i) * S(a.scale);
      store(d_mu + i, g * d.d_mu);
      store(d_logvar + i, g * d.d_logvar);
      store(d_prior_mu + i, -g * d.d_mu);
      store(d_prior_logvar + i, g * d.d_prior_logvar);
    }
    write<T>(a.d_mu, begin, n, d_mu);
    write<T>(a.d_logvar, begin, n, d_logvar);
    if (!a.d_prior_mu) return;
    write<T>(a.d_prior_mu, begin, n, d_prior_mu);
    write<T>(a.d_prior_logvar, begin, n, d_prior_logvar);
  });
}

#endif
