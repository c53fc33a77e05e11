// Exponentials as fast as a plain loop has them: the yardstick of floors.py, which compiles it for the machine it is
// on.
#include <cstring>

// 2^x for x <= 0, to a few ulp: the nearest integer goes to the exponent's bits, a polynomial takes the rest.
static inline float exp2_of_negative(float x) {
  constexpr float round = 0x1.8p23f;
  x = x < -126.0f ? -126.0f : x;
  const float shifted = x + round, rest = x - (shifted - round);
  float power = 1.3333558e-3f;
  power = power * rest + 9.6181291e-3f;
  power = power * rest + 5.5504109e-2f;
  power = power * rest + 2.4022651e-1f;
  power = power * rest + 6.9314718e-1f;
  power = power * rest + 1.0f;
  int bits, exponent;
  std::memcpy(&bits, &power, sizeof(bits));
  std::memcpy(&exponent, &shifted, sizeof(exponent));
  bits += int(unsigned(exponent) << 23);
  std::memcpy(&power, &bits, sizeof(power));
  return power;
}

// The sum of 2^x over `count` numbers, a multiple of 64, `repeats` times.
extern "C" float exponentials(const float* x, long count, long repeats) {
  constexpr int lanes = 64;  // sums side by side: the compiler may not change the order of one
  float sums[lanes] = {};
  for (long r = 0; r < repeats; ++r)
    for (long i = 0; i < count; i += lanes)
      for (int k = 0; k < lanes; ++k) sums[k] += exp2_of_negative(x[i + k]);
  float sum = 0;
  for (float s : sums) sum += s;
  return sum;
}
