// Training on the CPU: a forward pass that computes a batch's logits and saves state, and a backward pass from that
// state to gradients. Inputs have been checked.
//
// Weights are those of Plan.weight_shapes, with matrices as in nn.Linear, [outputs, inputs]. A plan's precision has no
// effect: training is float32.
#pragma once

#include "core/weights.h"

namespace resflow::cpu {

// thread_pool.h's parallel_for or a framework's: between training's ops the framework's threads are awake and would
// compete with ours for the cores.
using ParallelFor = void (*)(int64_t count, int64_t threads, void (*work)(void* context, int64_t index), void* context);

struct TrainingModel {
  const Plan& plan;
  const WeightList<const float*>& weights;
  // The meaning of scale and shift: an affine after the activation, or gamma and beta of a BatchNorm by the batch's
  // statistics.
  Statistics statistics;
  double eps;  // of the BatchNorms
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

// The state that a forward pass saves for the backward pass.
struct TrainingState {
  float* task_logits;      // [rows, K], before residuals
  float* pre_activations;  // [pre_activation_floats], or null: recomputed in the backward pass
  float* mean;             // [training_channels] of the batch, with batch statistics
  float* variance;         // likewise; biased
};

// Number of floats of all pre-activations, and of the statistics [layer][task][width].
int64_t pre_activation_floats(const Plan& plan, int64_t rows);
int64_t training_channels(const Plan& plan);

// Writes logits [rows, K] and the state.
void training_forward(const TrainingModel& model, const TrainingRows& batch, const TrainingState& state, float* logits);

// Writes the gradients of x [rows, D], unless null, and of the weights.
void training_backward(const TrainingModel& model, const TrainingRows& batch, const TrainingState& state,
                       const float* logit_gradients, float* x_gradients, const WeightList<float*>& gradients);

}  // namespace resflow::cpu
