// Towers of widths 128 and 64 on Hopper, dense or request form, in one launch. tower_sm90_schedule.h has the order of
// loads; tower_sm90_launch.h the calls that are covered.
//
// A block has two warpgroups that compute, 64 rows each, and one that loads. The two wait only for memory and for the
// loader, never for each other, so that the epilogue of one is hidden behind the products of the other. If all tiles of
// half the rows run at once, blocks have one computing warpgroup; results are bitwise the same. Everything passed
// between layers and tasks (outputs of both layers for the residuals, the second layer's operand, logits) stays in
// registers.
#pragma once

#include "cuda/device/numbers.h"
#include "cuda/towers/head.h"
#include "cuda/towers/requests.h"
#include "cuda/towers/tower_sm90_loader.h"

namespace resflow::cuda {

// Number of logits kept for child tasks: one in each of the four threads that share a row.
constexpr int32_t kLogitSlots = 4;

// A row of a tile.
struct TowerRow {
  int32_t candidate;
  int32_t request;  // 0 in the dense form; -1 for a candidate without a request or past the last, or if the weights
                    // were packed for another plan
  RunningScore score;

  RESFLOW_DEVICE void begin(const TowerCall& call) {
    const Candidates& candidates = call.candidates;
    score = {};
    request = exists(candidates) && packed_for(call.plan, call.packed) ? 0 : -1;
    if (request < 0 || !candidates.offsets) return;
    request = static_cast<int32_t>(request_of(candidates.offsets, candidates.requests, candidate));
  }

  RESFLOW_DEVICE bool exists(const Candidates& candidates) const { return candidate < candidates.count; }

  RESFLOW_DEVICE float weight(const TowerCall& call, int32_t i) const {
    if (request < 0) return 0.0f;
    const int64_t row = weights_row(call.fusion.per, request, candidate);
    return load_constant(call.fusion.values + row * call.fusion_weight_count + i);
  }
};

// One of the computing warpgroups. Of its 64 rows (WarpgroupProduct) a thread holds two, 8 apart, and of each group of
// 8 columns two adjacent ones; four threads share the two rows. From the logits on, each pair of them has one row.
template <Precision kPrecision, Activation kActivation>
class TowerGroup {
  using Operand = Numbers<kPrecision>;
  using Product = typename Operand::Product;

 public:
  RESFLOW_DEVICE TowerGroup(const TowerSm90Params& params, const TowerMemory& memory)
      : params_(params), call_(params.call), plan_(params.call.plan), schedule_(params.schedule), memory_(memory) {}

  RESFLOW_DEVICE void run() {
    row_.candidate = own_block() * schedule_.rows() + thread_index() / 32 * 16 + lane() / 4 + 8 * own_row();
    for (int32_t tile = own_block(); tile < schedule_.tiles; tile += blocks()) {
      row_.begin(call_);
      for (int32_t task = 0; task < plan_.tasks; ++task) run_task(task);
      write_score();
      row_.candidate += blocks() * schedule_.rows();
      x_parity_ ^= 1;
    }
  }

 private:
  // Whether the next task's first sums are initialised during a task's epilogue: activations that take many registers
  // leave none for that.
  static constexpr bool kBeginsEarly = !ActivationFormula<kActivation>::kManyRegisters;
  static constexpr int kSums1 = tower_width(0) / 2, kSums2 = tower_width(1) / 2;

  static RESFLOW_DEVICE int lane() { return thread_index() % 32; }
  static RESFLOW_DEVICE int own_row() { return lane() % 4 / 2; }
  // The i-th of the four threads that share rows, and the first of those that have row i.
  static RESFLOW_DEVICE int sharer(int i) { return lane() / 4 * 4 + i; }
  static RESFLOW_DEVICE int owner(int i) { return sharer(2 * i); }
  static RESFLOW_DEVICE int column(int group) { return 8 * group + 2 * (lane() % 4); }
  static RESFLOW_DEVICE Pair pair_at(const float* from) { return *reinterpret_cast<const Pair*>(from); }
  RESFLOW_DEVICE const float* weights_of(int32_t task) const {
    return reinterpret_cast<const float*>(static_cast<const char*>(call_.packed) + kHeaderBytes) +
           task * plan_.task_floats;
  }

