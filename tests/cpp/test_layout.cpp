// The tensor panels of packed weights, and the order in which the Hopper kernel loads them.
#include <cstring>
#include <functional>
#include <random>
#include <set>
#include <tuple>
#include <vector>

#include "check.h"
#include "core/number_formats.h"
#include "core/tensor_panels.h"
#include "cuda/towers/tower_sm90_schedule.h"
#include "models.h"

using namespace resflow;
using namespace resflow::testing;
using cuda::RingPlace;
using cuda::RingStep;
using cuda::TowerSchedule;

namespace {

// Inputs, columns of x in the request form, tasks: the specification's workloads of 128-64, and odd splits.
struct Shape {
  int64_t inputs;
  int64_t columns;
  int64_t tasks;
};
const std::vector<Shape> kShapes = {{608, 608, 2}, {608, 288, 2}, {576, 576, 3}, {576, 256, 3}, {744, 744, 5},
                                    {744, 344, 5}, {744, 744, 9}, {744, 344, 9}, {40, 40, 3},   {130, 2, 1}};

// What Hopper gives a block.
constexpr int64_t kSharedBytes = 232448;

TowerSchedule schedule_of(const Shape& shape, int64_t candidates, int32_t groups = cuda::kMostGroups) {
  return cuda::tower_schedule(shape.tasks, shape.inputs, shape.columns, candidates, groups, kSharedBytes);
}

}  // namespace

TEST(every_element_of_the_panels_has_a_place_of_its_own) {
  for (const Shape& shape : kShapes) {
    for (const TensorPanels panels : {TensorPanels{shape.inputs, 128}, TensorPanels{128, 64}, TensorPanels{70, 16}}) {
      std::vector<bool> seen(panels.bytes() / 2);
      for (int64_t k = 0; k < panels.chunks() * kChunkInputs; ++k) {
        for (int64_t c = 0; c < panels.padded; ++c) {
          const int64_t at = panels.byte_of(k, c);
          CHECK(at % 2 == 0 && at >= 0 && at < panels.bytes() && !seen[at / 2]);
          seen[at / 2] = true;
        }
      }
      CHECK(std::find(seen.begin(), seen.end(), false) == seen.end());
    }
  }
}

TEST(eight_columns_of_a_piece_lie_in_all_banks) {
  const TensorPanels panels{576, 128};
  for (int64_t k = 0; k < panels.inputs; k += 8) {
    for (int64_t c = 0; c < panels.padded; c += 8) {
      std::set<int64_t> banks;
      for (int64_t i = 0; i < 8; ++i) banks.insert(panels.byte_of(k, c + i) % 128 / 16);
      CHECK(banks.size() == 8);
    }
  }
}

TEST(packed_weights_are_repeated_in_tensor_panels) {
  for (const Precision precision : {Precision::bfloat16, Precision::float16}) {
    const Packed model(encode(70, {33, 7}, {-1, 0}, Activation::prelu, true, precision));
    const Plan& plan = model.plan;
    CHECK(plan.tensor_start % kTensorAlignment == 0 && plan.tensor_bytes % kTensorAlignment == 0);
    CHECK(plan.packed_bytes == plan.tensor_start + plan.tasks * plan.tensor_bytes);
    std::vector<char> expected(plan.tasks * plan.tensor_bytes);
    for (int32_t k = 0; k < plan.tasks; ++k) {
      for (int32_t l = 0; l < plan.layers; ++l) {
        const LayerLayout& layer = plan.layer[l];
        const TensorPanels panels{layer.inputs, layer.padded};
        const std::vector<float>& weight = model.weights[k * 12 + l * 5];
        char* const to = expected.data() + k * plan.tensor_bytes + layer.tensor_panels;
        for (int64_t i = 0; i < layer.inputs; ++i) {
          for (int64_t c = 0; c < layer.width; ++c) {
            const float value = weight[i * layer.width + c];
            const uint16_t bits = precision == Precision::bfloat16 ? to_bfloat16(value) : to_float16(value);
            std::memcpy(to + panels.byte_of(i, c), &bits, sizeof(bits));
          }
        }
      }
    }
    CHECK(std::memcmp(expected.data(), model.bytes.data() + plan.tensor_start, expected.size()) == 0);
  }
  const Packed without(encode(70, {33, 7}, {-1, 0}));
  CHECK(without.plan.packed_bytes == without.plan.tensor_start && without.plan.tensor_bytes == 0);
}

