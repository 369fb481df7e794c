// The k best of a stream of scores: score descending, equal scores by lower position, NaN after every number.
#pragma once

#include <cstdint>
#include <vector>

namespace resflow {

struct Ranked {
  float score;
  int64_t position;
};

// A strict total order on distinct positions, so the k best do not depend on the order of arrival.
inline bool ranks_before(const Ranked& a, const Ranked& b) {
  const bool a_nan = a.score != a.score;
  const bool b_nan = b.score != b.score;
  if (a_nan != b_nan) return b_nan;
  if (!a_nan && a.score != b.score) return a.score > b.score;
  return a.position < b.position;
}

// Keeps the k best candidates offered so far, in a heap whose front is the worst of them.
class TopK {
 public:
  explicit TopK(int64_t k) : k_(k) {}

  void offer(const Ranked& candidate) {
    if (static_cast<int64_t>(heap_.size()) < k_) {
      push(candidate);
    } else if (ranks_before(candidate, heap_.front())) {
      replace_worst(candidate);
    }
  }
  // Offers a run of scores whose positions follow all those offered before, so that an equal score ranks behind.
  void offer_run(const float* scores, int64_t count, int64_t first_position);

  void merge(const TopK& other) {
    for (const Ranked& candidate : other.heap_) offer(candidate);
  }
  void clear() { heap_.clear(); }

  // Writes k scores and positions, best first, padded with NaN and -1; empties the heap.
  void write(float* scores, int64_t* positions);

 private:
  void push(const Ranked& candidate);
  void replace_worst(const Ranked& candidate);

  int64_t k_;
  std::vector<Ranked> heap_;
};

}  // namespace resflow
