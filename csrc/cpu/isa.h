// Which instruction set the CPU kernels use: the best of the processor, until Python asks for another.
#pragma once

namespace fastib {

enum class Isa { baseline = 0, avx2 = 1, avx512 = 2 };

Isa best_isa();
Isa isa();
const char* isa_name(Isa isa);
bool use_isa(const char* name);  // false, and no change, if the processor lacks it

}  // namespace fastib
