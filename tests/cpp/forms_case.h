// Drawn candidates in all forms of the towers: rows in memory, features that pool to the same rows, a user and items.
#pragma once

#include <deque>
#include <vector>

#include "core/round_row.h"
#include "cpu/towers/towers.h"
#include "draw.h"
#include "scored.h"

namespace resflow::testing {

// A table of rows in a precision, with gaps between them.
struct DrawnTable {
  int64_t rows, width, stride;
  Precision element;
  std::vector<char> data;
  std::vector<float> scales;
  std::vector<float> values;  // what it holds, [rows][width]

  DrawnTable(Draw& draw, int64_t rows, int64_t width, Precision element)
      : rows(rows), width(width), stride(width + draw.number(0, 3)), element(element), scales(rows) {
    data.assign(((rows - 1) * stride + width) * bytes_of(element), -1);
    for (int64_t r = 0; r < rows; ++r) {
      const std::vector<float> row = draw.normals(width);
      char* const to = data.data() + r * stride * bytes_of(element);
      round_row(row.data(), width, element, to, &scales[r]);
      for (int64_t c = 0; c < width; ++c) values.push_back(value_at(to, c, scales[r]));
    }
    if (element != Precision::int8) scales.clear();
  }

  float value_at(const char* row, int64_t column, float scale) const {
    if (element == Precision::int8) return static_cast<float>(static_cast<int8_t>(row[column])) * scale;
    if (element == Precision::bfloat16) return from_bfloat16(reinterpret_cast<const uint16_t*>(row)[column]);
    return reinterpret_cast<const float*>(row)[column];
  }
  Rows view() const { return {data.data(), element, stride}; }
  const float* scales_or_null() const { return scales.empty() ? nullptr : scales.data(); }
};

// Rows [count][columns] that features pool to.
struct FeatureSide {
  std::deque<DrawnTable> tables;
  std::deque<std::vector<int64_t>> ids;
  std::vector<Feature> features;
  int64_t columns;
  std::vector<float> rows;

  FeatureSide(Draw& draw, int64_t count, int64_t columns) : columns(columns), rows(count * columns) {
    for (int64_t column = 0; column < columns; column += features.back().width) {
      const int64_t left = columns - column;
      add_feature(draw, count, column, features.size() == 3 ? left : draw.number(1, left));
    }
  }
  FeatureSide(const FeatureSide&) = delete;

  Source pooled() const { return {{}, {features.data(), static_cast<int64_t>(features.size()), columns}}; }
  Source in_memory() const { return {{rows.data(), Precision::float32, columns}, {}}; }
  Row row(int64_t at) const { return {rows.begin() + at * columns, rows.begin() + (at + 1) * columns}; }

 private:
  void add_feature(Draw& draw, int64_t count, int64_t column, int64_t width) {
    const Precision element = draw.precision();
    const DrawnTable& table = tables.emplace_back(draw, draw.number(1, 9), width, element);
    const auto elements = static_cast<int64_t>(table.data.size()) / bytes_of(table.element);
    Feature feature{table.view(), width, table.rows, elements, table.scales_or_null(), nullptr, 1, nullptr, 0,
                    Pooling::sum, -1,    nullptr};
    std::vector<int64_t>&list = ids.emplace_back(), &offsets = ids.emplace_back(1, 0);
    const bool listed = draw.flip();
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t i = listed ? draw.number(0, 4) : 1; i > 0; --i) {
        list.push_back(draw.number(0, table.rows - 1));
        for (int64_t c = 0; c < width; ++c) rows[r * columns + column + c] += table.values[list.back() * width + c];
      }
      offsets.push_back(static_cast<int64_t>(list.size()));
    }
    feature.ids = list.data();
    if (listed) feature.offsets = offsets.data();
    feature.listed = static_cast<int64_t>(list.size());
    features.push_back(feature);
  }
};

// Candidates of some requests, each with its user's columns and its own.
struct FormsCase {
  const Packed& model;
  int64_t count, requests, columns, split;
  FeatureSide user, item;
  std::vector<int64_t> offsets{0}, request;
  Fusion fusion;
  WeightsPer per;
  std::vector<float> fusion_weights;
  std::vector<float> x;  // [count][columns]

  FormsCase(Draw& draw, const Packed& model)
      : model(model),
        count(draw.number(1, draw.flip() ? 8 : 60)),
        requests(draw.number(1, 4)),
        columns(model.plan.in_features),
        split(draw.number(1, columns - 1)),
        user(draw, requests, split),
        item(draw, count, columns - split),
        fusion(draw.name<Fusion>()),
        per(draw.name<WeightsPer>()) {
    for (int64_t r = 1; r < requests; ++r) offsets.push_back(draw.number(offsets.back(), count));
    offsets.push_back(count);
    for (int64_t r = 0; r < requests; ++r) request.resize(offsets[r + 1], r);
    for (float& weight : fusion_weights = draw.normals(count_of_weights() * std::max(count, requests))) {
      weight = std::abs(weight);
    }
    std::vector<int64_t> all(count);
    for (int64_t i = 0; i < count; ++i) all[i] = i;
    x = joined(all);
  }

  int64_t count_of_weights() const { return fusion_weight_count(fusion, model.plan.tasks); }

  // Whole rows of the candidates' users and these items.
  std::vector<float> joined(const std::vector<int64_t>& items) const {
    std::vector<float> rows;
    for (int64_t i = 0; i < count; ++i) {
      const float* const user_row = user.rows.data() + request[i] * split;
      const float* const item_row = item.rows.data() + items[i] * item.columns;
      rows.insert(rows.end(), user_row, user_row + split);
      rows.insert(rows.end(), item_row, item_row + item.columns);
    }
    return rows;
  }

  Candidates candidates(const Source& rows, bool with_user, bool pooled) const {
    Candidates all{};
    all.x = rows;
    all.count = count;
    if (with_user) all.user = pooled ? user.pooled() : user.in_memory();
    all.user_columns = with_user ? split : 0;
    all.offsets = offsets.data();
    all.requests = requests;
    return all;
  }
  Candidates dense(const std::vector<float>& rows) const {
    return candidates({{rows.data(), Precision::float32, columns}, {}}, false, false);
  }

  Scored scores(const Candidates& all, int64_t threads = 1) const {
    Scored scored(all.count, model.plan.tasks);
    cpu::towers_scores({model.model(), all, weights()}, scored.out(), threads);
    return scored;
  }
  FusionWeights weights() const { return {fusion, per, fusion_weights.data()}; }
  const float* weights_of(int64_t candidate) const {
    return fusion_weights.data() + weights_row(per, request[candidate], candidate) * count_of_weights();
  }
};

}  // namespace resflow::testing