  RESFLOW_DEVICE void run_task(int32_t task) {
    if (!plan_.feature_residual || plan_.parents[task] < 0) forget_outputs();
    if (task == 0 || !kBeginsEarly) begin_first(task);
    multiply_first(task);
    barrier_wait(memory_.vectors_full(), vectors_parity_);
    touch_all(sums1_);
    finish<0>(sums1_, outputs1_);
    float sums2[kSums2];
    begin_sums(sums2, [&](int column) { return pair_at(memory_.vectors() + kBiasAt + column); });
    multiply_second(sums2);
    // The next task's initial sums are loaded while this task ends.
    if (kBeginsEarly && task + 1 < plan_.tasks) begin_first(task + 1);
    finish<1>(sums2, outputs2_);
    join(task);
    release(memory_.vectors_empty());
    vectors_parity_ ^= 1;
  }

  RESFLOW_DEVICE void forget_outputs() {
#pragma unroll
    for (int i = 0; i < kSums1; ++i) outputs1_[i] = 0.0f;
#pragma unroll
    for (int i = 0; i < kSums2; ++i) outputs2_[i] = 0.0f;
  }

  // Initialises the sums of every row with the biases.
  template <int kSums, class Bias>
  static RESFLOW_DEVICE void begin_sums(float (&sums)[kSums], Bias bias_at) {
#pragma unroll
    for (int j = 0; j < kSums / 4; ++j) {
      const Pair bias = bias_at(column(j));
      sums[4 * j] = sums[4 * j + 2] = bias.low;
      sums[4 * j + 1] = sums[4 * j + 3] = bias.high;
    }
  }

  RESFLOW_DEVICE void begin_first(int32_t task) {
    if (!call_.accum_init) {
      const float* const biases = weights_of(task) + plan_.layer[0].bias;
      return begin_sums(sums1_, [&](int at) { return load_constant(reinterpret_cast<const Pair*>(biases + at)); });
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int32_t request = shuffle_from(row_.request, owner(i));
      const float* const start = call_.accum_init + (int64_t{request} * plan_.tasks + task) * tower_width(0);
#pragma unroll
      for (int j = 0; j < kSums1 / 4; ++j) {
        Pair own{};
        if (request >= 0) own = load_constant(reinterpret_cast<const Pair*>(start + column(j)));
        sums1_[4 * j + 2 * i] = own.low;
        sums1_[4 * j + 2 * i + 1] = own.high;
      }
    }
  }

  // Signals that the warp no longer uses the memory that the barrier guards.
  static RESFLOW_DEVICE void release(uint64_t* barrier) {
    sync_warp();
    if (lane() == 0) barrier_arrive(barrier);
  }

  static RESFLOW_DEVICE void release_in_cluster(uint64_t* barrier) {
    sync_warp();
    if (lane() < kTowerCluster) barrier_arrive_at(barrier, lane());
  }

