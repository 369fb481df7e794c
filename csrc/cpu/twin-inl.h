// Twin towers: logits z_k = <u_k, v_k> (+ z_parent), probabilities and score of 16 items at a time.
//
// A table's row holds the item's vectors of all tasks side by side, so that a list of ids finds an item in
// consecutive cache lines, and a stream over all items reads memory front to back. A row is multiplied in chunks of
// one cache line, each row of the 16 with an accumulator of its own; the 16 sums are transposed into one register, on
// which sigmoid and fusion run. Every item is summed in the same order wherever it stands.
//
//   float32    products and sums in float32
//   bfloat16   the item's values widened, the user's float32: only the table is rounded
//   int8       integer products; the user is rounded to bytes once a request, with a scale a task
#pragma once

namespace resflow::cpu::RESFLOW_TARGET {

constexpr int64_t kChunkBytes = 64;

// How a chunk of an item's row is multiplied: in kParts steps, each with 16 words of the user's.
template <Precision kElement>
struct TwinProduct {
  using Sum = Lanes;
  static constexpr int kParts = 1;
  static Lanes zero() { return broadcast(0.0f); }
  static Lanes user(const float* words) { return load(words); }
  static Lanes item(Ints chunk, int) { return as_lanes(chunk); }
  static Lanes add(Lanes user, Lanes item, Lanes sum) { return multiply_add(user, item, sum); }
};

// A word holds two values: the even ones are the first part, the odd ones the second.
template <>
struct TwinProduct<Precision::bfloat16> : TwinProduct<Precision::float32> {
  static constexpr int kParts = 2;
  static Lanes item(Ints chunk, int part) {
    return as_lanes(part == 0 ? shift_left<16>(chunk) : chunk & broadcast_int(static_cast<int32_t>(0xffff0000)));
  }
};

// The item's bytes are flipped to v + 128, unsigned as the dot product wants one side to be; the user's bytes times
// 128 are taken off the sum again, a constant of the request.
template <>
struct TwinProduct<Precision::int8> {
  using Sum = Ints;
  static Ints zero() { return broadcast_int(0); }
  static Ints user(const float* words) { return as_ints(load(words)); }
  static Ints flipped(Ints chunk) { return chunk ^ broadcast_int(static_cast<int32_t>(0x80808080)); }
#if defined(RESFLOW_DOT_PRODUCTS)
  static constexpr int kParts = 1;
  static Ints item(Ints chunk, int) { return flipped(chunk); }
  static Ints add(Ints user, Ints item, Ints sum) { return dot_int8(user, item, sum); }
#else
  static constexpr int kParts = 2;
  static Ints item(Ints chunk, int part) {
    const Ints bytes = flipped(chunk);
    return (part == 0 ? bytes : shift_right<8>(bytes)) & broadcast_int(0x00ff00ff);
  }
  static Ints add(Ints user, Ints item, Ints sum) { return sum + multiply_halves(item, user); }
#endif
};

constexpr int64_t twin_chunks(const TwinModel& model, Precision element) {
  return (model.width * bytes_of(element) + kChunkBytes - 1) / kChunkBytes;
}

// A user's vectors in words [task][chunk][part][kLane]. In int8 a sum starts at `start` and is worth `scale`.
template <Precision kElement>
struct TwinUser {
  int64_t task_floats;
  float* words;
  float* scale;
  int32_t* start;

