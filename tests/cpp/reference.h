// Towers, tile programs and fusions in doubles, read off the formulas of contract/*.def. Weights and the rows that they
// are multiplied with are rounded where the kernels round them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/number_formats.h"
#include "core/quantize.h"
#include "models.h"

namespace resflow::testing {

using Row = std::vector<double>;

inline Row columns_of(const Row& row, int64_t first, int64_t count) {
  return {row.begin() + first, row.begin() + first + count};
}

inline double activated(Activation activation, double v, double slope) {
  const double root = std::sqrt(2 / M_PI);
  switch (activation) {
    case Activation::identity:
      return v;
    case Activation::relu:
      return std::max(v, 0.0);
    case Activation::prelu:
      return v > 0 ? v : v * slope;
    case Activation::silu:
      return v / (1 + std::exp(-v));
    case Activation::gelu:
      return v / 2 * (1 + std::erf(v / std::sqrt(2.0)));
    case Activation::gelu_tanh:
      return v / 2 * (1 + std::tanh(root * (v + 0.044715 * v * v * v)));
    case Activation::tanh:
      return std::tanh(v);
    case Activation::sigmoid:
      return 1 / (1 + std::exp(-v));
    case Activation::elu:
      return v > 0 ? v : std::expm1(v);
    case Activation::softplus:
      return std::max(v, 0.0) + std::log1p(std::exp(-std::abs(v)));
    case Activation::count:
      break;
  }
  return std::numeric_limits<double>::quiet_NaN();
}

// A row as the products of a precision see it.
inline Row rounded(const Row& row, Precision precision) {
  Row result = row;
  float largest = 0;
  for (const double value : row) largest = larger_magnitude(largest, static_cast<float>(value));
  const float scale = int8_scale(largest), reciprocal = int8_reciprocal(scale);
  for (double& value : result) {
    const auto single = static_cast<float>(value);
    if (precision == Precision::bfloat16) value = from_bfloat16(to_bfloat16(single));
    if (precision == Precision::int8) value = static_cast<double>(int8_step(single * reciprocal)) * scale;
  }
  return result;
}

// A matrix [inputs][width] as packed weights hold it.
inline Row rounded_matrix(const std::vector<float>& weight, int64_t width, Precision precision) {
  Row result(weight.begin(), weight.end());
  const auto inputs = static_cast<int64_t>(weight.size()) / width;
  for (int64_t c = 0; c < width; ++c) {
    float largest = 0;
    for (int64_t i = 0; i < inputs; ++i) largest = larger_magnitude(largest, weight[i * width + c]);
    const float scale = int8_scale(largest);
    for (int64_t i = 0; i < inputs; ++i) {
      double& value = result[i * width + c];
      const auto single = static_cast<float>(value);
      if (precision == Precision::bfloat16) value = from_bfloat16(to_bfloat16(single));
      if (precision == Precision::int8) value = static_cast<double>(int8_divide(single, scale)) * scale;
    }
  }
  return result;
}

class Reference {
 public:
  explicit Reference(const Packed& model) : plan_(model.plan) {
    for_each_weight(plan_, [&](const WeightShape& shape) {
      const std::vector<float>& weight = model.weights[weights_.size()];
      weights_.push_back(shape.inputs ? rounded_matrix(weight, shape.columns, plan_.precision)
                                      : Row(weight.begin(), weight.end()));
    });
  }

  // Moves the weights by `step` times a direction.
  void move(const std::vector<std::vector<float>>& direction, double step) {
    for (size_t w = 0; w < weights_.size(); ++w) {
      for (size_t i = 0; i < weights_[w].size(); ++i) weights_[w][i] += step * direction[w][i];
    }
  }

  // The tasks' own logits of a row, or a program's outputs. The first `split` columns are rounded apart from the others
  // where the input row is multiplied.
  Row outputs(const Row& x, int64_t split = 0) const { return plan_.program ? program(x, split) : towers(x, split); }

  // The logits: own ones joined with the parents'.
  Row logits(const Row& x, int64_t split = 0) const {
    Row z = outputs(x, split);
    for (int32_t k = 0; k < plan_.tasks; ++k) {
      if (plan_.parents[k] < 0) continue;
      const double parent = z[plan_.parents[k]], own = z[k];
      if (plan_.head == Head::conditional) {
        z[k] = -std::log(std::exp(-parent) + std::exp(-own) + std::exp(-parent - own));
      } else if (plan_.logit_residual) {
        z[k] = (plan_.non_increasing ? std::min(own, 0.0) : own) + parent;
      }
    }
    return z;
  }

 private:
  Row multiply(const Row& x, int64_t split, const Row& weight, const Row& bias) const {
    Row in = rounded(columns_of(x, 0, split), plan_.precision);
    const Row rest = rounded(columns_of(x, split, static_cast<int64_t>(x.size()) - split), plan_.precision);
    in.insert(in.end(), rest.begin(), rest.end());
    Row sums = bias;
    for (size_t i = 0; i < in.size(); ++i) {
      for (size_t c = 0; c < sums.size(); ++c) sums[c] += in[i] * weight[i * sums.size() + c];
    }
    return sums;
  }

  // Applies the activation and the affine, whose vectors begin at weights_[at].
  void finish(Row& row, Activation activation, bool affine, size_t& at) const {
    const Row* const slope = activation == Activation::prelu ? &weights_[at++] : nullptr;
    for (size_t c = 0; c < row.size(); ++c) row[c] = activated(activation, row[c], slope ? (*slope)[c] : 0);
    if (!affine) return;
    const Row &scale = weights_[at++], &shift = weights_[at++];
    for (size_t c = 0; c < row.size(); ++c) row[c] = row[c] * scale[c] + shift[c];
  }

