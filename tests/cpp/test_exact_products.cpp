// Products of integers that are exact in every precision and instruction set: no sum needs a rounding, whatever its
// order, and a row's int8 scale is 1.
#include "cpu/towers/towers.h"
#include "programs.h"

using namespace resflow;
using namespace resflow::testing;

namespace {

// -127 to 127, the ends often: what a wrong sign or a sum that saturates would show in.
float draw_byte(Draw& draw) { return draw.one_of<float>({-127, 127, static_cast<float>(draw.number(-127, 127))}); }

}  // namespace

TEST(products_of_small_integers_are_exact) {
  drawn(150, [](Draw& draw) {
    // 300 products are below 2^23.
    const int64_t inputs = draw.number(1, draw.flip() ? 20 : 300), width = draw.number(1, draw.flip() ? 20 : 150);
    const int64_t rows = draw.number(1, draw.flip() ? 8 : 60);
    Encoded plan = {limit::version, inputs, 0, 0, 0, 0, 0, 0, 0, static_cast<int64_t>(draw.precision())};
    append_program({{StepKind::linear, width, {{0, 0, inputs}}, {}, {}}}, {{1, 0, width}}, plan);
    Packed model(plan);
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
