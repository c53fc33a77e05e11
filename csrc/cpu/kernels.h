// One instruction set's copy of the kernels: see each_isa.h. No include guard, on purpose.
namespace fastib {
namespace FASTIB_ISA {
#include "simd.h"
#include "../common/math.h"
#include "../common/philox.h"
#include "../common/gaussian.h"
#include "block.h"
#include "noise.h"
#include FASTIB_KERNELS
}  // namespace FASTIB_ISA
}  // namespace fastib
