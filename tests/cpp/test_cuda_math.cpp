// The device's functions of single numbers, against formulas in double.
#include <cmath>
#include <iterator>
#include <limits>
#include <vector>

#include "check.h"
#include "cuda/towers/head.h"

using namespace resflow;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

double exact_sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }
double exact_log_sigmoid(double x) { return std::fmin(x, 0.0) - std::log1p(std::exp(-std::fabs(x))); }
double exact_logit_of_product(double a, double b) {
  const double p = exact_log_sigmoid(a) + exact_log_sigmoid(b);
  return p - std::log(-std::expm1(p));
}

double exact_activation(Activation activation, double v, double slope) {
  switch (activation) {
    case Activation::relu:
      return std::fmax(v, 0.0);
    case Activation::prelu:
      return v < 0 ? v * slope : v;
    case Activation::silu:
      return v * exact_sigmoid(v);
    case Activation::gelu:
      return 0.5 * v * (1.0 + std::erf(v * std::sqrt(0.5)));
    case Activation::gelu_tanh:
      return 0.5 * v * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (v + 0.044715 * v * v * v)));
    case Activation::tanh:
      return std::tanh(v);
    case Activation::sigmoid:
      return exact_sigmoid(v);
    case Activation::elu:
      return v > 0 ? v : std::expm1(v);
    case Activation::softplus:
      return -exact_log_sigmoid(-v);
    case Activation::identity:
    case Activation::count:
      break;
  }
  return v;
}

bool near(float got, double exact, double bound = 1e-6) {
  return std::fabs(got - exact) <= bound * (1 + std::fabs(exact));
}

std::vector<float> some_numbers() {
  std::vector<float> numbers{0.0f, -0.0f, 1e-30f, -1e-30f};
  for (float x = -30.0f; x <= 30.0f; x += 0.37f) numbers.push_back(x);
  return numbers;
}

}  // namespace

TEST(activations_are_exact_and_keep_nan) {
  for (int32_t code = 0; code < static_cast<int32_t>(Activation::count); ++code) {
    const auto activation = static_cast<Activation>(code);
    for (const float v : some_numbers()) {
      CHECK(near(cuda::activate(activation, v, 0.2f), exact_activation(activation, v, 0.2f)));
    }
    CHECK(std::isnan(cuda::activate(activation, cuda::kNan, 0.2f)));
  }
}

TEST(logits_of_products_are_exact_and_keep_nan_and_infinities) {
  for (const float a : some_numbers()) {
    CHECK(near(cuda::sigmoid(a), exact_sigmoid(a)) && near(cuda::log_sigmoid(a), exact_log_sigmoid(a)));
    for (const float b : some_numbers()) {
      if (std::fmin(a, b) < 15) CHECK(near(cuda::logit_of_product(a, b), exact_logit_of_product(a, b)));
    }
    for (const float other : {a, kInfinity, -kInfinity, cuda::kNan}) {
      CHECK(std::isnan(cuda::logit_of_product(other, cuda::kNan)));
      CHECK(std::isnan(cuda::logit_of_product(cuda::kNan, other)));
    }
    CHECK(cuda::logit_of_product(a, kInfinity) == a && cuda::logit_of_product(kInfinity, a) == a);
    CHECK(cuda::logit_of_product(a, -kInfinity) == -kInfinity && cuda::logit_of_product(-kInfinity, a) == -kInfinity);
  }
  CHECK(std::isnan(cuda::sigmoid(cuda::kNan)) && std::isnan(cuda::log_sigmoid(cuda::kNan)));
  CHECK(cuda::sigmoid(-kInfinity) == 0 && cuda::sigmoid(kInfinity) == 1 && cuda::log_sigmoid(kInfinity) == 0);
}

TEST(heads_join_parents_as_the_plan_says) {
  Plan plan{};
  plan.tasks = 2;
  plan.parents[0] = -1;
  plan.head = Head::residual;
  plan.logit_residual = true;
  CHECK(cuda::join_logit(plan, 0, 3.0f, cuda::kNan) == 3.0f);
  CHECK(cuda::join_logit(plan, 1, 3.0f, 0.5f) == 3.5f && cuda::join_logit(plan, 1, -3.0f, 0.5f) == -2.5f);
  plan.non_increasing = true;
  CHECK(cuda::join_logit(plan, 1, 3.0f, 0.5f) == 0.5f && cuda::join_logit(plan, 1, -3.0f, 0.5f) == -2.5f);
  CHECK(std::isnan(cuda::join_logit(plan, 1, cuda::kNan, 0.5f)));
  plan.logit_residual = false;
  CHECK(cuda::join_logit(plan, 1, 3.0f, 0.5f) == 3.0f);
  plan.head = Head::conditional;
  CHECK(near(cuda::join_logit(plan, 1, 3.0f, 0.5f), exact_logit_of_product(3.0, 0.5)));
}

TEST(fusions_are_exact_and_keep_nan) {
  const std::vector<float> logits{1.5f, -0.5f, 0.2f}, weights{0.3f, 2.0f, 1.2f, 0.7f};
  const double p[] = {exact_sigmoid(1.5), exact_sigmoid(-0.5), exact_sigmoid(logits[2])};
  const double exact[] = {weights[0] * p[0] + weights[1] * p[1] + weights[2] * p[2],
                          std::pow(p[0], weights[0]) * std::pow(p[1], weights[1]) * std::pow(p[2], weights[2]),
                          weights[0] * (1 - p[0]) + weights[1] * (p[0] - p[1]) + weights[3] * p[2]};
  static_assert(std::size(exact) == static_cast<size_t>(Fusion::count), "a fusion without its exact value here");
  for (int32_t code = 0; code < static_cast<int32_t>(Fusion::count); ++code) {
    const auto fusion = static_cast<Fusion>(code);
    std::vector<float> of = logits;
    const auto score = [&] {
      return cuda::fuse(fusion, 3, [&](int32_t k) { return of[k]; }, [&](int32_t index) { return weights[index]; });
    };
    CHECK(near(score(), exact[code]));
    for (float& logit : of) {
      logit = cuda::kNan;
      CHECK(std::isnan(score()));
      logit = 0.0f;
    }
  }
  // p ^ 0 is 1 even where p is 0.
  const auto one = [](float weight) {
    return cuda::fuse(Fusion::multiplicative, 1, [](int32_t) { return -kInfinity; }, [=](int32_t) { return weight; });
  };
  CHECK(one(0.0f) == 1.0f && one(0.5f) == 0.0f);
}
