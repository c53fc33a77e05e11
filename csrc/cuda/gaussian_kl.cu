// KL of a diagonal Gaussian to N(0, 1), or to another diagonal Gaussian, reduced as asked. A floor above 0 holds for
// each element, before the reduction; below it there is no gradient.
#include "reduce.cuh"

namespace fastib::cuda {

template <class T>
struct Gaussians {
  Operand mu, logvar, prior_mu, prior_logvar;  // both priors or neither
  double floor;

  Gaussians(const Tensor& mu_, const Tensor& logvar_, const MaybeTensor& prior_mu_, const MaybeTensor& prior_logvar_,
            double floor_)
      : mu(mu_),
        logvar(logvar_),
        prior_mu(Operand::broadcast(prior_mu_, mu_)),
        prior_logvar(Operand::broadcast(prior_logvar_, mu_)),
        floor(floor_) {}

  // The KL of each element before the floor, and its derivatives.
  template <int N, class S>
  __device__ void evaluate(const Span<N>& span, KlBetween<S> (&results)[N]) const {
    S m[N], lv[N];
    read<T>(mu, span, m);
    read<T>(logvar, span, lv);
    if (!prior_mu.present()) {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const Exp<S> e = exponential<S>(lv[i]);
        results[i] = {kl_standard<S>(m[i], e.minus_1_minus_x), m[i], S(0.5) * e.minus_1, S(0)};
      }
      return;
    }
    S prior_m[N], prior_lv[N];
    read<T>(prior_mu, span, prior_m);
    read<T>(prior_logvar, span, prior_lv);
#pragma unroll
    for (int i = 0; i < N; ++i) results[i] = kl_between<S>(m[i], lv[i], prior_m[i], prior_lv[i]);
  }
};

template <class T>
struct GaussianKl {
  static constexpr bool kSummedOverBatch = true;
  Gaussians<T> in;

  template <int N>
  __device__ void operator()(const Span<N>& span, Compute<T> (&kl)[N]) const {
    using S = Compute<T>;
    KlBetween<S> results[N];
    in.evaluate(span, results);
    const S floor = S(in.floor);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      kl[i] = results[i].kl;
      if (floor > S(0) && kl[i] < floor) kl[i] = floor;  // a NaN compares false and stays
    }
  }
};

template <class T>
struct GaussianKlBackward {
  Gaussians<T> in;
  Operand grad;
  Operand d_mu, d_logvar, d_prior_mu, d_prior_logvar;  // those not asked for, and those to be summed, are absent
  double scale;

  // Also gives the gradients by the priors, to be summed where they are broadcast.
  template <int N, class S>
  __device__ void evaluate(const Span<N>& span, S (&by_prior_mu)[N], S (&by_prior_logvar)[N]) const {
    S g[N], by_mu[N], by_logvar[N];
    KlBetween<S> results[N];
    in.evaluate(span, results);
    read<S>(grad, span, g);
    const S floor = S(in.floor);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (floor > S(0) && !(results[i].kl >= floor)) g[i] = S(0);  // as that of torch.clamp
      g[i] *= S(scale);
      by_mu[i] = g[i] * results[i].d_mu;
      by_logvar[i] = g[i] * results[i].d_logvar;
      by_prior_mu[i] = -g[i] * results[i].d_mu;
      by_prior_logvar[i] = g[i] * results[i].d_prior_logvar;
    }
    write<T>(d_mu, span, by_mu);
    write<T>(d_logvar, span, by_logvar);
    write<T>(d_prior_mu, span, by_prior_mu);
    write<T>(d_prior_logvar, span, by_prior_logvar);
  }

  template <int N>
  __device__ void operator()(const Span<N>& span) const {
    Compute<T> by_prior_mu[N], by_prior_logvar[N];
    evaluate(span, by_prior_mu, by_prior_logvar);
  }

  __device__ void operator()(const Span<1>& span, Compute<T> (&by_priors)[2]) const {
    Compute<T> by_prior_mu[1], by_prior_logvar[1];
    evaluate(span, by_prior_mu, by_prior_logvar);
    by_priors[0] = by_prior_mu[0];
    by_priors[1] = by_prior_logvar[0];
  }
};

