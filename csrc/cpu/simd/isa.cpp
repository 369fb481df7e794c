#include "cpu/simd/isa.h"

#include <cstdlib>

#include "core/error.h"

#if defined(RESFLOW_HAVE_ARM)
#include <sys/auxv.h>
#endif

namespace resflow::cpu {
namespace {

struct Target {
  const Kernels* kernels;
  bool (*supported)();
};

// __builtin_cpu_supports checks CPUID, and by XGETBV that the operating system saves the registers.
#if defined(RESFLOW_HAVE_X86)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
}
#endif

// Linux tells which instructions there are and that it saves their registers. NEON is part of every AArch64.
#if defined(RESFLOW_HAVE_ARM)
bool has_bf16_and_i8mm() {
  // HWCAP2_I8MM and HWCAP2_BF16, which headers before Linux 5.6 do not name.
  constexpr unsigned long kWanted = 1ul << 13 | 1ul << 14;
  return (getauxval(AT_HWCAP2) & kWanted) == kWanted;
}
#endif

constexpr Target kTargets[] = {
#if defined(RESFLOW_HAVE_X86)
    {&kAvx512Bf16Kernels,
     [] { return has_avx512() && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni"); }},
    {&kAvx512Kernels, has_avx512},
    {&kAvx2Kernels, [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
#endif
#if defined(RESFLOW_HAVE_ARM)
    {&kNeonBf16Kernels, has_bf16_and_i8mm},
    {&kNeonKernels, [] { return true; }},
#endif
    {&kPortableKernels, [] { return true; }},
};

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

const Kernels* choose() {
  const char* const forced = std::getenv("RESFLOW_ISA");
  for (const Target& target : kTargets) {
    if (!target.supported()) continue;
    if (!forced || !*forced || std::string(forced) == target.kernels->name) return target.kernels;
  }
  fail("kernels", "RESFLOW_ISA", expected::one_of, forced, joined(supported_isas()));
}

}  // namespace

const Kernels& kernels() {
  static const Kernels* const chosen = choose();
  return *chosen;
}

std::vector<std::string> compiled_isas() {
  std::vector<std::string> names;
  for (const Target& target : kTargets) names.emplace_back(target.kernels->name);
  return names;
}

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const Target& target : kTargets) {
    if (target.supported()) names.emplace_back(target.kernels->name);
  }
  return names;
}

}  // namespace resflow::cpu
