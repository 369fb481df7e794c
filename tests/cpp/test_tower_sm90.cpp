// The Hopper kernel on the emulator, against the CPU kernels.
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "core/number_formats.h"
#include "cpu/towers/towers.h"
#include "cuda/towers/tower_sm90_launch.h"
#include "models.h"

using namespace resflow;
using namespace resflow::testing;

namespace {

constexpr float kGuard = 12345.0f;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Of a plan, its encoding and how it is scored.
struct Case {
  Encoded encoded;
  Fusion fusion = Fusion::additive;
  WeightsPer per = WeightsPer::call;

  Case& set(PlanField field, int64_t value) {
    encoded[static_cast<int64_t>(field)] = value;
    return *this;
  }
};

std::vector<int64_t> chain_of(int64_t tasks) {
  std::vector<int64_t> parents;
  for (int64_t k = 0; k < tasks; ++k) parents.push_back(k - 1);
  return parents;
}

Case towers(int64_t in_features, const std::vector<int64_t>& parents, Precision precision = Precision::bfloat16,
            Activation activation = Activation::prelu, bool affine = true) {
  return {encode(in_features, {128, 64}, parents, activation, affine, precision)};
}

// Rows of 16-bit values, and what they are as floats.
struct Matrix {
  int64_t rows, columns;
  std::vector<uint16_t> words;
  std::vector<float> floats;

  Matrix(int64_t rows, int64_t columns, Precision precision, uint32_t seed)
      : rows(rows), columns(columns), words(rows * columns), floats(rows * columns) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < rows * columns; ++i) set(i, normal(generator), precision);
  }
  void set(int64_t at, float value, Precision precision) {
    const bool bfloat16 = precision == Precision::bfloat16;
    words[at] = bfloat16 ? to_bfloat16(value) : to_float16(value);
    floats[at] = bfloat16 ? from_bfloat16(words[at]) : from_float16(words[at]);
  }
  Rows narrow(Precision precision) const { return {words.data(), precision, columns}; }
  Rows wide() const { return {floats.data(), Precision::float32, columns}; }
};

struct Scores {
  std::vector<float> logits, probs, score;

  Scores(int64_t rows, int64_t tasks)
      : logits(rows * tasks + 16, kGuard), probs(rows * tasks + 16, kGuard), score(rows + 16, kGuard) {}
};

// A model, its candidates and their scores on either side.
struct Scene {
  Case of;
  Packed model;
  const Plan& plan = model.plan;
  int64_t user_columns;
  std::vector<int64_t> offsets;  // none in the dense form
  Matrix x, user;
  std::vector<float> weights, starts;

  Scene(const Case& of, int64_t rows, int64_t user_columns = 0, std::vector<int64_t> offsets = {})
      : of(of),
        model(of.encoded),
        user_columns(user_columns),
        offsets(offsets),
        x(rows, plan.in_features - user_columns, plan.precision, 7),
        user(requests(), user_columns, plan.precision, 8) {
    const int64_t weight_rows = of.per == WeightsPer::call ? 1 : of.per == WeightsPer::request ? requests() : rows;
    std::mt19937 generator(9);
    std::uniform_real_distribution<float> uniform(0.2f, 1.5f);
    for (int64_t i = 0; i < weight_rows * weight_count(); ++i) weights.push_back(uniform(generator));
    if (user_columns > 0) project_users();
  }

  int64_t requests() const { return offsets.empty() ? 0 : static_cast<int64_t>(offsets.size()) - 1; }
  int64_t weight_count() const { return fusion_weight_count(of.fusion, plan.tasks); }
  FusionWeights fusion() const { return {of.fusion, of.per, weights.data()}; }

  // Where the first layers' sums begin, as another kernel computes them.
  void project_users() {
    const int64_t width = plan.layer[0].width, tensors = static_cast<int64_t>(model.weights.size()) / plan.tasks;
    for (int64_t r = 0; r < requests(); ++r) {
      for (int32_t k = 0; k < plan.tasks; ++k) {
        const auto &weight = model.weights[k * tensors], &bias = model.weights[k * tensors + 1];
        for (int64_t c = 0; c < width; ++c) {
          double sum = bias[c];
          const float* const row = user.floats.data() + r * user_columns;
          for (int64_t i = 0; i < user_columns; ++i) sum += row[i] * rounded(weight[i * width + c]);
          starts.push_back(static_cast<float>(sum));
        }
      }
    }
  }
  float rounded(float value) const {
    return plan.precision == Precision::bfloat16 ? from_bfloat16(to_bfloat16(value)) : from_float16(to_float16(value));
  }