  TwinUser(const TwinModel& model, float* buffer)
      : task_floats(twin_chunks(model, kElement) * TwinProduct<kElement>::kParts * kLane),
        words(buffer),
        scale(words + model.tasks * task_floats),
        start(reinterpret_cast<int32_t*>(scale + pad_to_lane(model.tasks))) {}
};

// Values in the order of a chunk's parts: word j of part p is value j * kParts + p of the chunk.
template <Precision kElement, class Source>
inline void spread_values(const Source* values, int64_t width, float* words, int64_t floats) {
  constexpr int kParts = TwinProduct<kElement>::kParts;
  for (int64_t at = 0; at < floats; ++at) words[at] = 0.0f;
  for (int64_t i = 0; i < width; ++i) {
    const int64_t chunk = i / (kLane * kParts), place = i % (kLane * kParts);
    const int64_t at = (chunk * kParts + place % kParts) * kLane + place / kParts;
    if constexpr (sizeof(Source) == sizeof(float)) {
      words[at] = values[i];
    } else {
      words[at] = word_of(static_cast<uint32_t>(values[i]) << 16);
    }
  }
}

// Bytes as the dot product takes them, or widened to the halves of two parts; returns their sum.
template <class Source>
inline int32_t spread_bytes(const Source* values, int64_t width, float scale, float* words, int64_t floats) {
  constexpr int kParts = TwinProduct<Precision::int8>::kParts;
  for (int64_t at = 0; at < floats; ++at) words[at] = 0.0f;
  const int64_t chunk_floats = floats / kParts;
  // The bytes lie at the end: widening them front to back overwrites none that is still to be read.
  auto* const bytes = reinterpret_cast<int8_t*>(words + floats - chunk_floats);
  const int32_t sum = round_to_bytes(values, width, scale, bytes);
  if constexpr (kParts == 2) {
    for (int64_t at = 0; at < chunk_floats; at += kLane) {
      const Ints chunk = as_ints(load(words + floats - chunk_floats + at));
      for (int part = 0; part < kParts; ++part) {
        float parts[kLane], widened[kLane];
        store(parts, as_lanes(chunk));
        for (int64_t i = 0; i < kLane; ++i) {
          const uint32_t pair = bits_of(parts[i]) >> (8 * part);
          const auto low = static_cast<uint16_t>(static_cast<int8_t>(pair));
          const auto high = static_cast<uint16_t>(static_cast<int8_t>(pair >> 16));
          widened[i] = word_of(static_cast<uint32_t>(high) << 16 | low);
        }
        __builtin_memcpy(words + 2 * at + part * kLane, widened, sizeof(widened));
      }
    }
  }
  return sum;
}

template <Precision kElement, class Source>
inline void prepare_user(const TwinModel& model, const Source* values, float* out) {
  const TwinUser<kElement> user(model, out);
  for (int32_t k = 0; k < model.tasks; ++k, values += model.width) {
    float* const words = user.words + k * user.task_floats;
    if constexpr (kElement == Precision::int8) {
      user.scale[k] = scale_of(values, model.width);
      const int32_t sum = spread_bytes(values, model.width, user.scale[k], words, user.task_floats);
      user.start[k] = static_cast<int32_t>(0u - 128u * static_cast<uint32_t>(sum));
    } else {
      spread_values<kElement>(values, model.width, words, user.task_floats);
    }
  }
}

void twin_user(const TwinModel& model, Precision element, const Rows& user, float* out) {
  in_precision(element, [&](auto held) {
    if (user.element == Precision::bfloat16) {
      prepare_user<held.value>(model, static_cast<const uint16_t*>(user.data), out);
    } else {
      prepare_user<held.value>(model, static_cast<const float*>(user.data), out);
    }
  });
}

inline Ints load_chunk(const char* from) { return as_ints(load(reinterpret_cast<const float*>(from))); }

// A task's last chunk where it is not whole: what follows may be another task or item, whose NaN must not come in.
// It is read whole and masked, except where the table ends.
struct PartChunk {
  int64_t bytes;
  Ints mask;
  const char* table_end;

