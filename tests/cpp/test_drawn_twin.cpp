// Drawn twin towers: streams of all items and lists of ids, against dot products in doubles.
#include <algorithm>
#include <cstring>

#include "core/round_row.h"
#include "cpu/twin/twin.h"
#include "draw.h"
#include "reference.h"
#include "scored.h"

using namespace resflow;
using namespace resflow::testing;

namespace {

struct TwinDraw {
  int64_t tasks, width, items, requests;
  Precision element;
  TwinCall call{};
  std::vector<float> user, scales, fusion_weights;
  std::vector<double> values;  // what the table holds, [items][tasks * width]
  std::vector<char> table;
  std::vector<int64_t> ids, offsets{0};

  explicit TwinDraw(Draw& draw)
      : tasks(draw.number(1, 4)),
        width(draw.number(1, draw.flip() ? 20 : 150)),
        items(draw.number(1, draw.flip() ? 20 : 80)),
        requests(draw.number(1, 3)),
        element(draw.precision()),
        user(draw.normals(requests * tasks * width)) {
    make_table(draw);
    for (float& value : user) value /= std::sqrt(static_cast<float>(width));
    for (int64_t r = 0; r < requests; ++r) {
      for (int64_t i = draw.number(0, 40); i > 0; --i) ids.push_back(draw.number(0, items - 1));
      offsets.push_back(static_cast<int64_t>(ids.size()));
    }
    call.model.tasks = static_cast<int32_t>(tasks);
    call.model.width = width;
    call.model.non_increasing = draw.flip();
    for (int64_t k = 0; k < tasks; ++k) call.model.parents[k] = static_cast<int32_t>(draw.number(-1, k - 1));
    call.user = {user.data(), Precision::float32, tasks * width};
    call.requests = requests;
    call.weights.fusion = draw.name<Fusion>();
    fusion_weights = draw.normals(fusion_weight_count(call.weights.fusion, tasks));
    for (float& weight : fusion_weights) weight = std::abs(weight);
    call.weights.values = fusion_weights.data();
  }
  TwinDraw(const TwinDraw&) = delete;

  TwinCall of_items() const {
    TwinCall all = call;
    all.count = items;
    return all;
  }
  TwinCall of_ids() const {
    TwinCall listed = call;
    listed.count = static_cast<int64_t>(ids.size());
    listed.ids = ids.data();
    listed.offsets = offsets.data();
    return listed;
  }

  double own_logit(int64_t request, int64_t item, int64_t task) const {
    const int64_t columns = tasks * width, first = task * width;
    const float* const begin = user.data() + request * columns + first;
    const Row vector(begin, begin + width);
    const Row used = element == Precision::int8 ? rounded(vector, element) : vector;
    double sum = 0;
    for (int64_t c = 0; c < width; ++c) sum += used[c] * values[item * columns + first + c];
    return sum;
  }

  Row logits(int64_t request, int64_t item) const {
    Row z;
    for (int64_t k = 0; k < tasks; ++k) {
      const double own = own_logit(request, item, k);
      const int32_t parent = call.model.parents[k];
      z.push_back(parent < 0 ? own : (call.model.non_increasing ? std::min(own, 0.0) : own) + z[parent]);
    }
    return z;
  }

 private:
  // A table with gaps between its rows, and its values.
  void make_table(Draw& draw) {
    const std::vector<float> vectors = draw.normals(items * tasks * width);
    const int64_t columns = tasks * width, bytes = bytes_of(element), stride = columns + draw.number(0, 3);
    std::vector<char> rows(items * columns * bytes);
    scales.resize(items * tasks, 1.0f);
    cpu::twin_rows({vectors.data(), Precision::float32, columns}, items, tasks, width, element, rows.data(),
                   element == Precision::int8 ? scales.data() : nullptr, 1);
    table.assign(((items - 1) * stride + columns) * bytes, -1);
    for (int64_t i = 0; i < items; ++i) {
      std::memcpy(table.data() + i * stride * bytes, rows.data() + i * columns * bytes, columns * bytes);
    }
    for (int64_t i = 0; i < items * columns; ++i) {
      const char* const at = rows.data() + i * bytes;
      const float scale = scales[i / columns * tasks + i % columns / width];
      values.push_back(element == Precision::int8       ? static_cast<double>(static_cast<int8_t>(*at)) * scale
                       : element == Precision::bfloat16 ? from_bfloat16(*reinterpret_cast<const uint16_t*>(at))
                                                        : *reinterpret_cast<const float*>(at));
      const double step = element == Precision::int8 ? scale : element == Precision::bfloat16 ? 0.02 : 0;
      CHECK(std::abs(values.back() - vectors[i]) <= 0.51 * step);
    }
    call.table = {{table.data(), element, stride}, element == Precision::int8 ? scales.data() : nullptr, items};
  }
};

Scored scores_of(const TwinCall& call) {
  Scored scored(call.scored(), call.model.tasks);
  cpu::twin_scores(call, scored.out(), 2);
  return scored;
}

}  // namespace

TEST(drawn_twin_towers_score_as_the_formulas) {
  drawn(120, [](Draw& draw) {
    const TwinDraw twin(draw);
    const Scored all = scores_of(twin.of_items());
    const double tolerance = twin.element == Precision::int8 ? 1e-2 : 1e-5;
    for (int64_t r = 0; r < twin.requests; ++r) {
      for (int64_t i = 0; i < twin.items; ++i) {
        const Row exact = twin.logits(r, i);
        all.check(r * twin.items + i, exact, twin.call.weights.fusion, twin.fusion_weights.data(), tolerance);
      }
    }
  });
}

TEST(drawn_lists_of_items_have_the_bits_of_the_stream) {
  drawn(120, [](Draw& draw) {
    const TwinDraw twin(draw);
    const Scored all = scores_of(twin.of_items());
    if (twin.ids.empty()) return;
    const Scored listed = scores_of(twin.of_ids());
    for (int64_t r = 0; r < twin.requests; ++r) {
      for (int64_t at = twin.offsets[r]; at < twin.offsets[r + 1]; ++at) {
        CHECK(all.holds(r * twin.items + twin.ids[at], listed.at(at)));
      }
    }
  });
}