  cuda::TowerCall call(Scores& out) const {
    cuda::TowerCall call{};
    call.plan = plan;
    call.packed = model.bytes.data();
    call.candidates.x = {x.narrow(plan.precision), {}};
    call.candidates.count = x.rows;
    call.candidates.user_columns = user_columns;
    call.candidates.offsets = offsets.empty() ? nullptr : offsets.data();
    call.candidates.requests = requests();
    call.fusion = fusion();
    call.fusion_weight_count = weight_count();
    call.accum_init = starts.empty() ? nullptr : starts.data();
    call.logits = out.logits.data();
    call.probs = out.probs.data();
    call.score = out.score.data();
    return call;
  }

  // On a GPU of two multiprocessors, where blocks take several tiles each: of 64 rows if two of them are all, else 128.
  void launch(const cuda::TowerCall& call, Scores& out, int64_t multiprocessors = 2) const {
    const cuda::Device device{multiprocessors, 232448, 90};
    cuda::Buffers buffers;
    const auto allow = [&](const auto& values, bool writable, int64_t less = 0) {
      buffers.allow(values.data(), static_cast<int64_t>((values.size() - less) * sizeof(values[0])), writable);
    };
    allow(model.bytes, false);
    allow(x.words, false);
    allow(weights, false);
    allow(starts, false);
    allow(offsets, false);
    allow(out.logits, true, 16);
    allow(out.probs, true, 16);
    allow(out.score, true, 16);
    CHECK(cuda::covered_by_tower_sm90(call.plan, call.candidates, device));
    cuda::launch_tower_sm90(call, device, nullptr);
  }

  Scores emulated(uint64_t seed = 1, int64_t multiprocessors = 2) const {
    Scores out(x.rows, plan.tasks);
    cuda::set_schedule_seed(seed);
    launch(call(out), out, multiprocessors);
    return out;
  }

  // The CPU has no float16: there the same model in float32, which is finer.
  Scores expected() const {
    Encoded encoded = of.encoded;
    const bool bfloat16 = plan.precision == Precision::bfloat16;
    encoded[static_cast<int64_t>(PlanField::precision)] =
        static_cast<int64_t>(bfloat16 ? Precision::bfloat16 : Precision::float32);
    const Packed same(encoded);
    Candidates candidates{};
    candidates.x = {bfloat16 ? x.narrow(plan.precision) : x.wide(), {}};
    candidates.count = x.rows;
    candidates.offsets = offsets.empty() ? nullptr : offsets.data();
    candidates.requests = requests();
    if (user_columns > 0) {
      candidates.user = {bfloat16 ? user.narrow(plan.precision) : user.wide(), {}};
      candidates.user_columns = user_columns;
    }
    Scores out(x.rows, plan.tasks);
    cpu::towers_scores({{same.plan, same.bytes.data()}, candidates, fusion()},
                       {out.logits.data(), out.probs.data(), out.score.data()}, 1);
    return out;
  }
};

bool near(float got, float wanted, double tolerance) {
  return std::abs(static_cast<double>(got) - wanted) <= tolerance * (1 + std::abs(static_cast<double>(wanted)));
}

void check(const Scene& scene) {
  // In bfloat16 the sides sum in different orders, so that a hidden output can round to its other neighbour; in float16
  // one side rounds and the other does not.
  const double tolerance = scene.plan.precision == Precision::bfloat16 ? 1e-3 : 4e-3;
  const Scores got = scene.emulated(), wanted = scene.expected();
  for (size_t i = 0; i < got.logits.size(); ++i) {
    CHECK(near(got.logits[i], wanted.logits[i], tolerance));
    CHECK(near(got.probs[i], wanted.probs[i], tolerance));
  }
  for (size_t i = 0; i < got.score.size(); ++i) CHECK(near(got.score[i], wanted.score[i], tolerance));
}

}  // namespace

TEST(the_workloads_in_the_dense_form) {
  for (const int64_t rows : {1, 100, 300}) check(Scene(towers(608, chain_of(2)), rows));
  check(Scene(towers(576, chain_of(3)), 300));
  check(Scene(towers(744, chain_of(5)), 100));
  Case progressive = towers(744, chain_of(9));
  progressive.set(PlanField::feature_residual, 0).fusion = Fusion::expected_value;
  check(Scene(progressive, 130));
}

TEST(the_workloads_in_the_request_form) {
  check(Scene(towers(608, chain_of(2)), 100, 320, {0, 60, 100}));
  check(Scene(towers(576, chain_of(3)), 300, 320, {0, 1, 1, 128, 300}));
  // 400 user columns and 344 of items: the first chunk of x begins with the user's last 16 inputs.
  check(Scene(towers(744, chain_of(5)), 130, 400, {0, 130}));
  Case progressive = towers(744, chain_of(9));
  progressive.set(PlanField::feature_residual, 0).fusion = Fusion::expected_value;
  check(Scene(progressive, 1, 400, {0, 0, 1}));
}

