#include "core/topk.h"

#include <algorithm>
#include <limits>

namespace resflow {

void TopK::push(const Ranked& candidate) {
  heap_.push_back(candidate);
  std::push_heap(heap_.begin(), heap_.end(), ranks_before);
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
