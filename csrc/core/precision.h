// A precision as a type: how its values are stored, and with_precision(), which compiles code for each precision that
// has a flag of contract/enums.def; a precision without the flag needs no line in such code.
#pragma once

#include <cstdint>

#include "core/both.h"
#include "core/contract.h"
#include "core/number_formats.h"

namespace resflow {

// The type that stores a value, and how a number is rounded to it; int8's scales are in core/quantize.h.
template <Precision kPrecision>
struct StoredAs;
template <>
struct StoredAs<Precision::float32> {
  using type = float;
  static type rounded(float value) { return value; }
};
template <>
struct StoredAs<Precision::bfloat16> {
  using type = uint16_t;
  static type rounded(float value) { return to_bfloat16(value); }
};
template <>
struct StoredAs<Precision::int8> {
  using type = int8_t;
};
template <>
struct StoredAs<Precision::float16> {
  using type = uint16_t;
  static type rounded(float value) { return to_float16(value); }
};
template <>
struct StoredAs<Precision::tensorfloat32> {
  using type = float;
  static type rounded(float value) { return to_tensorfloat32(value); }
};

template <Precision kPrecision>
using Stored = typename StoredAs<kPrecision>::type;

#define RESFLOW_PRECISION(name, code, bytes, flags) \
  static_assert(sizeof(Stored<Precision::name>) == bytes, "a precision of another size than its row says");
#include "contract/enums.def"

template <Precision kPrecision>
struct Constant {
  static constexpr Precision value = kPrecision;
};

// Calls run with the precision as a compile-time constant. A precision without any of the flags, which the checks
// refuse, is treated as float32, by the same copy of the code.
#if defined(__CUDACC__)
#pragma nv_exec_check_disable  // run belongs to the caller, and to the caller's side
#endif
template <uint32_t kFlags, class Run>
RESFLOW_BOTH auto with_precision(Precision precision, Run run) {
  switch (precision) {
#define RESFLOW_PRECISION(name, code, bytes, flags)                                        \
  case Precision::name:                                                                    \
    if constexpr (Precision::name != Precision::float32 && has(Precision::name, kFlags)) { \
      return run(Constant<Precision::name>{});                                             \
    }                                                                                      \
    break;
#include "contract/enums.def"
    case Precision::count:
      break;
  }
  return run(Constant<Precision::float32>{});
}

}  // namespace resflow