TEST(float16) {
  check(Scene(towers(576, chain_of(3), Precision::float16), 130));
  check(Scene(towers(130, chain_of(3), Precision::float16), 130, 42, {0, 50, 130}));
}

TEST(few_inputs_and_those_that_are_no_multiple_of_anything) {
  for (const int64_t inputs : {8, 64, 72, 200}) check(Scene(towers(inputs, chain_of(2)), 20));
  for (const int64_t user_columns : {1, 63, 64, 65, 191}) {
    check(Scene(towers(user_columns + 8, chain_of(2)), 20, user_columns, {0, 20}));
  }
}

TEST(every_activation_with_and_without_an_affine) {
  for (int activation = 0; activation < static_cast<int>(Activation::count); ++activation) {
    for (const bool affine : {false, true}) {
      check(Scene(towers(40, chain_of(3), Precision::bfloat16, static_cast<Activation>(activation), affine), 5));
    }
  }
}

TEST(topologies_and_heads) {
  const std::vector<std::vector<int64_t>> forests = {{-1, 0, -1, 2, 3}, {-1, -1, -1}, {-1}};
  for (const auto& parents : forests) {
    check(Scene(towers(40, parents), 20));
    Case conditional = towers(40, parents);
    check(Scene(conditional.set(PlanField::logit_residual, 0).set(PlanField::head, 1), 20));
  }
  for (const auto& parents : std::vector<std::vector<int64_t>>{{-1, 0, 0, 0, 0}, {-1, -1, 0, 1, 2, 0, 3, 3}}) {
    Case logits_alone = towers(40, parents);
    logits_alone.set(PlanField::feature_residual, 0);
    check(Scene(logits_alone, 20));
    check(Scene(logits_alone.set(PlanField::non_increasing, 1), 20));
    check(Scene(logits_alone.set(PlanField::non_increasing, 0).set(PlanField::logit_residual, 0), 20));
  }
  check(Scene(towers(8, chain_of(64)), 3));
}

TEST(fusions_with_weights_of_their_own) {
  for (const Fusion fusion : {Fusion::additive, Fusion::multiplicative, Fusion::expected_value}) {
    for (const WeightsPer per : {WeightsPer::call, WeightsPer::request, WeightsPer::candidate}) {
      Case of = towers(40, chain_of(3));
      of.fusion = fusion;
      of.per = per;
      check(Scene(of, 140, 16, {0, 70, 70, 140}));
      if (per != WeightsPer::request) check(Scene(of, 5));
    }
  }
}

TEST(a_score_does_not_depend_on_the_batch_or_the_schedule) {
  const Case of = towers(200, chain_of(3));
  const Scene many(of, 300), one(of, 1), some(of, 129);
  const Scores all = many.emulated(1), again = many.emulated(2), first = one.emulated(3), part = some.emulated(4);
  const Scores small_tiles = many.emulated(5, 132);
  const auto same = [](const std::vector<float>& a, const std::vector<float>& b, int64_t count) {
    return std::memcmp(a.data(), b.data(), count * sizeof(float)) == 0;
  };
  CHECK(same(all.logits, again.logits, 900) && same(all.probs, again.probs, 900) && same(all.score, again.score, 300));
  CHECK(same(all.logits, small_tiles.logits, 900) && same(all.score, small_tiles.score, 300));
  CHECK(same(all.logits, first.logits, 3) && same(all.probs, first.probs, 3) && same(all.score, first.score, 1));
  CHECK(same(all.logits, part.logits, 387) && same(all.probs, part.probs, 387) && same(all.score, part.score, 129));
}

TEST(a_single_row_of_any_stride) {
  const Scene scene(towers(40, chain_of(2)), 1);
  const Scores whole = scene.emulated();
  Scores out(1, 2);
  cuda::TowerCall call = scene.call(out);
  call.candidates.x.rows.stride = 3;
  scene.launch(call, out);
  CHECK(out.logits == whole.logits && out.score == whole.score);
}