TEST(the_blocks_of_a_grid_load_every_chunk_of_every_tile_once) {
  for (const Shape& shape : kShapes) {
    for (const int32_t blocks : {1, 3, 132}) {
      const TowerSchedule schedule = schedule_of(shape, 1000);
      CHECK(schedule.tiles == 8 && schedule.stages >= cuda::kLeastStages && schedule.bytes() <= kSharedBytes);
      std::set<std::tuple<int32_t, int32_t, int32_t>> loaded;
      int64_t loads = 0;
      for (int32_t block = 0; block < blocks; ++block) {
        int64_t step_of_block = 0;
        cuda::for_each_ring_step(schedule, block, blocks, [&](const RingStep& step) {
          CHECK(step.tile % blocks == block);
          CHECK(step.place.stage == step_of_block % schedule.stages);
          CHECK(step.place.parity == step_of_block / schedule.stages % 2);
          loaded.insert({step.tile, step.task, step.chunk});
          ++loads;
          ++step_of_block;
        });
      }
      const int64_t all = schedule.tiles * shape.tasks * (schedule.chunks + 1);
      CHECK(loads == all && static_cast<int64_t>(loaded.size()) == all);
    }
  }
}

TEST(chunks_of_x_cover_its_columns_and_meet_their_weights) {
  for (const Shape& shape : kShapes) {
    const TowerSchedule schedule = schedule_of(shape, 128);
    const int64_t user_columns = shape.inputs - shape.columns;
    CHECK(schedule.first_column <= 0 && schedule.first_column > -kChunkInputs);
    const int64_t end = schedule.first_column + schedule.chunks * kChunkInputs;
    CHECK(end >= shape.columns && end - kChunkInputs < shape.columns);
    CHECK(schedule.first_chunk * kChunkInputs == user_columns + schedule.first_column);
    CHECK(schedule.first_chunk + schedule.chunks == TensorPanels({shape.inputs, 128}).chunks());
  }
}

TEST(inputs_that_do_not_fit_have_no_schedule) {
  CHECK(schedule_of({769, 769, 2}, 128).stages == 0);
  CHECK(schedule_of({768, 768, 2}, 128).stages == cuda::kLeastStages);
  CHECK(schedule_of({768, 768, 2}, 128, 1).stages == cuda::kMostStages);
  CHECK(schedule_of({2000, 700, 2}, 128).stages >= cuda::kLeastStages);
  CHECK(cuda::tower_schedule(2, 576, 576, 128, 2, 100 * 1024).stages == 0);
}

namespace {

// A barrier as Hopper has them: of parity p a wait is over once the phase is of the other parity.
struct Barrier {
  int arrivals;
  int arrived = 0;
  int64_t phase = 0;

  void arrive() {
    if (++arrived < arrivals) return;
    arrived = 0;
    ++phase;
  }
  bool past(uint32_t parity) const { return static_cast<uint32_t>(phase & 1) != parity; }
};

// One of a block's roles: steps it takes in order, each once its condition holds.
struct Role {
  std::vector<std::function<bool()>> ready;
  std::vector<std::function<void()>> act;
  size_t next = 0;

  void then(std::function<bool()> condition, std::function<void()> action) {
    ready.push_back(std::move(condition));
    act.push_back(std::move(action));
  }
  bool ended() const { return next == act.size(); }
  bool step() {
    if (ended() || !ready[next]()) return false;
    act[next++]();
    return true;
  }
};

using Tag = std::tuple<int32_t, int32_t, int32_t>;  // tile, task, chunk

// A buffer that one role fills and the computing groups empty.
struct Buffer {
  Barrier full{1};
  Barrier empty{2};
  Tag holds{-1, -1, -1};
};

// The roles of one block with its ring and vectors, run in random order; x is loaded apart, by tile and chunk.
struct Block {
  TowerSchedule schedule;
  std::vector<Buffer> ring, x;
  Buffer vectors;
  Role weights, inputs, groups[2];
  int64_t vector_stalls = 0;

