// The parts of a call's workspace: memory for its kernels, and the features that they read.
#pragma once

#include "core/candidates.h"
#include "cuda/device/records.h"
#include "cuda/towers/tower_shape.h"

namespace resflow::cuda {

// Lays out the parts of a workspace, each aligned to 256 bytes.
class WorkspaceParts {
 public:
  constexpr int64_t take(int64_t bytes) {
    const int64_t from = bytes_;
    bytes_ += round_up(bytes, 256);
    return from;
  }
  constexpr int64_t bytes() const { return bytes_; }

 private:
  int64_t bytes_ = 0;
};

// The features of a call's candidates and users, which come in host memory.
class FeatureParts {
 public:
  FeatureParts(const Candidates& candidates, WorkspaceParts& parts)
      : own_(parts.take(bytes_of(candidates.x.features))), user_(parts.take(bytes_of(candidates.user.features))) {}

  // Copies the features to `memory` and points `candidates` to the copies.
  void place(Candidates& candidates, char* memory, Stream stream) const {
    place(candidates.x.features, memory + own_, stream);
    place(candidates.user.features, memory + user_, stream);
  }

 private:
  static int64_t bytes_of(const Features& features) { return features.count * static_cast<int64_t>(sizeof(Feature)); }
  static void place(Features& features, char* memory, Stream stream) {
    store_records(features.all, bytes_of(features), memory, stream);
    features.all = reinterpret_cast<const Feature*>(memory);
  }

  int64_t own_, user_;
};

}  // namespace resflow::cuda
