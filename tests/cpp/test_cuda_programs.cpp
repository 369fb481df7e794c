// Tile programs in the emulator: every variant of the kernel has the same bits, near the CPU's numbers, and fits.
#include <algorithm>
#include <cstring>
#include <set>

#include "check.h"
#include "core/precision.h"
#include "cpu/towers/towers.h"
#include "cuda_programs.h"

namespace resflow::cuda {
namespace {

using testing::every_step;
using testing::PackedProgram;
using testing::ProgramCase;

constexpr Device kGpus[] = {{132, 232448, 90}, {108, 166912, 80}, {72, 101376, 86}};  // H100, A100, A10

std::vector<float> on_cpu(const PackedProgram& model, const std::vector<float>& x) {
  const int64_t count = static_cast<int64_t>(x.size()) / testing::kProgramInputs;
  std::vector<float> outputs(count * model.plan.program->output_columns);
  cpu::program_outputs({model.plan, model.bytes.data()}, {x.data(), Precision::float32, testing::kProgramInputs}, count,
                       outputs.data(), 1);
  return outputs;
}

bool near(const std::vector<float>& got, const std::vector<float>& want, float tolerance) {
  return got.size() == want.size() && std::equal(got.begin(), got.end(), want.begin(), [&](float a, float b) {
           return std::abs(a - b) <= tolerance * (1.0f + std::abs(b));
         });
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

TEST(steps_of_every_kind_are_in_the_program_that_is_tested) {
  const PackedProgram model(every_step({}, Precision::float32));
  std::set<StepKind> kinds;
  for (int64_t s = 0; s < model.plan.program->step_count; ++s) kinds.insert(model.plan.program->steps[s].kind);
  CHECK(kinds.size() == static_cast<size_t>(StepKind::count));
}

// Compared with the CPU's float32, because the CPU has not all of these precisions.
template <Precision kPrecision>
void check_variants(float tolerance) {
  const PackedProgram model(every_step({}, kPrecision)), exact(every_step({}, Precision::float32));
  for (const int64_t users : {int64_t(0), int64_t(7), int64_t(19), int64_t(40)}) {
    const ProgramCase of(model, users, {0, 33, 33, 70});
    const std::vector<float> want = on_cpu(exact, of.rows());
    const std::vector<float> got = of.run<kPrecision, 0>();
    CHECK(near(got, want, tolerance));
    CHECK(same_bits((of.run<kPrecision, 1>()), got));
    CHECK(same_bits((of.run<kPrecision, 2>(5)), got));
    CHECK(same_bits((of.run<kPrecision, 3>(3)), got));
    // Whole rows of one request each, as in the dense form.
    ProgramCase dense(model, 0, {0, 70});
    dense.item = of.rows();
    CHECK(same_bits((dense.run<kPrecision, 2>()), got));
  }
}

TEST(tiles_of_every_size_have_the_same_bits) {
  check_variants<Precision::float32>(2e-5f);
  check_variants<Precision::bfloat16>(0.1f);
  check_variants<Precision::float16>(0.02f);
  check_variants<Precision::tensorfloat32>(0.02f);
}

TEST(schedules_do_not_matter) {
  const PackedProgram model(every_step({}, Precision::float32));
  const ProgramCase of(model, 19, {0, 5, 41});
  const std::vector<float> want = of.run<Precision::float32, 2>();
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    set_schedule_seed(seed);
    CHECK(same_bits((of.run<Precision::float32, 2>(1)), want));
    CHECK(same_bits((of.run<Precision::float32, 1>()), want));
  }
}

TEST(tiles_of_programs_fit_the_shared_memory_they_are_planned_for) {
  for (const int64_t extra : {0, 500, 3000, 100000}) {
    for (const Precision precision : {Precision::float32, Precision::bfloat16}) {
      const PackedProgram model(every_step({-1, 0, 0}, precision, extra));
      const RecordedProgram program = RecordedProgram::of_candidates(model.plan, 0);
      for (const Device& gpu : kGpus) {
        for (const int64_t count : {int64_t(1), int64_t(100), int64_t(65536), int64_t(1) << 33}) {
          const ProgramChoice choice = choose_program(program, model.plan.tasks, count, gpu);
          const TowerVariant& variant = kTowerVariants[choice.variant];
          CHECK(choice.shared_bytes > 0 && choice.shared_bytes <= gpu.shared_bytes);
          const int64_t each_sm = blocks_per_multiprocessor(choice.shared_bytes, kProgramBlocks, gpu);
          const int64_t tiles = (count + variant.rows - 1) / variant.rows;
          CHECK(choice.blocks >= 1 && choice.blocks <= tiles && choice.blocks <= each_sm * gpu.multiprocessors);
          CHECK((choice.tile_memory_bytes > 0) == !variant.in_shared);
          CHECK(variant.in_shared == (extra < 3000));
          CHECK(count > 100 || variant.rows == 16);
        }
      }
    }
  }
}

TEST(large_batches_of_small_programs_get_large_tiles) {
  const PackedProgram model(every_step({-1, 0, 0}, Precision::bfloat16));
  const RecordedProgram program = RecordedProgram::of_candidates(model.plan, 0);
  CHECK(kTowerVariants[choose_program(program, 3, 65536, kGpus[0]).variant].rows == 64);
  CHECK(choose_program(program, 3, 0, kGpus[0]).blocks == 0);
}

// What a user's columns are multiplied with once per request, and what is left for candidates.
TEST(users_columns_are_divided_between_whole_products) {
  for (const Precision precision : {Precision::float32, Precision::bfloat16}) {
    const PackedProgram model(every_step({}, precision));
    const int64_t product = kProductWords * inputs_per_word(precision);
    for (int64_t users = 0; users <= testing::kProgramInputs; ++users) {
      const RecordedProgram of_users = RecordedProgram::of_users(model.plan, users);
      const RecordedProgram program = RecordedProgram::of_candidates(model.plan, users);
      const std::vector<uint64_t> words = program.words();
      const ProgramRecords records = program.at(reinterpret_cast<const char*>(words.data()));
      // Of the first step's 40 columns.
      const int64_t taken = users / product * product;
      CHECK((of_users.step_count() == 0) == (taken == 0));
      CHECK(records.steps[0].first_word == taken / inputs_per_word(precision));
      CHECK(records.steps[0].columns == testing::kProgramInputs - taken);
      CHECK((records.steps[0].user_sums < 0) == (taken == 0));
      CHECK(records.first_column == 0);  // other steps read the row
    }
  }
}

}  // namespace
}  // namespace resflow::cuda