Tensor gaussian_kl(const Tensor& mu, const Tensor& logvar, const MaybeTensor& prior_mu, const MaybeTensor& prior_logvar,
                   int64_t reduction, int64_t divisor, double floor) {
  return with_type(mu.scalar_type(), [&](auto type) {
    using T = decltype(type);
    return reduce<T>(GaussianKl<T>{{mu, logvar, prior_mu, prior_logvar, floor}}, mu, reduction, scale_of(divisor));
  });
}

// One pass that also sums the gradients by priors which are broadcast over leading dimensions: down `columns`, of which
// one of the priors may have but a part.
template <class T>
void sum_over_columns(const GaussianKlBackward<T>& act, int64_t columns, const Tensor& mu, const Tensor& d_prior_mu,
                      const Tensor& d_prior_logvar) {
  using S = Compute<T>;
  const ColumnParts parts(mu.numel() / columns, columns);
  const int64_t groups = parts.groups();
  const Device device(mu);
  const Tensor partials = output({2 * groups * columns}, ScalarType::Double, mu);
  FASTIB_RUN(device, (sum_columns<2, S, GaussianKlBackward<T>>), groups * parts.blocks_of_columns(), kThreads, act,
             parts, unsigned(parts.blocks_of_columns()), doubles(partials));
  const double* sums = doubles(partials);
  for (const auto& [out, is_written] : {std::pair{&d_prior_mu, act.d_prior_mu.data != nullptr},
                                        std::pair{&d_prior_logvar, act.d_prior_logvar.data != nullptr}}) {
    if (!is_written)
      FASTIB_RUN(device, finish_columns<T>, divide_up(out->numel(), kThreads), kThreads, sums, groups, columns,
                 Operand(*out), out->numel(), 1.0);
    sums += groups * columns;
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gaussian_kl_backward(const Tensor& grad, const Tensor& mu,
                                                                const Tensor& logvar, const MaybeTensor& prior_mu,
                                                                const MaybeTensor& prior_logvar, int64_t reduction,
                                                                int64_t divisor, double floor, int64_t wanted) {
  const auto gradient_by = [&](const MaybeTensor& t, int64_t bit) { return gradient_like(t ? *t : mu, wanted & bit); };
  const Tensor d_mu = gradient_by(mu, 1), d_logvar = gradient_by(logvar, 2);
  const Tensor d_prior_mu = gradient_by(prior_mu, 4), d_prior_logvar = gradient_by(prior_logvar, 8);
  int64_t columns = 0;
  for (const auto& [prior, bit] : {std::pair{&prior_mu, 4}, std::pair{&prior_logvar, 8}})
    if (wanted & bit) columns = std::max(columns, columns_of(**prior, mu));
  with_type(mu.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const auto elements = [&](const Tensor& t) { return t.numel() == mu.numel() ? Operand(t) : Operand(); };
    const GaussianKlBackward<T> act{{mu, logvar, prior_mu, prior_logvar, floor},
                                    Operand::gradient(grad, mu, reduction),
                                    Operand(d_mu),
                                    Operand(d_logvar),
                                    elements(d_prior_mu),
                                    elements(d_prior_logvar),
                                    scale_of(divisor)};
    if (columns == 0) run_each_group<kGroup<T>>(mu, act, mu.numel());
    else sum_over_columns<T>(act, columns, mu, d_prior_mu, d_prior_logvar);
  });
  return {d_mu, d_logvar, d_prior_mu, d_prior_logvar};
}

FASTIB_GPU_KERNELS(m) {
  m.impl("gaussian_kl", TORCH_BOX(&gaussian_kl));
  m.impl("gaussian_kl_backward", TORCH_BOX(&gaussian_kl_backward));
}

}  // namespace fastib::cuda
