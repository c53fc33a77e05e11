// Compiles the kernels of one operator once per instruction set. An operator's file names itself in FASTIB_KERNELS,
// includes this header, and so is read again, with FASTIB_ISA defined, inside namespace fastib::<isa> and under that
// set's target pragma. Everything a kernel is made of (simd.h and what follows it) is compiled again with it: a
// template defined outside the pragma would stay baseline code.

#define FASTIB_INLINE static inline __attribute__((always_inline))
#define FASTIB_OUT_OF_LINE static __attribute__((noinline, cold))

#define FASTIB_VECTOR_BYTES 16
#define FASTIB_ISA baseline
#include "kernels.h"
#undef FASTIB_ISA
#undef FASTIB_VECTOR_BYTES

#ifdef __x86_64__

#define FASTIB_VECTOR_BYTES 32
#define FASTIB_ISA avx2
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
#include "kernels.h"
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef FASTIB_ISA
#undef FASTIB_VECTOR_BYTES

#define FASTIB_VECTOR_BYTES 64
#define FASTIB_ISA avx512
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,prefer-vector-width=512")
#endif
#include "kernels.h"
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef FASTIB_ISA
#undef FASTIB_VECTOR_BYTES

#endif  // __x86_64__

#undef FASTIB_KERNELS
