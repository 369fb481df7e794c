// A ring buffer of weights in shared memory: chunks of a panel of packed weights (core/plan.h) are copied while earlier
// chunks are multiplied.
#pragma once

#include "cuda/towers/tower_shape.h"

namespace resflow::cuda {

// Consecutive words of a panel's columns, [words][width]; no words: the end.
struct Chunk {
  const float* from;
  int32_t words;
  int32_t width;
};

// The chunk of a layer's panel that begins at a word; `weights` is the task's packed block.
RESFLOW_DEVICE Chunk chunk_of(const LayerLayout& layer, const float* weights, int64_t panel, int64_t word,
                              int64_t end_word) {
  const int64_t column = panel * kPanelWidth;
  const int64_t left = layer.padded - column, words = end_word - word;
  const int64_t width = left < kPanelWidth ? left : kPanelWidth;
  return {weights + layer.panels + layer.words * column + word * width,
          static_cast<int32_t>(words < kChunkWords ? words : kChunkWords), static_cast<int32_t>(width)};
}

class WeightRing {
 public:
  explicit RESFLOW_DEVICE WeightRing(char* shared) : shared_(reinterpret_cast<float*>(shared)) {}

  // next() returns the chunks in the order in which they will be taken. All threads of the block call it together.
  template <class Next>
  RESFLOW_DEVICE void begin(Next& next) {
    for (int stage = 0; stage + 1 < kRingStages; ++stage) load(next(), stage);
    stage_ = 0;
  }

  // The next chunk, [words rounded up to products][kRingStride], zeros past its words. It is valid until the next call,
  // which also synchronises the block: earlier stores to shared memory are visible to all threads.
  template <class Next>
  RESFLOW_DEVICE const uint32_t* take(Next& next) {
    copy_async_wait<kRingStages - 2>();
    sync_block();
    load(next(), (stage_ + kRingStages - 1) % kRingStages);
    const float* const own = shared_ + stage_ * (kRingStageBytes / 4);
    stage_ = (stage_ + 1) % kRingStages;
    return reinterpret_cast<const uint32_t*>(own);
  }

 private:
  RESFLOW_DEVICE void load(const Chunk& chunk, int stage) {
    constexpr int kPieces = kPanelWidth / 4, kRowsAtOnce = kTowerThreads / kPieces;
    const int piece = 4 * (thread_index() % kPieces);
    float* const to = shared_ + stage * (kRingStageBytes / 4) + piece;
    const int rows = static_cast<int>(round_up(chunk.words, kProductWords));
    if (piece < chunk.width) {
      for (int row = thread_index() / kPieces; row < rows; row += kRowsAtOnce) {
        const bool exists = row < chunk.words;
        copy_async_16(to + row * kRingStride, exists ? chunk.from + row * chunk.width + piece : chunk.from,
                      exists ? 16 : 0);
      }
    }
    copy_async_commit();
  }

  float* shared_;
  int stage_ = 0;
};

}  // namespace resflow::cuda
