// The per-element formulas and their derivatives, for V a scalar or a vector (see math.h). Units are nats.
// `half` is exponential(logvar / 2): it has the standard deviation and, squared, everything the KL needs.

// expm1(l) - l = a^2 + 2 (a - h), with h = l/2 and a = expm1(h): a sum of positive terms, so no digit is lost.
template <class V>
FASTIB_INLINE V expm1_minus_logvar(const Exp<V>& half) {
  return fma<V>(half.minus_1, half.minus_1, half.minus_1_minus_x + half.minus_1_minus_x);
}

template <class V>
FASTIB_INLINE V expm1_logvar(const Exp<V>& half) {
  return half.minus_1 * (half.minus_1 + Scalar<V>(2));
}

// KL(N(mu, e^l) || N(0, 1)) = (mu^2 + expm1(l) - l) / 2. Derivatives: mu, expm1(l) / 2.
template <class V>
FASTIB_INLINE V kl_standard(V mu, V expm1_minus_l) {
  return Scalar<V>(0.5) * fma<V>(mu, mu, expm1_minus_l);
}

// KL(N(mu, e^l) || N(prior_mu, e^prior_l)) with d = l - prior_l: (expm1(d) - d + (mu - prior_mu)^2 e^-prior_l) / 2.
template <class V>
struct KlBetween {
  V kl, d_mu, d_logvar, d_prior_logvar;  // the derivative by prior_mu is -d_mu
};

template <class V>
FASTIB_INLINE KlBetween<V> kl_between(V mu, V logvar, V prior_mu, V prior_logvar) {
  using S = Scalar<V>;
  const Exp<V> ratio = exponential<V>(logvar - prior_logvar);
  const V precision = exponential<V>(-prior_logvar).value;
  // Halved first: the square itself may overflow where half of it does not.
  const V scaled = (mu - prior_mu) * precision, square = S(0.5) * (mu - prior_mu) * scaled;
  const V d_logvar = S(0.5) * ratio.minus_1;
  return {fma<V>(ratio.minus_1_minus_x, S(0.5), square), scaled, d_logvar, -(d_logvar + square)};
}

// Information Dropout (Achille & Soatto 2018): z = x eps, log eps = std n - shift std^2 / 2, std = e^log_std.
// shift is 1 where the noise has mean one, else 0, also of a std that is infinite.
template <class V>
FASTIB_INLINE V dropout_shift(V std, Scalar<V> shift) {
  return shift == Scalar<V>(0) ? V{} : std * std;
}

template <class V>
FASTIB_INLINE V dropout_noise(V std, V normal, Scalar<V> shift) {
  return exponential<V>(fma<V>(std, normal, Scalar<V>(-0.5) * dropout_shift<V>(std, shift))).value;
}

// 0 stays 0 also where eps, which is finite, is too large for V.
template <class V>
FASTIB_INLINE V dropout_sample(V x, V eps) {
  using S = Scalar<V>;
  return ((x == S(0)) & (eps == S(INFINITY))) ? x : x * eps;
}

// KL of logN(log x - shift std^2 / 2, std^2) to the prior logN(prior_mean, e^(2 prior_log_std)).
template <class V>
struct DropoutKl {
  V kl, d_x, d_log_std, d_prior_mean, d_prior_log_std;
};

// inverse is e^-prior_log_std: its square may over- or underflow where the squares of the quotients do not.
template <class V>
FASTIB_INLINE DropoutKl<V> dropout_kl_log_normal(V x, V log_std, V std, Scalar<V> prior_mean, Scalar<V> prior_log_std,
                                                 Scalar<V> inverse, Scalar<V> shift) {
  using S = Scalar<V>;
  const V shifted = dropout_shift<V>(std, shift), ratio = std * inverse, variance = ratio * ratio;
  const V deviation = (fma<V>(shifted, S(-0.5), logarithm<V>(x)) - prior_mean) * inverse,
          square = deviation * deviation;
  const V by_mean = deviation * inverse;  // infinite at x = 0
  const V by_shift = shift == S(0) ? V{} : shifted * by_mean;
  return {S(0.5) * (variance + square - S(1)) + prior_log_std - log_std, by_mean / x, variance - S(1) - by_shift,
          -by_mean, S(1) - variance - square};
}