  template <int kSums>
  static RESFLOW_DEVICE void touch_all(float (&sums)[kSums]) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) touch(sums[i]);
  }

  RESFLOW_DEVICE void multiply_first(int32_t task) {
    // The shuffle tells the compiler that the value is uniform in a warp: descriptors then stay in uniform registers.
    const int own_rows =
        shuffle_from(thread_index() / kGroupThreads, 0) * static_cast<int>(kGroupRows * kChunkRowBytes);
    const bool last_task = task + 1 == plan_.tasks;
    const auto release_chunk = [&](int chunk, int stage) {
      release_in_cluster(memory_.stage_empty(stage));
      if (last_task) release(memory_.x_empty(chunk));
    };
    int former_stage = 0;
    touch_all(sums1_);
    for (int chunk = 0; chunk < schedule_.chunks; ++chunk) {
      if (task == 0) barrier_wait(memory_.x_full(chunk), x_parity_);
      barrier_wait(memory_.stage_full(place_.stage), place_.parity);
      const uint64_t a = describe_matrix(memory_.x(chunk) + own_rows);
      const uint64_t b = describe_matrix(memory_.stage(place_.stage));
      products_begin();
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        WarpgroupProduct<Product, 128>::multiply(sums1_, a + kStep * step, b + kStep * step);
      }
      products_commit();
      if (chunk > 0) {
        products_wait<1>();
        release_chunk(chunk - 1, former_stage);
      }
      former_stage = place_.stage;
      place_.advance(schedule_.stages);
    }
    products_wait<0>();
    release_chunk(schedule_.chunks - 1, former_stage);
  }

  // The first layer's outputs, rounded, already have the register layout of the operand.
  RESFLOW_DEVICE void multiply_second(float (&sums)[kSums2]) {
    uint32_t a[2 * kSteps][4];
#pragma unroll
    for (int step = 0; step < 2 * kSteps; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = 8 * step + 2 * i;
        a[step][i] = Operand::word(outputs1_[at], outputs1_[at + 1]);
      }
    }
    barrier_wait(memory_.stage_full(place_.stage), place_.parity);
    const uint64_t b = describe_matrix(memory_.stage(place_.stage));
    touch_all(sums);
    products_begin();
#pragma unroll
    for (int step = 0; step < 2 * kSteps; ++step) {
      const uint64_t chunk = step / kSteps * (tower_width(1) * kChunkRowBytes / kDescribedBytes);
      WarpgroupProduct<Product, 64>::multiply(sums, a[step], b + chunk + kStep * (step % kSteps));
    }
    products_commit();
    products_wait<0>();
    release_in_cluster(memory_.stage_empty(place_.stage));
    touch_all(sums);
    place_.advance(schedule_.stages);
  }

  // outputs = affine(act(sums)) + outputs
  template <int kLayer, int kSums>
  RESFLOW_DEVICE void finish(const float (&sums)[kSums], float (&outputs)[kSums]) const {
#pragma unroll
    for (int j = 0; j < kSums / 4; ++j) {
      const float* const vectors = memory_.vectors() + column(j);
      Pair slope{};
      if constexpr (kActivation == Activation::prelu) slope = pair_at(vectors + slope_at(kLayer));
      const Pair scale = pair_at(vectors + scale_at(kLayer)), shift = pair_at(vectors + shift_at(kLayer));
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int at = 4 * j + 2 * i;
        outputs[at] += fmaf(activate<kActivation>(sums[at], slope.low), scale.low, shift.low);
        outputs[at + 1] += fmaf(activate<kActivation>(sums[at + 1], slope.high), scale.high, shift.high);
      }
    }
  }

  // Computes the task's logit r, then z and p, writes them and adds them to the score.
  RESFLOW_DEVICE void join(int32_t task) {
    const float sums[2] = {head_sum(0), head_sum(1)};
    const int32_t parent = plan_.parents[task];
    const int keeper = sharer(parent < 0 ? 0 : plan_.logit_slot[parent]);
    const float parents[2] = {shuffle_from(logits_[0], keeper), shuffle_from(logits_[1], keeper)};
    // The score of a candidate without a request is NaN.
    const float no_score = row_.request < 0 ? kNan : 0.0f;
    const float own = (own_row() == 0 ? sums[0] : sums[1]) + memory_.vectors()[kHeadAt + tower_width(1)] + no_score;
    const float logit = join_logit(plan_, task, own, own_row() == 0 ? parents[0] : parents[1]);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float kept = shuffle_from(logit, owner(i));
      if (lane() % kLogitSlots == plan_.logit_slot[task]) logits_[i] = kept;
    }
    const float prob = sigmoid(logit);
    row_.score.add(call_.fusion.fusion, task, logit, prob, [&](int32_t at) { return row_.weight(call_, at); });
    float* const out = lane() % 2 == 0 ? call_.logits : call_.probs;
    if (!row_.exists(call_.candidates) || !out) return;
    store_global(out + int64_t{row_.candidate} * plan_.tasks + task, lane() % 2 == 0 ? logit : prob);
  }

  // o^2 . w of row i in a fixed order of summation; all four threads that share the row return it.
  RESFLOW_DEVICE float head_sum(int i) const {
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < kSums2 / 4; ++j) {
      const Pair weight = pair_at(memory_.vectors() + kHeadAt + column(j));
      sum = fmaf(outputs2_[4 * j + 2 * i], weight.low, sum);
      sum = fmaf(outputs2_[4 * j + 2 * i + 1], weight.high, sum);
    }
    sum += shuffle_xor(sum, 1);
    return sum + shuffle_xor(sum, 2);
  }

  RESFLOW_DEVICE void write_score() const {
    if (!row_.exists(call_.candidates) || lane() % 2 != 0) return;
    const auto weight = [&](int32_t at) { return row_.weight(call_, at); };
    store_global(call_.score + row_.candidate, row_.score.end(call_.fusion.fusion, plan_.tasks, weight));
  }

  static constexpr int kStepBytes = 32;       // 16 values of depth
  static constexpr int kDescribedBytes = 16;  // unit of a descriptor's address
  static constexpr uint64_t kStep = kStepBytes / kDescribedBytes;
  static constexpr int kSteps = kChunkRowBytes / kStepBytes;

  const TowerSm90Params& params_;
  const TowerCall& call_;
  const Plan& plan_;
  const TowerSchedule& schedule_;
  const TowerMemory& memory_;
  TowerRow row_;
  float logits_[2] = {};  // z of both rows, of the task whose logit slot this thread keeps
  float sums1_[kSums1];
  float outputs1_[kSums1];  // of the task before
  float outputs2_[kSums2];
  RingPlace place_;
  uint32_t x_parity_ = 0;
  uint32_t vectors_parity_ = 0;
};

