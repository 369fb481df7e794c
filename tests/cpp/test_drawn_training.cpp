// Drawn towers in training: logits against the formulas in doubles, and gradients against differences of those.
#include <numeric>

#include "cpu/threads/thread_pool.h"
#include "cpu/training/training.h"
#include "draw.h"
#include "scored.h"

using namespace resflow;
using namespace resflow::testing;

namespace {

using Weights = std::vector<std::vector<float>>;

// As training has matrices, [outputs, inputs].
Weights transposed(const Plan& plan, const Weights& weights, bool back = false) {
  Weights result = weights;
  size_t at = 0;
  for_each_weight(plan, [&](const WeightShape& shape) {
    for (int64_t i = 0; i < shape.inputs; ++i) {
      for (int64_t c = 0; c < shape.columns; ++c) {
        const int64_t by_input = i * shape.columns + c, by_output = c * shape.inputs + i;
        result[at][back ? by_input : by_output] = weights[at][back ? by_output : by_input];
      }
    }
    ++at;
  });
  return result;
}

// Pointers to all weights, in their order.
template <class Pointer>
WeightList<Pointer> listed(const Plan& plan, Weights& weights) {
  size_t at = 0;
  return {plan, [&](const WeightShape&) { return weights[at++].data(); }};
}

double dot(const std::vector<float>& a, const std::vector<float>& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

// A batch, a direction in which its rows and the weights move, and the gradients of its logits.
struct Batch {
  const Packed& model;
  int64_t rows, columns;
  std::vector<float> x, x_direction, logit_gradients;
  Weights direction;

  Batch(Draw& draw, const Packed& model)
      : model(model),
        rows(draw.number(1, draw.flip() ? 8 : 60)),
        columns(model.plan.in_features),
        x(draw.normals(rows * columns)),
        x_direction(draw.normals(rows * columns)),
        logit_gradients(draw.normals(rows * model.plan.tasks)) {
    for (const std::vector<float>& weight : model.weights) {
      direction.push_back(draw.normals(static_cast<int64_t>(weight.size())));
    }
  }

  // The logits of all rows after a step in the direction.
  Row logits(double step) const {
    Reference reference(model);
    reference.move(direction, step);
    Row all;
    for (int64_t r = 0; r < rows; ++r) {
      Row row(x.begin() + r * columns, x.begin() + (r + 1) * columns);
      for (int64_t c = 0; c < columns; ++c) row[c] += step * x_direction[r * columns + c];
      const Row some = reference.logits(row);
      all.insert(all.end(), some.begin(), some.end());
    }
    return all;
  }
  double loss(double step) const {
    const Row all = logits(step);
    return std::inner_product(all.begin(), all.end(), logit_gradients.begin(), 0.0);
  }
};

void check_training(Draw& draw, const Packed& model) {
  const Plan& plan = model.plan;
  const Batch batch(draw, model);
  Weights weights = transposed(plan, model.weights), gradients = weights;
  const WeightList<const float*> given = listed<const float*>(plan, weights);
  const cpu::TrainingModel training{plan, given, Statistics::given, 0, 2, cpu::parallel_for};
  std::vector<float> task_logits(batch.rows * plan.tasks), pre(cpu::pre_activation_floats(plan, batch.rows));
  std::vector<float> logits(task_logits.size()), x_gradients(batch.x.size());
  const cpu::TrainingState state{task_logits.data(), draw.flip() ? pre.data() : nullptr, nullptr, nullptr};
  const cpu::TrainingRows rows{batch.x.data(), batch.columns, batch.rows};
  cpu::training_forward(training, rows, state, logits.data());
  const Row exact = batch.logits(0);
  for (size_t i = 0; i < exact.size(); ++i) CHECK(near(logits[i], exact[i], 1e-5));

  cpu::training_backward(training, rows, state, batch.logit_gradients.data(), x_gradients.data(),
                         listed<float*>(plan, gradients));
  gradients = transposed(plan, gradients, true);
  double slope = dot(x_gradients, batch.x_direction), size = std::abs(slope);
  for (size_t w = 0; w < gradients.size(); ++w) {
    const double part = dot(gradients[w], batch.direction[w]);
    slope += part;
    size += std::abs(part);
  }
  constexpr double kStep = 1e-6;
  CHECK(std::abs(slope - (batch.loss(kStep) - batch.loss(-kStep)) / (2 * kStep)) <= 1e-5 * (1 + size));
}

}  // namespace

TEST(drawn_towers_train_by_the_gradients_of_the_formulas) {
  drawn(80, [](Draw& draw) {
    const int64_t columns = draw.number(1, 90);
    check_training(draw, Packed(draw_towers(draw, columns, Precision::float32)));
  });
}
