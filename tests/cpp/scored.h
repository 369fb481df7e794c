// The outputs of a call that ends in scores.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/candidates.h"
#include "draw.h"
#include "reference.h"

namespace resflow::testing {

inline bool near(double got, double exact, double tolerance) {
  return std::abs(got - exact) <= tolerance * (1 + std::abs(exact));
}

struct Scored {
  int64_t tasks;
  std::vector<float> logits, probs, score;

  Scored(int64_t candidates, int64_t tasks)
      : tasks(tasks), logits(candidates * tasks, -7), probs(candidates * tasks, -7), score(candidates, -7) {}

  ScoresOut out() { return {logits.data(), probs.data(), score.data()}; }

  // One candidate's.
  Scored at(int64_t candidate) const {
    Scored one(1, tasks);
    copy(candidate, one, 0);
    return one;
  }
  void copy(int64_t candidate, Scored& to, int64_t place) const {
    std::copy_n(logits.begin() + candidate * tasks, tasks, to.logits.begin() + place * tasks);
    std::copy_n(probs.begin() + candidate * tasks, tasks, to.probs.begin() + place * tasks);
    to.score[place] = score[candidate];
  }

  // Whether candidates from `first` on have the bits of all those of another call.
  bool holds(int64_t first, const Scored& other) const {
    const auto count = static_cast<int64_t>(other.score.size());
    return same_bits(logits.data() + first * tasks, other.logits.data(), count * tasks) &&
           same_bits(probs.data() + first * tasks, other.probs.data(), count * tasks) &&
           same_bits(score.data() + first, other.score.data(), count);
  }

  bool is_nan(int64_t candidate) const {
    const float* const first = logits.data() + candidate * tasks;
    return std::isnan(score[candidate]) && std::all_of(first, first + tasks, [](float z) { return std::isnan(z); });
  }

  // Checks the logits; the probabilities and the score are those of the logits, and of the probabilities.
  void check(int64_t candidate, const Row& exact, Fusion fusion, const float* weights, double tolerance) const {
    Row found(tasks);
    for (int64_t k = 0; k < tasks; ++k) {
      const double logit = logits[candidate * tasks + k];
      found[k] = probs[candidate * tasks + k];
      CHECK(near(logit, exact[k], tolerance));
      CHECK(near(found[k], 1 / (1 + std::exp(-logit)), 1e-6));
    }
    CHECK(near(score[candidate], fused(fusion, found, weights), 1e-5));
  }
};

}  // namespace resflow::testing
