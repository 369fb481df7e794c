// The training ops; cpu.cpp registers them with the others.
#pragma once

#include <tuple>
#include <vector>

#include "torch/tensor.h"

namespace resflow::torch_ops {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> train_forward(Tensor x, std::vector<Tensor> weights,
                                                                 std::vector<int64_t> plan, int64_t statistics,
                                                                 double eps, bool keep);

std::tuple<Tensor, Tensor> train_backward(Tensor logit_gradients, Tensor x, std::vector<Tensor> weights,
                                          Tensor task_logits, Tensor pre_activations, Tensor mean, Tensor variance,
                                          std::vector<int64_t> plan, int64_t statistics, double eps, bool x_needed);

}  // namespace resflow::torch_ops
