// Points and components of one call as columns of float, a dimension's together: what the near-linear algorithm reads.
#pragma once

#include "mixture.h"

namespace fastib {

// `tame` says whether all of them are finite and of a size at which no formula below overflows: what is not is for the
// direct kernels.
struct Latents {
  int64_t rows, components, dims, row_offset;
  double own_weight;      // of a row's own component, relative to the others
  Scratch z, mu, logvar;  // [dims, rows], [dims, components] twice
  bool tame = true;

  explicit Latents(const Mixture& m);
  const float* z_of(int64_t d) const { return z.as<float>() + d * rows; }
  const float* mu_of(int64_t d) const { return mu.as<float>() + d * components; }
  const float* logvar_of(int64_t d) const { return logvar.as<float>() + d * components; }
};

}  // namespace fastib
