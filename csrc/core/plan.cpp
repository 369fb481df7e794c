#include "core/plan.h"

#include <string>

#include "core/decode_program.h"
#include "core/error.h"
#include "core/tensor_panels.h"

namespace resflow {
namespace {

void require(bool holds, const char* op, const std::string& rule, int64_t got) {
  if (!holds) fail(op, "plan", expected::plan, std::to_string(got), rule);
}

// FNV-1a hash of the encoded plan: packed weights are accepted only for the plan that they were packed for.
uint64_t fingerprint_of(const int64_t* encoded, int64_t count) {
  uint64_t hash = 14695981039346656037ull;
  for (int64_t i = 0; i < count; ++i) hash = (hash ^ static_cast<uint64_t>(encoded[i])) * 1099511628211ull;
  return hash;
}

void lay_out(const char* op, Plan& plan) {
  // Summed in 128 bits: two widths of 2^30 and 64 tasks exceed 2^63 bytes.
  unsigned __int128 floats = 0, tensor_bytes = 0;
  int64_t inputs = plan.in_features;
  plan.hidden_floats = 0;
  for (int32_t l = 0; l < plan.layers; ++l) {
    LayerLayout& layer = plan.layer[l];
    layer.inputs = inputs;
    layer.words = (inputs + inputs_per_word(plan.precision) - 1) / inputs_per_word(plan.precision);
    layer.padded = pad_to_lane(layer.width);
    const auto take = [&](unsigned __int128 count) {
      const auto at = static_cast<int64_t>(floats);
      floats += count;
      return at;
    };
    const bool prelu = layer.activation == Activation::prelu;
    layer.panels = take(static_cast<unsigned __int128>(layer.words) * layer.padded);
    layer.bias = take(layer.padded);
    layer.slope = take(prelu ? layer.padded : 0);
    layer.scale = take(plan.affine ? layer.padded : 0);
    layer.shift = take(plan.affine ? layer.padded : 0);
    layer.column_scale = take(has(plan.precision, precision_flag::column_scales) ? layer.padded : 0);
    layer.tensor_panels = static_cast<int64_t>(tensor_bytes);
    if (has_tensor_panels(plan.precision)) tensor_bytes += TensorPanels{inputs, layer.padded}.bytes();
    plan.hidden_floats += layer.padded;
    inputs = layer.width;
  }
  plan.head_weight = static_cast<int64_t>(floats);
  plan.head_bias = plan.head_weight + pad_to_lane(inputs);
  floats += pad_to_lane(inputs) + kLane;
  unsigned __int128 bytes = floats * plan.tasks * sizeof(float) + kHeaderBytes;
  if (tensor_bytes > 0) bytes = (bytes + kTensorAlignment - 1) / kTensorAlignment * kTensorAlignment;
  plan.tensor_start = static_cast<int64_t>(bytes);
  bytes += tensor_bytes * plan.tasks;
  require(bytes < (static_cast<unsigned __int128>(1) << 62), op, "weights of less than 2^62 bytes", plan.in_features);
  plan.task_floats = static_cast<int64_t>(floats);
  plan.tensor_bytes = static_cast<int64_t>(tensor_bytes);
  plan.packed_bytes = static_cast<int64_t>(bytes);
}

// Assigns each task a slot for the outputs that its children read, if they do; returns the number of slots.
int32_t assign_slots(const Plan& plan, bool read_by_children, int32_t* slots) {
  int32_t last_reader[limit::max_tasks];
  for (int32_t k = 0; k < plan.tasks; ++k) {
    last_reader[k] = k;
    if (plan.parents[k] >= 0 && read_by_children) last_reader[plan.parents[k]] = k;
  }
  int32_t count = 0;
  for (int32_t k = 0; k < plan.tasks; ++k) {
    const int32_t parent = plan.parents[k];
    if (read_by_children && parent >= 0 && last_reader[parent] == k) {
      slots[k] = slots[parent];
      continue;
    }
    // Finds the lowest slot that is not occupied by an earlier task with readers still to come.
    int32_t slot = 0;
    for (int32_t other = 0; other < k; ++other) {
      if (last_reader[other] > k && slots[other] == slot) {
        ++slot;
        other = -1;
      }
    }
    slots[k] = slot;
    if (slot >= count) count = slot + 1;
  }
  return count;
}

}  // namespace

Plan decode_plan(const char* op, const int64_t* encoded, int64_t count, ProgramStorage* storage) {
  constexpr auto kFields = static_cast<int64_t>(PlanField::count);
  require(count >= kFields, op, "at least " + std::to_string(kFields) + " numbers", count);
  const auto field = [&](PlanField f) { return encoded[static_cast<int64_t>(f)]; };
  const auto flag = [&](PlanField f, const char* name) {
    require(field(f) == 0 || field(f) == 1, op, std::string(name) + " 0 or 1", field(f));
    return field(f) == 1;
  };

  Plan plan{};
  require(field(PlanField::version) == limit::version, op, "version " + std::to_string(limit::version),
          field(PlanField::version));
  plan.in_features = field(PlanField::in_features);
  require(plan.in_features >= 1 && plan.in_features <= limit::max_width, op, "in_features in range", plan.in_features);
  const int64_t tasks = field(PlanField::tasks), layers = field(PlanField::layers), head = field(PlanField::head);
  const bool is_program = layers == 0;
  require(!is_program || storage, op, "a forest of towers, which a tile program is not", layers);
  require(tasks >= (is_program ? 0 : 1) && tasks <= limit::max_tasks, op,
          "1 to " + std::to_string(limit::max_tasks) + " tasks", tasks);
  require(layers >= 0 && layers <= limit::max_layers, op, "1 to " + std::to_string(limit::max_layers) + " layers",
          layers);
  require(head >= 0 && head < static_cast<int64_t>(Head::count), op, "a known head", head);
  require(is_program ? count >= kFields + tasks : count == kFields + 2 * layers + tasks, op,
          std::to_string(kFields + 2 * layers + tasks) + " numbers for its tasks and layers", count);
  plan.tasks = static_cast<int32_t>(tasks);
  plan.layers = static_cast<int32_t>(layers);
  plan.head = static_cast<Head>(head);
  plan.feature_residual = flag(PlanField::feature_residual, "feature_residual");
  plan.logit_residual = flag(PlanField::logit_residual, "logit_residual");
  plan.non_increasing = flag(PlanField::non_increasing, "non_increasing");
  plan.affine = flag(PlanField::affine, "affine");
  const int64_t precision = field(PlanField::precision);
  plan.precision = static_cast<Precision>(precision);
  // The enum has 32 bits: a number that does not fit is not a code either.
  require(flags_of(plan.precision) != 0 && static_cast<int64_t>(plan.precision) == precision, op, "a known precision",
          precision);
  require(plan.head != Head::conditional || !plan.logit_residual, op, "no logit_residual with a conditional head", 1);
  require(!plan.non_increasing || plan.logit_residual, op, "non_increasing only with logit_residual", 1);

  const int64_t* widths = encoded + kFields;
  const int64_t* activations = widths + layers;
  const int64_t* parents = activations + layers;
  for (int64_t l = 0; l < layers; ++l) {
    require(widths[l] >= 1 && widths[l] <= limit::max_width, op, "widths in range", widths[l]);
    require(activations[l] >= 0 && activations[l] < static_cast<int64_t>(Activation::count), op, "known activations",
            activations[l]);
    plan.layer[l].width = widths[l];
    plan.layer[l].activation = static_cast<Activation>(activations[l]);
  }
  for (int64_t l = 0; l < layers && plan.precision == Precision::int8; ++l) {
    const int64_t inputs = l == 0 ? plan.in_features : widths[l - 1];
    require(inputs <= limit::max_int8_inputs, op,
            "at most " + std::to_string(limit::max_int8_inputs) + " inputs in int8", inputs);
  }
  for (int64_t k = 0; k < tasks; ++k) {
    require(parents[k] >= -1 && parents[k] < k, op, "each parent -1 or an earlier task", parents[k]);
    plan.parents[k] = static_cast<int32_t>(parents[k]);
  }
  const int64_t parents_end = kFields + 2 * layers + tasks;
  if (is_program) {
    require(!plan.feature_residual && !plan.affine, op, "no tower's switches in a tile program", 1);
    decode_program(op, encoded + parents_end, count - parents_end, plan, *storage);
  } else {
    lay_out(op, plan);
  }
  plan.slots = assign_slots(plan, plan.feature_residual, plan.slot);
  plan.logit_slots = assign_slots(plan, plan.logit_residual || plan.head == Head::conditional, plan.logit_slot);
  plan.fingerprint = fingerprint_of(encoded, count);
  return plan;
}

}  // namespace resflow
