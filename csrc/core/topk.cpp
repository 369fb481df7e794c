#include "core/topk.h"

#include <algorithm>
#include <limits>

namespace resflow {

void TopK::push(const Ranked& candidate) {
  heap_.push_back(candidate);
  std::push_heap(heap_.begin(), heap_.end(), ranks_before);
}

void TopK::offer_run(const float* scores, int64_t count, int64_t first_position) {
  // Most scores of a long run rank behind the worst one kept: 16 comparisons without a branch skip them.
  constexpr int64_t kGroup = 16;
  for (int64_t at = 0; at < count; at += kGroup) {
    const int64_t end = std::min(at + kGroup, count);
    const bool full = static_cast<int64_t>(heap_.size()) == k_;
    const float worst = full ? heap_.front().score : std::numeric_limits<float>::quiet_NaN();
    if (worst == worst && end - at == kGroup) {
      int better = 0;
      for (int64_t i = 0; i < kGroup; ++i) better |= scores[at + i] > worst;
      if (!better) continue;
    }
    for (int64_t i = at; i < end; ++i) offer({scores[i], first_position + i});
  }
}

void TopK::replace_worst(const Ranked& candidate) {
  std::pop_heap(heap_.begin(), heap_.end(), ranks_before);
  heap_.back() = candidate;
  std::push_heap(heap_.begin(), heap_.end(), ranks_before);
}

void TopK::write(float* scores, int64_t* positions) {
  std::sort_heap(heap_.begin(), heap_.end(), ranks_before);
  const auto found = static_cast<int64_t>(heap_.size());
  for (int64_t i = 0; i < k_; ++i) {
    scores[i] = i < found ? heap_[i].score : std::numeric_limits<float>::quiet_NaN();
    positions[i] = i < found ? heap_[i].position : -1;
  }
  heap_.clear();
}

}  // namespace resflow
