// Chooses the kernel for a call: the table of variants and the rules, on the host only.
#pragma once

#include <iterator>

#include "cuda/device/launch.h"
#include "cuda/towers/program_layout.h"
#include "cuda/towers/tower_shape.h"

namespace resflow::cuda {

template <class Params>
using LaunchOf = void (*)(const Params&, int64_t blocks, int64_t shared_bytes, Stream);

// Tiles of the tower kernel, best first: with more rows, each weight read is used more often. The last takes any plan.
struct TowerVariant {
  int32_t rows;
  bool in_shared;
};
constexpr TowerVariant kTowerVariants[] = {{64, true}, {32, true}, {16, true}, {16, false}};

// The small-batch kernel takes batches whose tiles of 16 rows would leave at least half of the SMs idle.
constexpr int64_t kSplitTilesPerMultiprocessor = 2;
constexpr int kSplitRows = 16;
constexpr int64_t split_tiles(int64_t rows) { return (rows + kSplitRows - 1) / kSplitRows; }

// Blocks that fit on an SM: bounded by shared memory (the system takes 1 KiB per block) and by registers. Of the tower
// kernel three do at 144 to 168 per thread, of the program kernel two.
constexpr int64_t kTowerBlocks = 3, kProgramBlocks = 2;
constexpr int64_t blocks_per_multiprocessor(int64_t shared_bytes, int64_t most, const Device& device) {
  const int64_t fit = (device.shared_bytes + 1024) / (shared_bytes + 1024);
  return fit < 1 ? 1 : fit > most ? most : fit;
}

template <class Shape>
struct TileChoice {
  int32_t variant;  // index in kTowerVariants
  Shape shape;
  int64_t shared_bytes;
  int64_t blocks;
  int64_t tile_memory_bytes;
};
using TowerChoice = TileChoice<TowerShape>;
using ProgramChoice = TileChoice<ProgramShape>;

// Chooses the first variant whose shape, shape_of(rows), fits; of those in shared memory one whose tiles, if there are
// enough for that, occupy at least `least_tiles` SMs.
template <class Shape, class ShapeOf>
constexpr TileChoice<Shape> choose_tile(int64_t count, int64_t least_tiles, int64_t most_blocks, const Device& device,
                                        ShapeOf shape_of) {
  TileChoice<Shape> choice{};
  for (; choice.variant < static_cast<int32_t>(std::size(kTowerVariants)); ++choice.variant) {
    const TowerVariant& variant = kTowerVariants[choice.variant];
    choice.shape = shape_of(variant.rows);
    choice.shared_bytes = choice.shape.shared_bytes(variant.in_shared);
    if (choice.shared_bytes > device.shared_bytes) continue;
    const int64_t tiles = (count + variant.rows - 1) / variant.rows;
    if (variant.rows > kSplitRows && tiles < least_tiles) continue;
    const int64_t most = device.multiprocessors * blocks_per_multiprocessor(choice.shared_bytes, most_blocks, device);
    choice.blocks = tiles < most ? tiles : most;
    choice.tile_memory_bytes = variant.in_shared ? 0 : choice.blocks * choice.shape.tile_bytes;
    break;
  }
  return choice;
}

constexpr TowerChoice choose_tower(const Plan& plan, int64_t first_input, int64_t columns, int64_t count,
                                   const Device& device) {
  return choose_tile<TowerShape>(count, 0, kTowerBlocks, device,
                                 [&](int32_t rows) { return tower_shape(plan, rows, first_input, columns); });
}

// Results do not depend on the rows of a tile, so small batches get small tiles, which occupy more SMs.
inline ProgramChoice choose_program(const RecordedProgram& program, int32_t tasks, int64_t count,
                                    const Device& device) {
  return choose_tile<ProgramShape>(count, device.multiprocessors, kProgramBlocks, device,
                                   [&](int32_t rows) { return program_shape(program, tasks, rows); });
}

// Rows per tile of the projection by the first layers.
constexpr int64_t kProjectRows = 16;

struct ProjectChoice {
  FirstLayer first;
  int64_t stride;  // of the operand, in words
  int32_t parts;   // blocks that share a tile of rows
  int64_t blocks;
  int64_t shared_bytes;
  int64_t tile_memory_bytes;  // 0 if operands are in shared memory
};

constexpr ProjectChoice choose_project(const Plan& plan, int64_t first_input, int64_t columns, int64_t count,
                                       const Device& device) {
  ProjectChoice choice{};
  choice.first = FirstLayer::of(first_input, columns, inputs_per_word(plan.precision));
  choice.stride = operand_stride(choice.first.words);
  const int64_t tiles = (count + kProjectRows - 1) / kProjectRows;
  // Few rows: several blocks share a tile, each taking some panels of the weights. Many rows: one block per tile.
  const int64_t panels = plan.tasks * panels_of(plan.layer[0]);
  choice.parts = static_cast<int32_t>(tiles < device.multiprocessors ? panels : 1);
  choice.blocks = tiles * choice.parts;
  const int64_t tile_bytes = 4 * kProjectRows * choice.stride;
  const bool fits = kRingBytes + tile_bytes <= device.shared_bytes;
  choice.shared_bytes = kRingBytes + (fits ? tile_bytes : 0);
  choice.tile_memory_bytes = fits ? 0 : choice.blocks * tile_bytes;
  return choice;
}

// Row stride, in words, of the widest operand of a plan's layers; the first layer's operand is candidates or users.
constexpr int64_t widest_operand(const Plan& plan, const FirstLayer& first, const FirstLayer& user_first) {
  int64_t stride = operand_stride(first.words > user_first.words ? first.words : user_first.words);
  for (int32_t l = 1; l < plan.layers; ++l) {
    const int64_t own = hidden_operand_stride(plan, l);
    stride = own > stride ? own : stride;
  }
  return stride;
}

}  // namespace resflow::cuda
