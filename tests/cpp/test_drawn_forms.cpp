// Drawn towers and tile programs, in every precision and form, against the formulas in doubles; and what is promised of
// scores: the same bits in any batch and form, NaN that stays with its candidate.
#include <algorithm>
#include <limits>

#include "forms_case.h"
#include "programs.h"

using namespace resflow;
using namespace resflow::testing;

namespace {

// Relative to 1 + the magnitude. A sum at a rounding's edge may round to the other side, which moves what follows by
// one step of the precision; the rounding of a catalog's sums is not in the formulas.
double tolerance_of(Precision precision) {
  return precision == Precision::float32 ? 1e-5 : precision == Precision::bfloat16 ? 2e-3 : 1e-2;
}
double tolerance_with_table(Precision precision, Precision table) {
  if (table == Precision::float32) return tolerance_of(precision);
  return precision == Precision::int8 || table == Precision::int8 ? 2e-1 : 3e-2;
}

void check_scores(const FormsCase& drawn, const Scored& got, const std::vector<float>& x, int64_t split,
                  double tolerance) {
  const Reference reference(drawn.model);
  for (int64_t r = 0; r < drawn.count; ++r) {
    const float* const row = x.data() + r * drawn.columns;
    const Row exact = reference.logits(Row(row, row + drawn.columns), split);
    got.check(r, exact, drawn.fusion, drawn.weights_of(r), tolerance);
  }
}

void check_batches(Draw& draw, const FormsCase& drawn, const Scored& whole) {
  CHECK(drawn.scores(drawn.dense(drawn.x), 3).holds(0, whole));
  if (drawn.per != WeightsPer::call) return;  // the weights of a part's candidates would be others
  for (int part = 0; part < 4; ++part) {
    const int64_t first = draw.number(0, drawn.count - 1);
    Candidates some = drawn.dense(drawn.x);
    some.x.rows = some.x.rows.from(first);
    some.count = part == 0 ? 1 : draw.number(1, drawn.count - first);
    some.offsets = nullptr;
    some.requests = 0;
    CHECK(whole.holds(first, drawn.scores(some)));
  }
}

void check_isolation(Draw& draw, const FormsCase& drawn, const Scored& whole) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN(), kInfinity = std::numeric_limits<float>::infinity();
  const int64_t poisoned = draw.number(0, drawn.count - 1);
  for (const float poison : {kNan, kInfinity, -kInfinity}) {
    std::vector<float> x = drawn.x;
    std::fill_n(x.begin() + poisoned * drawn.columns, drawn.columns, poison);
    Scored got = drawn.scores(drawn.dense(x));
    if (poison != poison && !drawn.model.plan.program) CHECK(got.is_nan(poisoned));
    whole.copy(poisoned, got, poisoned);
    CHECK(got.holds(0, whole));
  }
}

void check_bfloat16_rows(const FormsCase& drawn) {
  std::vector<uint16_t> halves;
  std::vector<float> widened;
  for (const float value : drawn.x) {
    halves.push_back(to_bfloat16(value));
    widened.push_back(from_bfloat16(halves.back()));
  }
  const Source rows{{halves.data(), Precision::bfloat16, drawn.columns}, {}};
  CHECK(drawn.scores(drawn.candidates(rows, false, false)).holds(0, drawn.scores(drawn.dense(widened))));
}

void check_topk(Draw& draw, const FormsCase& drawn, const Scored& whole) {
  const int64_t k = draw.number(1, 9);
  std::vector<float> scores(drawn.requests * k);
  std::vector<int64_t> positions(drawn.requests * k);
  cpu::towers_topk({drawn.model.model(), drawn.dense(drawn.x), drawn.weights()}, {k, scores.data(), positions.data()},
                   2);
  for (int64_t request = 0; request < drawn.requests; ++request) {
    const int64_t first = drawn.offsets[request], found = drawn.offsets[request + 1] - first;
    std::vector<int64_t> order(found);
    for (int64_t i = 0; i < found; ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return whole.score[first + a] > whole.score[first + b]; });
    for (int64_t i = 0; i < k; ++i) {
      const int64_t at = request * k + i;
      CHECK(positions[at] == (i < found ? order[i] : -1));
      CHECK(i < found ? scores[at] == whole.score[first + order[i]] : scores[at] != scores[at]);
    }
  }
}

// Programs round whole rows in int8, but for the catalog form; towers round the user's columns apart.
void check_requests(const FormsCase& drawn, const Scored& whole) {
  const Plan& plan = drawn.model.plan;
  const Scored got = drawn.scores(drawn.candidates(drawn.item.in_memory(), true, false));
  const bool bytes = plan.precision == Precision::int8;
  check_scores(drawn, got, drawn.x, bytes && !plan.program ? drawn.split : 0, tolerance_of(plan.precision));
  const bool whole_words = drawn.split % inputs_per_word(plan.precision) == 0;
  if (bytes ? plan.program != nullptr : whole_words) CHECK(got.holds(0, whole));
  CHECK(got.holds(0, drawn.scores(drawn.candidates(drawn.item.pooled(), true, true))));
}

void check_catalog(Draw& draw, const FormsCase& drawn) {
  const Plan& plan = drawn.model.plan;
  const Precision element = draw.precision();
  const int64_t width = table_width(plan, drawn.item.columns);
  if (width == 0) return;
  std::vector<char> table(drawn.count * width * bytes_of(element));
  std::vector<float> scales(element == Precision::int8 ? drawn.count : 0);
  cpu::catalog_rows(drawn.model.model(), drawn.item.in_memory().rows, drawn.count, drawn.item.columns, element,
                    table.data(), scales.empty() ? nullptr : scales.data(), 1);
  std::vector<int64_t> ids(drawn.count);
  for (int64_t& id : ids) id = draw.number(0, drawn.count - 1);
  Candidates all = drawn.candidates({}, true, false);
  all.ids = ids.data();
  all.table = {{table.data(), element, width}, scales.empty() ? nullptr : scales.data(), drawn.count};
  const double tolerance = tolerance_with_table(plan.precision, element);
  check_scores(drawn, drawn.scores(all), drawn.joined(ids), drawn.split, tolerance);
}

void check_forms(Draw& draw, const Packed& model) {
  const FormsCase drawn(draw, model);
  const Scored whole = drawn.scores(drawn.dense(drawn.x));
  check_scores(drawn, whole, drawn.x, 0, tolerance_of(model.plan.precision));
  check_batches(draw, drawn, whole);
  check_isolation(draw, drawn, whole);
  check_bfloat16_rows(drawn);
  check_topk(draw, drawn, whole);
  check_requests(drawn, whole);
  check_catalog(draw, drawn);
  const FeatureSide features(draw, drawn.count, drawn.columns);
  const Scored pooled = drawn.scores(drawn.candidates(features.pooled(), false, false));
  CHECK(pooled.holds(0, drawn.scores(drawn.dense(features.rows))));
}

}  // namespace

TEST(drawn_towers_score_as_the_formulas_in_every_form) {
  drawn(120, [](Draw& draw) {
    const int64_t columns = draw.number(2, 90);
    check_forms(draw, Packed(draw_towers(draw, columns, draw.precision())));
  });
}

TEST(drawn_programs_score_as_the_formulas_in_every_form) {
  drawn(120, [](Draw& draw) {
    const int64_t columns = draw.number(2, 90);
    check_forms(draw, Packed(draw_program(draw, columns, draw.precision())));
  });
}
