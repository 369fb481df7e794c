#include <algorithm>
#include <set>

#include "check.h"
#include "core/error.h"
#include "models.h"

using namespace resflow;
using namespace resflow::testing;

TEST(a_chain_needs_one_slot) {
  const Plan plan = decode(encode(10, {8, 4}, {-1, 0, 1, 2, 3, 4, 5}));
  CHECK(plan.slots == 1);
}

TEST(slots_are_never_shared_with_a_task_that_is_still_read) {
  for (const std::vector<int64_t>& parents : std::vector<std::vector<int64_t>>{
           {-1, 0, 0, 0}, {-1, -1, 0, 1, 0, 1}, {-1, 0, 1, 0, 1, 2, 2}, {-1, -1, -1}, {-1, 0, 0, 2, 2, 1, 0}}) {
    const Plan plan = decode(encode(10, {8, 4}, parents));
    for (int32_t k = 0; k < plan.tasks; ++k) {
      for (int32_t writer = k + 1; writer < plan.tasks; ++writer) {
        const bool read_later =
            std::any_of(parents.begin() + writer + 1, parents.end(), [&](int64_t p) { return p == k; });
        if (read_later) CHECK(plan.slot[writer] != plan.slot[k] && plan.logit_slot[writer] != plan.logit_slot[k]);
      }
      CHECK(plan.slot[k] < plan.slots && plan.logit_slot[k] < plan.logit_slots);
    }
  }
}

TEST(each_packed_float_is_written_once) {
  const Packed model(encode(37, {80, 33, 7}, {-1, 0}));
  const auto* floats = reinterpret_cast<const float*>(model.bytes.data() + kHeaderBytes);
  std::multiset<float> packed, given;
  for (int64_t i = 0; i < (model.plan.packed_bytes - kHeaderBytes) / 4; ++i) {
    if (floats[i] != 0) packed.insert(floats[i]);
  }
  for (const auto& weight : model.weights) given.insert(weight.begin(), weight.end());
  CHECK(packed == given);
  // W_0[k][c] of task 0: panel c / 64, whose width is 64 and then 16 (80 columns).
  const auto& first = model.weights[0];
  CHECK(floats[5 * 64 + 3] == first[5 * 80 + 3]);
  CHECK(floats[37 * 64 + 5 * 16 + 3] == first[5 * 80 + 67]);
}

TEST(sizes_beyond_two_to_the_31_are_64_bit) {
  const Plan plan = decode(encode(1 << 20, {1 << 20, 4}, {-1, 0}));
  CHECK(plan.layer[0].bias == int64_t{1} << 40);
  CHECK(plan.packed_bytes > (int64_t{1} << 43));
}

TEST(an_overflowing_plan_is_refused) {
  bool refused = false;
  try {
    decode(encode(1 << 30, {1 << 30, 1 << 30}, std::vector<int64_t>(64, -1)));
  } catch (const InvalidInput&) {
    refused = true;
  }
  CHECK(refused);
}
