#include "cuda/towers/programs.h"

#include "core/precision.h"
#include "cuda/towers/program_launch.h"
#include "cuda/towers/towers.h"
#include "cuda/towers/workspace.h"

namespace resflow::cuda {

extern template struct ProgramLaunch<Precision::float32>;
extern template struct ProgramLaunch<Precision::bfloat16>;
extern template struct ProgramLaunch<Precision::float16>;
extern template struct ProgramLaunch<Precision::tensorfloat32>;

namespace {

void run_program(const TowerCall& call, float* outputs, Queue& queue) {
  const Plan& plan = call.plan;
  const ProgramChoice choice = choose_program(plan, call.candidates.count, current_device());
  const RecordedProgram program(plan);
  WorkspaceParts parts;
  const FeatureParts features(call.candidates, parts);
  const int64_t records = parts.take(program.bytes()), tiles = parts.take(choice.tile_memory_bytes);
  char* const memory = static_cast<char*>(queue.workspace(parts.bytes()));
  ProgramParams params{call, program.at(memory + records), choice.shape, memory + tiles, outputs};
  features.place(params.call.candidates, memory, queue.stream());
  store_records(program.words().data(), program.bytes(), memory + records, queue.stream());
  const auto launch = with_precision<precision_flag::on_gpu>(
      plan.precision, [&](auto p) { return ProgramLaunch<p.value>::kProgram[choice.variant]; });
  launch(params, choice.blocks, choice.shared_bytes, queue.stream());
}

}  // namespace

void program_scores(const ScoringCall& call, const ScoresOut& out, Queue& queue) {
  const auto& [model, candidates, weights] = call;
  run_program({model.plan, model.packed, candidates, weights, fusion_weight_count(weights.fusion, model.plan.tasks),
               nullptr, out.logits, out.probs, out.score},
              nullptr, queue);
}

void program_outputs(const Model& model, const Rows& x, int64_t count, float* outputs, Queue& queue) {
  if (count == 0) return;
  Candidates candidates{};
  candidates.x.rows = x;
  candidates.count = count;
  run_program({model.plan, model.packed, candidates, {}, 0, nullptr, nullptr, nullptr, nullptr}, outputs, queue);
}

}  // namespace resflow::cuda
