// KL of a diagonal Gaussian to N(0, 1), or to another diagonal Gaussian, reduced as asked. A floor above 0 holds for
// each element, before the reduction; below it there is no gradient.
#ifndef FASTIB_ISA
#include "cpu.h"

namespace fastib {
struct GaussianKlInputs {
  Operand mu, logvar, prior_mu, prior_logvar;  // both priors or neither
  double floor;
};

struct GaussianKlArguments {
  GaussianKlInputs in;
  Reduction* reduction;
};

struct GaussianKlBackwardArguments {
  GaussianKlInputs in;
  int64_t numel;
  double scale;
  Operand grad;
  Operand d_mu, d_logvar, d_prior_mu, d_prior_logvar;  // those not asked for are null
};
}  // namespace fastib

#define FASTIB_KERNELS "gaussian_kl.cpp"
#include "each_isa.h"

namespace fastib {

Tensor gaussian_kl(const Tensor& mu, const Tensor& logvar, const MaybeTensor& prior_mu, const MaybeTensor& prior_logvar,
                   int64_t reduction, double scale, double floor) {
  Reduction r(mu, reduction, scale);
  const GaussianKlArguments a{{Operand(mu), Operand(logvar), Operand(prior_mu), Operand(prior_logvar), floor}, &r};
  run_chunks(FASTIB_KERNEL_OF(mu.scalar_type(), forward), a, r.chunks());
  return r.finish();
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gaussian_kl_backward(const Tensor& grad, const Tensor& mu,
                                                                const Tensor& logvar, const MaybeTensor& prior_mu,
                                                                const MaybeTensor& prior_logvar, int64_t reduction,
                                                                double scale, double floor, bool prior_needs_grad) {
  Tensor d_mu = output_like(mu), d_logvar = output_like(logvar);
  GaussianKlBackwardArguments a{{Operand(mu), Operand(logvar), Operand(prior_mu), Operand(prior_logvar), floor},
                                mu.numel(),
                                scale,
                                Reduction::gradient(grad, mu, reduction),
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
struct GaussianKlBlock {
  const T *mu, *logvar, *prior_mu, *prior_logvar;
};

template <class T>
static GaussianKlBlock<T> read_inputs(const GaussianKlInputs& in, int64_t begin, int64_t n, Buffer<T> (&buffers)[4]) {
  const T *mu = read<T>(in.mu, begin, n, buffers[0]), *logvar = read<T>(in.logvar, begin, n, buffers[1]);
  if (!in.prior_mu) return {mu, logvar, nullptr, nullptr};
  return {mu, logvar, read<T>(in.prior_mu, begin, n, buffers[2]), read<T>(in.prior_logvar, begin, n, buffers[3])};
}

template <class V, class T>
FASTIB_INLINE KlBetween<V> kl_between_at(const GaussianKlBlock<T>& in, int64_t i) {
  return kl_between<V>(load<V>(in.mu + i), load<V>(in.logvar + i), load<V>(in.prior_mu + i),
                       load<V>(in.prior_logvar + i));
}

// The KL before the floor, which the backward pass compares with it too.
template <class T, class S = Compute<T> >
static void fill_kl(GaussianKlBlock<T> in, int64_t n, S* kl) {
  using V = Vec<S>;
  if (in.prior_mu == nullptr)
    for (int64_t i = 0; i < n; i += kLanes<S>)
      store(kl + i, kl_standard<V>(load<V>(in.mu + i), exponential<V>(load<V>(in.logvar + i)).minus_1_minus_x));
  else
    for (int64_t i = 0; i < n; i += kLanes<S>) store(kl + i, kl_between_at<V>(in, i).kl);
}

template <class T>
static void forward(const GaussianKlArguments& a, int64_t chunk) {
  using S = Compute<T>;
  using V = Vec<S>;
  const S floor = S(a.in.floor);
  Buffer<T> buffers[4];
  reduce_chunk<S>(*a.reduction, chunk, [&](int64_t begin, int64_t n, S* kl) {
    fill_kl(read_inputs(a.in, begin, n, buffers), n, kl);
    if (floor > 0)  // in a loop of its own: without a floor it costs nothing. A NaN compares false and stays.
      for (int64_t i = 0; i < n; i += kLanes<S>) {
        const V v = load<V>(kl + i);
        store(kl + i, v < floor ? splat<V>(floor) : v);
      }
    return kl;
  });
}

// The gradient of the KL, and 0 where the floor holds, as that of torch.clamp.
template <class T, class S = Compute<T> >
static const S* read_gradient(const GaussianKlBackwardArguments& a, GaussianKlBlock<T> in, int64_t begin, int64_t n,
                              S* buffer) {
  using V = Vec<S>;
  const S* grad = read<S>(a.grad, begin, n, buffer);
  const S floor = S(a.in.floor);
  if (!(floor > 0)) return grad;
  Buffer<S> kl;
  fill_kl(in, n, kl.values);
  for (int64_t i = 0; i < n; i += kLanes<S>) store(buffer + i, load<V>(kl + i) >= floor ? load<V>(grad + i) : V{});
  return buffer;
}

template <class T>
static void backward_standard(const GaussianKlBackwardArguments& a, int64_t chunk) {
  using S = Compute<T>;
  using V = Vec<S>;
  Buffer<T> buffers[4], d_mu_buffer, d_logvar_buffer;
  Buffer<S> grad_buffer;
  for_each_block(chunk, a.numel, [&](int64_t begin, int64_t n) {
    const GaussianKlBlock<T> in = read_inputs(a.in, begin, n, buffers);
    const S* grad = read_gradient(a, in, begin, n, grad_buffer.values);
    T* d_mu = target<T>(a.d_mu, begin, n, d_mu_buffer);
    T* d_logvar = target<T>(a.d_logvar, begin, n, d_logvar_buffer);
    for (int64_t i = 0; i < n; i += kLanes<S>) {
      const V g = load<V>(grad + i) * S(a.scale);
      store(d_mu + i, g * load<V>(in.mu + i));
      store(d_logvar + i, g * (S(0.5) * exponential<V>(load<V>(in.logvar + i)).minus_1));
    }
    write<T>(a.d_mu, begin, n, d_mu);
    write<T>(a.d_logvar, begin, n, d_logvar);
  });
}

template <class T>
static void backward(const GaussianKlBackwardArguments& a, int64_t chunk) {
  if (!a.in.prior_mu) return backward_standard<T>(a, chunk);
  using S = Compute<T>;
  using V = Vec<S>;
  Buffer<S> grad_buffer;
  Buffer<T> buffers[4], d_mu, d_logvar, d_prior_mu, d_prior_logvar;
  for_each_block(chunk, a.numel, [&](int64_t begin, int64_t n) {
    const GaussianKlBlock<T> in = read_inputs(a.in, begin, n, buffers);
    const S* grad = read_gradient(a, in, begin, n, grad_buffer.values);
    for (int64_t i = 0; i < n; i += kLanes<S>) {
      const KlBetween<V> d = kl_between_at<V>(in, i);
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