  Ints load(const char* from) const {
    if (table_end - from >= kChunkBytes) return load_chunk(from) & mask;
    alignas(64) char copy[kChunkBytes] = {};
    for (int64_t i = 0; i < bytes; ++i) copy[i] = from[i];
    return load_chunk(copy);
  }
};

inline PartChunk part_chunk(int64_t bytes, const char* table_end) {
  alignas(64) uint8_t mask[kChunkBytes] = {};
  for (int64_t i = 0; i < bytes; ++i) mask[i] = 0xff;
  return {bytes, load_chunk(reinterpret_cast<const char*>(mask)), table_end};
}

// 16 rows' dot products with one task's words, kSumsAtOnce at a time.
template <Precision kElement>
inline void dot_rows(const char* const* rows, int64_t offset, const float* words, int64_t whole_chunks,
                     const PartChunk& rest, typename TwinProduct<kElement>::Sum (&sums)[kLane]) {
  using P = TwinProduct<kElement>;
  for (int first = 0; first < kLane; first += kSumsAtOnce) {
    typename P::Sum sum[kSumsAtOnce];
#pragma GCC unroll 16
    for (int i = 0; i < kSumsAtOnce; ++i) sum[i] = P::zero();
    const float* word = words;
    const auto add = [&](auto load_of) {
      decltype(P::user(word)) user[P::kParts];
#pragma GCC unroll 2
      for (int part = 0; part < P::kParts; ++part, word += kLane) user[part] = P::user(word);
#pragma GCC unroll 16
      for (int i = 0; i < kSumsAtOnce; ++i) {
        const Ints chunk = load_of(rows[first + i] + offset);
#pragma GCC unroll 2
        for (int part = 0; part < P::kParts; ++part) sum[i] = P::add(user[part], P::item(chunk, part), sum[i]);
      }
    };
    int64_t at = 0;
    for (int64_t chunk = 0; chunk < whole_chunks; ++chunk, at += kChunkBytes) {
      add([at](const char* row) { return load_chunk(row + at); });
    }
    if (rest.bytes > 0) add([&, at](const char* row) { return rest.load(row + at); });
#pragma GCC unroll 16
    for (int i = 0; i < kSumsAtOnce; ++i) sums[first + i] = sum[i];
  }
}

// Own logits r_k of 16 items.
template <Precision kElement>
inline Lanes own_logit(const TwinUser<kElement>& user, int32_t task, const float* item_scales,
                       const typename TwinProduct<kElement>::Sum (&sums)[kLane]) {
  if constexpr (kElement == Precision::int8) {
    const Lanes sum = to_float(totals(sums) + broadcast_int(user.start[task]));
    return sum * (broadcast(user.scale[task]) * load(item_scales));
  } else {
    return totals(sums);
  }
}

// Asks for the cache lines of some rows, a few a group of items.
inline void fetch_rows(const TwinTile& tile, int64_t from, int64_t count, int64_t row_bytes) {
  const TwinTable& table = *tile.table;
  for (int64_t r = from; r < from + count; ++r) {
    const int64_t item = tile.ids ? tile.ids[r] : r;
    const char* const row = static_cast<const char*>(table.rows.from(item).data);
    for (int64_t at = 0; at < row_bytes; at += kChunkBytes) __builtin_prefetch(row + at, 0, 2);
    if (table.scales && tile.ids) __builtin_prefetch(table.scales + item * tile.model->tasks, 0, 2);
  }
}

template <Precision kElement>
inline void score_twin_tile_in(const TwinTile& tile) {
  const TwinModel& model = *tile.model;
  const TwinTable& table = *tile.table;
  const TwinUser<kElement> user(model, const_cast<float*>(tile.user));
  const int64_t task_bytes = model.width * bytes_of(kElement), whole_chunks = task_bytes / kChunkBytes;
  const char* const table_end =
      static_cast<const char*>(table.rows.from(table.items - 1).data) + model.tasks * task_bytes;
  const PartChunk rest = part_chunk(task_bytes % kChunkBytes, table_end);
  int64_t fetched = 0;

  for (int64_t at = 0; at < tile.stride; at += kLane) {
    const char* rows[kLane];
    const float* scales[kLane];
    for (int64_t i = 0; i < kLane; ++i) {
      const int64_t r = tile.first + (at + i < tile.rows ? at + i : tile.rows - 1);
      const int64_t item = tile.ids ? tile.ids[r] : r;
      rows[i] = static_cast<const char*>(table.rows.from(item).data);
      if constexpr (kElement == Precision::int8) scales[i] = table.scales + item * model.tasks;
    }
    const int64_t fetch_until = tile.fetch_rows * (at + kLane) / tile.stride;
    fetch_rows(tile, tile.fetch_from + fetched, fetch_until - fetched, model.tasks * task_bytes);
    fetched = fetch_until;

    for (int32_t k = 0; k < model.tasks; ++k) {
      typename TwinProduct<kElement>::Sum sums[kLane];
      dot_rows<kElement>(rows, k * task_bytes, user.words + k * user.task_floats, whole_chunks, rest, sums);
      float item_scales[kLane];
      if constexpr (kElement == Precision::int8) {
        for (int64_t i = 0; i < kLane; ++i) item_scales[i] = scales[i][k];
      }
      Lanes logit = own_logit<kElement>(user, k, item_scales, sums);
      const int32_t parent = model.parents[k];
      if (parent >= 0) {
        logit = residual_logit(logit, load(tile.logits + parent * tile.stride + at), model.non_increasing);
      }
      store(tile.logits + k * tile.stride + at, logit);
    }

    const auto weight = [&](int32_t index) {
      const float* const from = tile.fusion_weights + index;
      if (tile.fusion_weights_step == 0) return broadcast(*from);
      float values[kLane];
      for (int64_t i = 0; i < kLane; ++i) {
        values[i] = from[(at + i < tile.rows ? at + i : tile.rows - 1) * tile.fusion_weights_step];
      }
      return load(values);
    };
    fuse_lanes(tile.fusion, model.tasks, tile.logits + at, tile.stride, weight, tile.probs + at, tile.score + at);
  }
}

void score_twin_tile(const TwinTile& tile) {
  in_precision(tile.table->rows.element, [&](auto element) { score_twin_tile_in<element.value>(tile); });
}

float read_memory(const void* from, int64_t bytes) {
  const char* const data = static_cast<const char*>(from);
  constexpr int kSums = 4;
  Ints sum[kSums];
  for (Ints& one : sum) one = broadcast_int(0);
  for (int64_t at = 0; at + kSums * kChunkBytes <= bytes; at += kSums * kChunkBytes) {
#pragma GCC unroll 4
    for (int i = 0; i < kSums; ++i) sum[i] = sum[i] ^ load_chunk(data + at + i * kChunkBytes);
  }
  return static_cast<float>(total((sum[0] ^ sum[1]) ^ (sum[2] ^ sum[3])));
}

}  // namespace resflow::cpu::RESFLOW_TARGET
