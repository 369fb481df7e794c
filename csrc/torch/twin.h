// The twin tower ops; cpu.cpp and cuda.cpp register them with the others.
#pragma once

#include <tuple>
#include <vector>

#include "torch/tensor.h"

namespace resflow::torch_ops {

std::tuple<Tensor, Tensor> twin_rows(Tensor vectors, int64_t tasks, int64_t element);

std::tuple<Tensor, Tensor, Tensor> twin_scores(Tensor user, Tensor table, Tensor scales, Tensor fusion_weights,
                                               std::vector<int64_t> parents, bool non_increasing, int64_t fusion,
                                               int64_t weights_per);

std::tuple<Tensor, Tensor> twin_topk(Tensor user, Tensor table, Tensor scales, Tensor fusion_weights,
                                     std::vector<int64_t> parents, bool non_increasing, int64_t fusion,
                                     int64_t weights_per, int64_t k);

std::tuple<Tensor, Tensor, Tensor> twin_ids_scores(Tensor user, Tensor ids, Tensor offsets, Tensor table, Tensor scales,
                                                   Tensor fusion_weights, std::vector<int64_t> parents,
                                                   bool non_increasing, int64_t fusion, int64_t weights_per);

std::tuple<Tensor, Tensor> twin_ids_topk(Tensor user, Tensor ids, Tensor offsets, Tensor table, Tensor scales,
                                         Tensor fusion_weights, std::vector<int64_t> parents, bool non_increasing,
                                         int64_t fusion, int64_t weights_per, int64_t k);

}  // namespace resflow::torch_ops
