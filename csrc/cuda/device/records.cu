#include "cuda/device/records.h"

#include <cstring>

#include "cuda/device/launch.h"

namespace resflow::cuda {
namespace {

// Copies words through a kernel's parameters: a copy from host memory could not be captured in a CUDA graph.
struct StoreWords {
  static constexpr int kMost = 448;  // parameters are at most 4 KiB
  struct Params {
    uint64_t words[kMost];
    int64_t count;
    uint64_t* to;
  };
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocks = 1;
  static constexpr const char* kName = "store words";

  static RESFLOW_DEVICE void run(const Params& params, char*) {
    for (int64_t at = thread_index(); at < params.count; at += kThreads) store_global(params.to + at, params.words[at]);
  }
};

}  // namespace

void store_records(const void* from, int64_t bytes, void* to, Stream stream) {
  const int64_t words = bytes / static_cast<int64_t>(sizeof(uint64_t));
  for (int64_t first = 0; first < words; first += StoreWords::kMost) {
    StoreWords::Params params{};
    params.count = words - first < StoreWords::kMost ? words - first : StoreWords::kMost;
    params.to = static_cast<uint64_t*>(to) + first;
    std::memcpy(params.words, static_cast<const char*>(from) + first * static_cast<int64_t>(sizeof(uint64_t)),
                static_cast<size_t>(params.count) * sizeof(uint64_t));
    launch<StoreWords>(params, 1, 0, stream);
  }
}

}  // namespace resflow::cuda