  Row towers(const Row& x, int64_t split) const {
    std::vector<std::vector<Row>> hidden(plan_.tasks);
    Row logits;
    size_t at = 0;
    for (int32_t k = 0; k < plan_.tasks; ++k) {
      Row row = x;
      for (int32_t l = 0; l < plan_.layers; ++l) {
        row = multiply(row, l == 0 ? split : 0, weights_[at], weights_[at + 1]);
        at += 2;
        finish(row, plan_.layer[l].activation, plan_.affine, at);
        const bool residual = plan_.feature_residual && plan_.parents[k] >= 0;
        for (size_t c = 0; residual && c < row.size(); ++c) row[c] += hidden[plan_.parents[k]][l][c];
        hidden[k].push_back(row);
      }
      double logit = weights_[at + 1][0];
      for (size_t c = 0; c < row.size(); ++c) logit += row[c] * weights_[at][c];
      at += 2;
      logits.push_back(logit);
    }
    return logits;
  }

  static Row read(const std::vector<Row>& values, const Segments& segments) {
    Row row;
    for (const Segment& segment : segments) {
      const Row part = columns_of(values[segment.value], segment.column, segment.width);
      row.insert(row.end(), part.begin(), part.end());
    }
    return row;
  }

  Row program(const Row& x, int64_t split) const {
    const Program& program = *plan_.program;
    std::vector<Row> values{x};
    size_t at = 0;
    for (int64_t s = 0; s < program.step_count; ++s) {
      const Step& step = program.steps[s];
      const Segment& first = step.inputs.all[0];
      Row row = read(values, step.inputs);
      if (step.kind == StepKind::linear) {
        const bool of_input_row = step.inputs.count == 1 && first.value == 0;
        const int64_t users = of_input_row ? std::clamp<int64_t>(split - first.column, 0, first.width) : 0;
        row = multiply(row, users, weights_[at], weights_[at + 1]);
        at += 2;
      } else {
        row = core(step, row);
      }
      finish(row, step.layer.activation, step.affine, at);
      for (const Segment& segment : step.factors) {
        const Row factor = columns_of(values[segment.value], segment.column, segment.width);
        for (size_t c = 0; c < row.size(); ++c) row[c] *= factor[c / (row.size() / factor.size())];
      }
      for (const Segment& segment : step.addends) {
        for (size_t c = 0; c < row.size(); ++c) row[c] += values[segment.value][segment.column + c];
      }
      values.push_back(row);
    }
    return read(values, program.outputs);
  }

  static Row core(const Step& step, const Row& in) {
    if (step.kind == StepKind::mix) return mixed(step, in);
    if (step.kind == StepKind::fm || step.kind == StepKind::dot) return interactions(step, in);
    Row out;
    const int64_t width = step.columns / step.groups;
    for (int64_t g = 0; g < step.groups; ++g) {
      const Row group = of_group(step, columns_of(in, g * width, width));
      out.insert(out.end(), group.begin(), group.end());
    }
    return out;
  }

  static Row of_group(const Step& step, Row group) {
    double sum = 0, squares = 0, exps = 0;
    for (const double value : group) {
      sum += value;
      squares += value * value;
      exps += std::exp(value);
    }
    const auto count = static_cast<double>(group.size());
    const double mean = step.kind == StepKind::layer_norm ? sum / count : 0;
    double over = 1;
    if (step.kind == StepKind::sum) return {sum};
    if (step.kind == StepKind::layer_norm) over = std::sqrt(squares / count - mean * mean + step.epsilon);
    if (step.kind == StepKind::rms_norm) over = std::sqrt(squares / count + step.epsilon);
    if (step.kind == StepKind::l2_norm) over = std::max(std::sqrt(squares), static_cast<double>(step.epsilon));
    for (double& value : group) {
      value = step.kind == StepKind::softmax ? std::exp(value) / exps : (value - mean) / over;
    }
    return group;
  }

  static Row mixed(const Step& step, const Row& in) {
    Row out(step.width);
    const int64_t gates = step.inputs.count - 1;
    for (int64_t e = 0; e < gates; ++e) {
      for (int64_t c = 0; c < step.width; ++c) out[c] += in[e] * in[gates + e * step.width + c];
    }
    return out;
  }

  static Row interactions(const Step& step, const Row& in) {
    const int64_t width = step.columns / step.groups;
    Row dots, terms(width);
    for (int64_t i = 0; i < step.groups; ++i) {
      for (int64_t j = i + 1; j < step.groups; ++j) {
        double dot = 0;
        for (int64_t c = 0; c < width; ++c) {
          const double product = in[i * width + c] * in[j * width + c];
          dot += product;
          terms[c] += product;
        }
        dots.push_back(dot);
      }
    }
    return step.kind == StepKind::fm ? terms : dots;
  }

  const Plan& plan_;
  std::vector<Row> weights_;
};

inline Row probabilities(const Row& logits) {
  Row probs;
  for (const double z : logits) probs.push_back(1 / (1 + std::exp(-z)));
  return probs;
}

inline double fused(Fusion fusion, const Row& probs, const float* weights) {
  double score = fusion == Fusion::multiplicative ? 1 : 0;
  for (size_t k = 0; k < probs.size(); ++k) {
    if (fusion == Fusion::additive) score += weights[k] * probs[k];
    if (fusion == Fusion::multiplicative) score *= std::pow(probs[k], weights[k]);
    if (fusion == Fusion::expected_value) {
      score += weights[k] * (k == 0 ? 1 - probs[0] : std::max(probs[k - 1] - probs[k], 0.0));
    }
  }
  return fusion == Fusion::expected_value ? score + weights[probs.size()] * probs.back() : score;
}

}  // namespace resflow::testing