TEST(nan_and_infinity_reach_their_own_candidate_alone) {
  const Case of = towers(200, chain_of(2), Precision::bfloat16, Activation::relu);
  Scene scene(of, 140);
  const Scores clean = scene.emulated();
  scene.x.set(3 * 200 + 199, kNan, Precision::bfloat16);
  scene.x.set(139 * 200, std::numeric_limits<float>::infinity(), Precision::bfloat16);
  scene.x.set(139 * 200 + 1, -std::numeric_limits<float>::infinity(), Precision::bfloat16);
  const Scores out = scene.emulated();
  for (int64_t r = 0; r < 140; ++r) {
    const bool touched = r == 3 || r == 139;
    for (int64_t k = 0; k < 2; ++k) {
      const float logit = out.logits[r * 2 + k];
      CHECK(touched ? std::isnan(logit) || (r == 139 && std::isinf(logit)) : logit == clean.logits[r * 2 + k]);
    }
    if (!touched) CHECK(out.score[r] == clean.score[r]);
  }
  CHECK(std::isnan(out.score[3]));
}

// The device's offsets are not checked: whatever they say, no other memory is read, and who belongs to no request gets
// NaN.
TEST(candidates_of_no_request_have_no_score) {
  Case of = towers(40, chain_of(2));
  of.per = WeightsPer::request;
  Scene scene(of, 20, 16, {0, 10, 20});
  const Scores whole = scene.emulated();
  scene.offsets = {5, 10, 15};
  const Scores out = scene.emulated();
  for (int64_t r = 0; r < 20; ++r) {
    const bool inside = r >= 5 && r < 15;
    for (int64_t k = 0; k < 2; ++k) {
      CHECK(inside ? out.logits[r * 2 + k] == whole.logits[r * 2 + k] : std::isnan(out.logits[r * 2 + k]));
      CHECK(inside ? out.probs[r * 2 + k] == whole.probs[r * 2 + k] : std::isnan(out.probs[r * 2 + k]));
    }
    CHECK(inside ? out.score[r] == whole.score[r] : std::isnan(out.score[r]));
  }
  scene.offsets = {20, -7, 1000};
  scene.emulated();
}

TEST(scores_alone) {
  const Scene scene(towers(40, chain_of(3)), 140);
  const Scores whole = scene.emulated();
  Scores out(140, 3);
  cuda::TowerCall call = scene.call(out);
  call.logits = call.probs = nullptr;
  scene.launch(call, out);
  CHECK(out.score == whole.score);
  CHECK(out.logits == std::vector<float>(140 * 3 + 16, kGuard) && out.probs == out.logits);
}

TEST(what_is_not_covered_is_refused) {
  const cuda::Device hopper{132, 232448, 90};
  const auto covered = [](const Case& of, const cuda::Device& device, auto change) {
    const Scene scene(of, 5);
    Scores out(5, scene.plan.tasks);
    cuda::TowerCall call = scene.call(out);
    change(call);
    return cuda::covered_by_tower_sm90(call.plan, call.candidates, device);
  };
  const auto as_it_is = [](cuda::TowerCall&) {};
  const Case of = towers(40, chain_of(3));
  CHECK(covered(of, hopper, as_it_is));
  for (const int capability : {80, 89, 100, 120}) CHECK(!covered(of, {132, 232448, capability}, as_it_is));
  CHECK(!covered(of, {132, 48 * 1024, 90}, as_it_is));
  CHECK(!covered(towers(40, {-1, 0, 0}), hopper, as_it_is));
  Case star = towers(40, {-1, -1, -1, -1, -1, 0, 1, 2, 3, 4});
  CHECK(!covered(star.set(PlanField::feature_residual, 0), hopper, as_it_is));
  CHECK(!covered(towers(40, chain_of(3), Precision::float32), hopper, as_it_is));
  CHECK(!covered(towers(776, chain_of(3)), hopper, as_it_is));
  CHECK(!covered({encode(40, {128, 64, 32}, {-1}, Activation::relu, true, Precision::bfloat16)}, hopper, as_it_is));
  CHECK(!covered({encode(40, {64, 128}, {-1}, Activation::relu, true, Precision::bfloat16)}, hopper, as_it_is));
  CHECK(!covered(of, hopper, [](cuda::TowerCall& call) { call.candidates.x.rows.element = Precision::float32; }));
  CHECK(!covered(of, hopper, [](cuda::TowerCall& call) { call.candidates.x.rows.stride = 44; }));
  CHECK(!covered(of, hopper, [](cuda::TowerCall& call) { call.candidates.x.rows.stride = 0; }));
  CHECK(!covered(of, hopper, [](cuda::TowerCall& call) {
    call.candidates.x.rows.data = static_cast<const char*>(call.candidates.x.rows.data) + 2;
  }));
  CHECK(!covered(of, hopper, [](cuda::TowerCall& call) { call.candidates.x.features.count = 1; }));
  CHECK(!covered(of, hopper, [](cuda::TowerCall& call) { call.plan.layer[1].activation = Activation::relu; }));
}
