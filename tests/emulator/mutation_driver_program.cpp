// Runs a tile program with a step of every kind in the emulator, under several schedules, and compares with the CPU's
// kernels. Exits with 1 if an output is off or the emulator finds a fault: what test_mutations.py plants.
#include <cmath>
#include <cstdio>
#include <exception>

#include "../cpp/cuda_programs.h"
#include "cpu/towers/towers.h"

using namespace resflow;
using namespace resflow::testing;

namespace {

bool close(const std::vector<float>& got, const std::vector<float>& expected, float tolerance) {
  for (size_t i = 0; i < got.size(); ++i) {
    if (!(std::abs(got[i] - expected[i]) <= tolerance * (1 + std::abs(expected[i])))) return false;
  }
  return true;
}

template <Precision kPrecision>
bool passes(float tolerance) {
  const PackedProgram model(every_step({}, kPrecision));
  const ProgramCase of(model, 19, {0, 33, 33, 70});
  const std::vector<float> x = of.rows();
  std::vector<float> expected(of.count() * model.plan.program->output_columns);
  cpu::program_outputs({model.plan, model.bytes.data()}, {x.data(), Precision::float32, kProgramInputs}, of.count(),
                       expected.data(), 1);
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    cuda::set_schedule_seed(seed);
    if (!close(of.run<kPrecision, 1>(), expected, tolerance)) return false;
    if (!close(of.run<kPrecision, 2>(), expected, tolerance)) return false;
  }
  return true;
}

}  // namespace

int main() {
  try {
    if (passes<Precision::float32>(1e-4f) && passes<Precision::bfloat16>(5e-2f)) return 0;
    std::puts("outputs are off");
  } catch (const std::exception& error) {
    std::puts(error.what());
  }
  return 1;
}