// The kernel; both layers have the same activation.
template <Precision kPrecision, Activation kActivation, int kGroups>
struct TowerSm90Kernel {
  using Params = TowerSm90Params;
  static constexpr int kLoader = kGroups * kGroupThreads;
  static constexpr int kThreads = kLoader + kGroupThreads;
  static constexpr int kMinBlocks = 1;
  static constexpr int kCluster = kTowerCluster;
  static constexpr const char* kName = "tower_sm90";

  static RESFLOW_DEVICE void run(const Params& params, char* shared) {
    const TowerMemory memory{params.schedule, shared};
    if (thread_index() == 0) memory.begin();
    // Defaults for a plan without affine or slopes: scale 1, the rest 0. Vectors that the plan has are loaded over
    // them.
    for (int i = thread_index(); i < kHeadAt; i += kThreads) {
      memory.vectors()[i] =
          (i >= scale_at(0) && i < shift_at(0)) || (i >= scale_at(1) && i < shift_at(1)) ? 1.0f : 0.0f;
    }
    fence_async();
    sync_cluster();
    // Three warpgroups have 168 registers per thread, in total 3 x 168 = 2 x 240 + 24; two have all that they need.
    if (thread_index() >= kLoader) {
      if constexpr (kGroups > 1) give_registers<24>();
      const TowerLoader<kActivation == Activation::prelu> loader{params, memory};
      if (thread_index() == kLoader) loader.load_weights();
      if (thread_index() == kLoader + 32) loader.load_x();
      sync_warp();
    } else {
      if constexpr (kGroups > 1) take_registers<240>();
      TowerGroup<kPrecision, kActivation>(params, memory).run();
    }
    sync_cluster();
  }
};

}  // namespace resflow::cuda
