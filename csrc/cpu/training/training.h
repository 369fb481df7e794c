// Training on the CPU: a batch's logits and, from what that kept, gradients. Inputs have been checked.
//
// Weights are those of Plan.weight_shapes, but matrices as nn.Linear has them, [outputs, inputs]. A plan's precision
// plays no part: training is float32.
#pragma once

#include "core/weights.h"

namespace resflow::cpu {

// thread_pool.h's parallel_for, or another's: between training's ops the framework's own threads are awake and would
// compete with ours for the cores.
using ParallelFor = void (*)(int64_t count, int64_t threads, void (*work)(void* context, int64_t index), void* context);

struct TrainingModel {
  const Plan& plan;
  const WeightList<const float*>& weights;
  // What scale and shift are: applied as they are after the activation, or gamma and beta of a BatchNorm by the batch's
  // own statistics.
  Statistics statistics;
  double eps;  // of those BatchNorms
  int64_t threads;
  ParallelFor parallel_for;

  template <class Work>
  void run_parallel(int64_t count, Work work) const {
    parallel_for(count, threads, [](void* context, int64_t index) { (*static_cast<Work*>(context))(index); }, &work);
  }
};

// Rows [rows][D], `stride` apart.
struct TrainingRows {
  const float* x;
  int64_t stride;
  int64_t rows;
};

// What a forward pass leaves for the way back.
struct TrainingState {
  float* own;       // [rows, K], the tasks' own logits
  float* sums;      // [training_sums], or null: computed again on the way back
  float* mean;      // [training_channels] of the batch, where the statistics are its own
  float* variance;  // likewise; biased
};

// Floats of all layers' sums, and of their statistics [layer][task][width].
int64_t training_sums(const Plan& plan, int64_t rows);
int64_t training_channels(const Plan& plan);

// Writes logits [rows, K] and the state.
void training_forward(const TrainingModel& model, const TrainingRows& batch, const TrainingState& state, float* logits);

// Writes x's gradients [rows, D], unless null, and the weights'.
void training_backward(const TrainingModel& model, const TrainingRows& batch, const TrainingState& state,
                       const float* logit_gradients, float* x_gradients, const WeightList<float*>& gradients);

}  // namespace resflow::cpu
