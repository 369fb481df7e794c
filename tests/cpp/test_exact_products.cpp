// Products of integers that are exact in every precision and instruction set: no sum needs a rounding, whatever its
// order, and a row's int8 scale is 1.
#include "core/number_formats.h"
#include "core/quantize.h"
#include "cpu/simd/isa.h"
#include "cpu/towers/towers.h"
#include "programs.h"

using namespace resflow;
using namespace resflow::testing;

namespace {

// -127 to 127, the ends often: where a wrong sign or a sum that saturates would show in.
float draw_byte(Draw& draw) { return draw.one_of<float>({-127, 127, static_cast<float>(draw.number(-127, 127))}); }

// A program of one linear step.
Encoded linear(int64_t inputs, int64_t width, Precision precision) {
  Encoded plan = {limit::version, inputs, 0, 0, 0, 0, 0, 0, 0, static_cast<int64_t>(precision)};
  append_program({{StepKind::linear, width, {{0, 0, inputs}}, {}, {}}}, {{1, 0, width}}, plan);
  return plan;
}

// A number whose bits are drawn, of a magnitude from 2^-60 to 2^60, or one halfway between two of bfloat16.
float draw_bits(Draw& draw) {
  auto bits = static_cast<uint32_t>(draw.number(67, 187) << 23 | draw.number(0, 0x7fffff) | draw.number(0, 1) << 31);
  if (draw.flip()) bits = (bits & 0xffff0000) | 0x8000;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

}  // namespace

TEST(products_of_small_integers_are_exact) {
  drawn(150, [](Draw& draw) {
    // 300 products are below 2^23.
    const int64_t inputs = draw.number(1, draw.flip() ? 20 : 300), width = draw.number(1, draw.flip() ? 20 : 150);
    const int64_t rows = draw.number(1, draw.flip() ? 8 : 60);
    Packed model(linear(inputs, width, draw.precision()));
    auto &weight = model.weights[0], &bias = model.weights[1];
    for (float& value : weight) value = draw_byte(draw);
    for (int64_t c = 0; c < width; ++c) weight[draw.number(0, inputs - 1) * width + c] = draw.flip() ? 127 : -127;
    for (float& value : bias) value = draw_byte(draw);
    model.pack();
    std::vector<float> x(rows * inputs), out(rows * width, -1);
    for (float& value : x) value = draw_byte(draw);
    for (int64_t r = 0; r < rows; ++r) x[r * inputs + draw.number(0, inputs - 1)] = draw.flip() ? 127 : -127;
    cpu::program_outputs(model.model(), {x.data(), Precision::float32, inputs}, rows, out.data(), 1);
    int64_t wrong = 0;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < width; ++c) {
        auto sum = static_cast<int64_t>(bias[c]);
        for (int64_t i = 0; i < inputs; ++i) sum += static_cast<int64_t>(x[r * inputs + i] * weight[i * width + c]);
        wrong += out[r * width + c] != static_cast<float>(sum);
      }
    }
    CHECK(wrong == 0);
  });
}

// Weights of 127 times the identity: each output is 127 times a rounded input.
TEST(rows_are_rounded_to_the_nearest) {
  drawn(150, [](Draw& draw) {
    const int64_t inputs = draw.number(1, 70), rows = draw.number(1, 9);
    const Precision precision = draw.precision();
    Packed model(linear(inputs, inputs, precision));
    for (std::vector<float>& weight : model.weights) weight.assign(weight.size(), 0.0f);
    for (int64_t i = 0; i < inputs; ++i) model.weights[0][i * inputs + i] = 127;
    model.pack();
    std::vector<float> x(rows * inputs), out(rows * inputs, -1);
    for (float& value : x) value = precision == Precision::int8 ? draw.normal() : draw_bits(draw);
    cpu::program_outputs(model.model(), {x.data(), Precision::float32, inputs}, rows, out.data(), 1);
    for (int64_t r = 0; r < rows; ++r) {
      float largest = 0;
      for (int64_t i = 0; i < inputs; ++i) largest = larger_magnitude(largest, x[r * inputs + i]);
      const float scale = int8_scale(largest), reciprocal = int8_reciprocal(scale);
      for (int64_t i = 0; i < inputs; ++i) {
        const float value = x[r * inputs + i], got = out[r * inputs + i];
        if (precision == Precision::float32) CHECK(got == value * 127);
        if (precision == Precision::bfloat16) CHECK(got == from_bfloat16(to_bfloat16(value)) * 127);
        if (precision == Precision::int8) CHECK(got == static_cast<float>(int8_step(value * reciprocal) * 127) * scale);
      }
    }
  });
}

// (1 + 2^-12)^2 - (1 + 2^-11) is 2^-24 if only the sum is rounded.
TEST(a_product_and_its_sum_are_rounded_once_but_for_the_portable_kernels) {
  const float factor = 1.0f + 0x1p-12f;
  for (const int64_t rows : {1, 2, 6}) {
    Packed model(linear(1, 1, Precision::float32));
    model.weights = {{factor}, {-1.0f - 0x1p-11f}};
    model.pack();
    const std::vector<float> x(rows, factor);
    std::vector<float> out(rows, -1);
    cpu::program_outputs(model.model(), {x.data(), Precision::float32, 1}, rows, out.data(), 1);
    const bool portable = std::strcmp(cpu::kernels().name, "portable") == 0;
    for (const float sum : out) CHECK(sum == (portable ? 0 : 0x1p-24f));
  }
}
