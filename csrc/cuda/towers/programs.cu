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

// One launch of a program's kernel, and its parts of the workspace.
class ProgramPass {
 public:
  ProgramPass(const RecordedProgram& program, const Plan& plan, int64_t count, WorkspaceParts& parts)
      : program_(program),
        precision_(plan.precision),
        choice_(choose_program(program, plan.tasks, count, current_device())),
        records_(parts.take(program.bytes())),
        tiles_(parts.take(choice_.tile_memory_bytes)) {}

  // The call's features are in device memory.
  void launch(const TowerCall& call, const float* user_sums, int64_t user_stride, float* outputs, char* memory,
              Stream stream) const {
    store_records(program_.words().data(), program_.bytes(), memory + records_, stream);
    const ProgramParams params{
        call, program_.at(memory + records_), choice_.shape, memory + tiles_, user_sums, user_stride, outputs};
    const auto launch = with_precision<precision_flag::on_gpu>(
        precision_, [&](auto p) { return ProgramLaunch<p.value>::kProgram[choice_.variant]; });
    launch(params, choice_.blocks, choice_.shared_bytes, stream);
  }

 private:
  const RecordedProgram& program_;
  Precision precision_;
  ProgramChoice choice_;
  int64_t records_, tiles_;
};

// A call in which requests take the place of candidates: their columns of the input row are all there is.
TowerCall call_of_users(const TowerCall& call) {
  TowerCall users = call;
  users.plan.tasks = 0;
  users.plan.in_features = call.candidates.user_columns;
  users.candidates = {};
  users.candidates.x = call.candidates.user;
  users.candidates.count = call.candidates.requests;
  return users;
}

void run_program(TowerCall call, float* outputs, Queue& queue) {
  const Plan& plan = call.plan;
  const int64_t users = call.candidates.user_columns, requests = users > 0 ? call.candidates.requests : 0;
  const RecordedProgram of_users = RecordedProgram::of_users(plan, users);
  const RecordedProgram program = RecordedProgram::of_candidates(plan, users);
  const bool has_sums = of_users.step_count() > 0;
  const int64_t stride = has_sums ? plan.program->user_sums : 0;
  WorkspaceParts parts;
  const FeatureParts features(call.candidates, parts);
  const int64_t sums = parts.take(4 * requests * stride);
  const ProgramPass user_pass(of_users, plan, requests, parts), pass(program, plan, call.candidates.count, parts);
  char* const memory = static_cast<char*>(queue.workspace(parts.bytes()));
  features.place(call.candidates, memory, queue.stream());
  auto* const user_sums = has_sums ? reinterpret_cast<float*>(memory + sums) : nullptr;
  if (has_sums) user_pass.launch(call_of_users(call), nullptr, 0, user_sums, memory, queue.stream());
  pass.launch(call, user_sums, stride, outputs, memory, queue.stream());
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