  explicit Block(const TowerSchedule& of, int32_t blocks) : schedule(of), ring(of.stages), x(of.chunks) {
    uint32_t parity = 0;
    cuda::for_each_ring_step(schedule, 0, blocks, [&](const RingStep& step) {
      fill(weights, ring[step.place.stage], step.place.parity, {step.tile, step.task, step.chunk});
      if (step.chunk != schedule.vectors_after()) return;
      weights.then([] { return true; }, [this, parity] { vector_stalls += !vectors.empty.past(parity ^ 1); });
      fill(weights, vectors, parity, {step.tile, step.task, 0});
      parity ^= 1;
    });
    parity = 0;
    for (int32_t tile = 0; tile < schedule.tiles; tile += blocks, parity ^= 1) {
      for (int32_t chunk = 0; chunk < schedule.chunks; ++chunk) fill(inputs, x[chunk], parity, {tile, 0, chunk});
    }
    for (Role& group : groups) compute(group, blocks);
  }

  static void fill(Role& role, Buffer& buffer, uint32_t parity, Tag tag) {
    role.then([&buffer, parity] { return buffer.empty.past(parity ^ 1); }, [&buffer, tag] { buffer.holds = tag; });
    role.then([] { return true; }, [&buffer] { buffer.full.arrive(); });
  }
  static void use(Role& role, Buffer& buffer, uint32_t parity, Tag tag) {
    role.then([&buffer, parity] { return buffer.full.past(parity); }, [&buffer, tag] { CHECK(buffer.holds == tag); });
  }
  static void release(Role& role, Buffer& buffer, Tag tag) {
    role.then([] { return true; },
              [&buffer, tag] {
                CHECK(buffer.holds == tag);
                buffer.empty.arrive();
              });
  }

  // The order of TowerGroup: a chunk is released once the next one's products have begun.
  void compute(Role& role, int32_t blocks) {
    RingPlace place;
    uint32_t x_parity = 0, vectors_parity = 0;
    for (int32_t tile = 0; tile < schedule.tiles; tile += blocks, x_parity ^= 1) {
      for (int32_t task = 0; task < schedule.tasks; ++task, vectors_parity ^= 1) {
        RingPlace former;
        const auto release_chunk = [&](int32_t chunk) {
          release(role, ring[former.stage], {tile, task, chunk});
          if (task + 1 == schedule.tasks) release(role, x[chunk], {tile, 0, chunk});
        };
        for (int32_t chunk = 0; chunk < schedule.chunks; ++chunk) {
          if (task == 0) use(role, x[chunk], x_parity, {tile, 0, chunk});
          use(role, ring[place.stage], place.parity, {tile, task, chunk});
          if (chunk > 0) release_chunk(chunk - 1);
          former = place;
          place.advance(schedule.stages);
        }
        release_chunk(schedule.chunks - 1);
        use(role, vectors, vectors_parity, {tile, task, 0});
        use(role, ring[place.stage], place.parity, {tile, task, schedule.chunks});
        release(role, ring[place.stage], {tile, task, schedule.chunks});
        place.advance(schedule.stages);
        release(role, vectors, {tile, task, 0});
      }
    }
  }

  // Whether all roles came to their end.
  bool run(std::mt19937& generator) {
    Role* const roles[] = {&weights, &inputs, &groups[0], &groups[1]};
    for (int64_t idle = 0; idle < 1000;) {
      Role& role = *roles[generator() % 4];
      // Bursts, so that one role runs far ahead of the others.
      int64_t steps = 0;
      for (const int64_t most = 1 + generator() % 40; steps < most && role.step(); ++steps) {
      }
      idle = steps > 0 ? 0 : idle + 1;
    }
    return weights.ended() && inputs.ended() && groups[0].ended() && groups[1].ended();
  }
};

}  // namespace

TEST(in_any_order_of_a_blocks_roles_each_reads_what_was_loaded_for_it) {
  std::mt19937 generator(11);
  for (const Shape& shape : kShapes) {
    const TowerSchedule schedule = schedule_of(shape, 7 * 128);
    for (int turn = 0; turn < 5; ++turn) {
      Block block(schedule, 2);
      CHECK(block.run(generator));
      // What vectors_after promises; with fewer chunks than stages the loader may wait, and nothing is lost.
      if (schedule.stages < schedule.chunks) CHECK(block.vector_stalls == 0);
    }
  }
}
