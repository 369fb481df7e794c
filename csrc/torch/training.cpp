// The training ops on CPU tensors.
#include "torch/training.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>

#include "core/check.h"
#include "core/pack.h"
#include "cpu/training/training.h"

namespace resflow::torch_ops {
namespace {

// Runs on PyTorch's own threads; a free thread takes the next index.
void parallel_for(int64_t count, int64_t threads, void (*work)(void*, int64_t), void* context) {
  std::atomic<int64_t> next{0};
  const int64_t shares = std::min(count, threads);
  torch::stable::parallel_for(0, shares, 1, [&](int64_t, int64_t) {
    for (int64_t index = next++; index < count; index = next++) work(context, index);
  });
}

// The checked arguments that both ops take besides their batch.
class Arguments {
 public:
  Arguments(const char* op, const Tensor& x, const std::vector<Tensor>& weights, const std::vector<int64_t>& encoded,
            int64_t statistics, double eps)
      : op_(op),
        plan_(decode_plan(op, encoded.data(), static_cast<int64_t>(encoded.size()))),
        batch_(checked_rows(x)),
        views_(checked_weights(weights)),
        weights_(plan_, [this, at = 0](const WeightShape&) mutable { return views_[at++].as<float>(); }),
        statistics_(checked_statistics(statistics)),
        eps_(eps) {}

  const char* op() const { return op_; }
  const Plan& plan() const { return plan_; }
  const cpu::TrainingRows& batch() const { return batch_; }
  cpu::TrainingModel model() const {
    return {plan_, weights_, statistics_, eps_, torch::stable::get_num_threads(), parallel_for};
  }
  // Number of the batch's statistics; 0 if none are used.
  int64_t channels() const {
    return plan_.affine && statistics_ != Statistics::given ? cpu::training_channels(plan_) : 0;
  }
  int64_t pre_activations() const { return cpu::pre_activation_floats(plan_, batch_.rows); }

 private:
  cpu::TrainingRows checked_rows(const Tensor& x) const {
    const TensorView view = cpu_view(op_, "x", x.get());
    check_matrix(op_, "x", view, plan_.in_features, RowDtypes::float32);
    return {view.as<float>(), view.strides[0], view.sizes[0]};
  }
  std::vector<TensorView> checked_weights(const std::vector<Tensor>& weights) const {
    std::vector<TensorView> views;
    for (const Tensor& weight : weights) views.push_back(cpu_view(op_, "weights", weight.get()));
    check_weights(op_, plan_, views.data(), static_cast<int64_t>(views.size()), true);
    return views;
  }
  Statistics checked_statistics(int64_t statistics) const {
    constexpr auto kCount = static_cast<int64_t>(Statistics::count);
    if (statistics < 0 || statistics >= kCount) {
      fail(op_, "statistics", expected::one_of, std::to_string(statistics), "0 to " + std::to_string(kCount - 1));
    }
    return static_cast<Statistics>(statistics);
  }

  const char* op_;
  Plan plan_;
  cpu::TrainingRows batch_;
  std::vector<TensorView> views_;
  WeightList<const float*> weights_;
  Statistics statistics_;
  double eps_;
};

Tensor empty(std::initializer_list<int64_t> sizes) { return Tensor(new_tensor(ScalarType::Float, sizes)); }

float* floats(Tensor& tensor) { return static_cast<float*>(tensor.mutable_data_ptr()); }

// Checks a tensor of the forward pass: it must have the shape and dtype that the forward pass returned.
float* state(const Arguments& arguments, const char* name, const Tensor& tensor, std::vector<int64_t> sizes) {
  const TensorView view = cpu_view(arguments.op(), name, tensor.get());
  const auto dim = static_cast<int64_t>(sizes.size());
  if (view.dim != dim || !std::equal(sizes.begin(), sizes.end(), view.sizes)) {
    fail(arguments.op(), name, expected::shape, sizes_text(view), list_text(sizes.data(), dim));
  }
  check_dtype(arguments.op(), name, view, "float32");
  check_contiguous(arguments.op(), name, view);
  return const_cast<float*>(view.as<float>());
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> train_forward(Tensor x, std::vector<Tensor> weights,
                                                                 std::vector<int64_t> plan, int64_t statistics,
                                                                 double eps, bool keep) {
  const Arguments arguments("train_forward", x, weights, plan, statistics, eps);
  const int64_t rows = arguments.batch().rows, tasks = arguments.plan().tasks;
  Tensor logits = empty({rows, tasks});
  Tensor task_logits = empty({rows, tasks});
  Tensor pre_activations = empty({keep ? arguments.pre_activations() : 0});
  Tensor mean = empty({arguments.channels()});
  Tensor variance = empty({arguments.channels()});
  const cpu::TrainingState state{floats(task_logits), keep ? floats(pre_activations) : nullptr, floats(mean),
                                 floats(variance)};
  cpu::training_forward(arguments.model(), arguments.batch(), state, floats(logits));
  return {logits, task_logits, pre_activations, mean, variance};
}

std::tuple<Tensor, Tensor> train_backward(Tensor logit_gradients, Tensor x, std::vector<Tensor> weights,
                                          Tensor task_logits, Tensor pre_activations, Tensor mean, Tensor variance,
                                          std::vector<int64_t> plan, int64_t statistics, double eps, bool x_needed) {
  const Arguments arguments("train_backward", x, weights, plan, statistics, eps);
  const int64_t rows = arguments.batch().rows, tasks = arguments.plan().tasks, channels = arguments.channels();
  const float* const logit_floats = state(arguments, "logit_gradients", logit_gradients, {rows, tasks});
  const bool kept = pre_activations.numel() > 0;
  const cpu::TrainingState forward{
      state(arguments, "task_logits", task_logits, {rows, tasks}),
      kept ? state(arguments, "pre_activations", pre_activations, {arguments.pre_activations()}) : nullptr,
      state(arguments, "mean", mean, {channels}), state(arguments, "variance", variance, {channels})};
  int64_t size = 0;
  for_each_weight(arguments.plan(), [&](const WeightShape& shape) { size += shape.size(); });
  Tensor x_gradients = empty({x_needed ? rows : 0, arguments.plan().in_features});
  Tensor weight_gradients = empty({size});
  float* next = floats(weight_gradients);
  const WeightList<float*> gradients(arguments.plan(), [&](const WeightShape& shape) {
    float* const own_part = next;
    next += shape.size();
    return own_part;
  });
  cpu::training_backward(arguments.model(), arguments.batch(), forward, logit_floats,
                         x_needed ? floats(x_gradients) : nullptr, gradients);
  return {x_gradients, weight_gradients};
}

}  // namespace resflow::torch_ops
