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
//
// An int8 item has a scale for each task, 12 bytes beside 192 for 3 tasks of width 64: tasks whose vectors are 4 times
// larger than the others' make a single scale an item's error 3 times as large, 16 times larger ones 10 times.
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

// How far ahead of a stream's reads its lines are asked for: at least so much, in whole groups of 16 rows, so that the
// lines asked for in a group are those of one other. Rows are read 16 at a time and task by task, an order in which the
// machine's own prefetching reaches a third of the memory's rate; one prefetch beside each read reaches four fifths
// (1M items of 3 x 64 bytes).
constexpr int64_t kStreamAhead = 8192;

constexpr int64_t stream_ahead(int64_t row_stride) {
  const int64_t group = kLane * row_stride;
  return group > 0 ? (kStreamAhead + group - 1) / group * group : 0;
}

// 16 items of a table, one after another or anywhere in it; a cursor's rows are asked for in order.
struct ConsecutiveItems {
  const char* first;
  int64_t stride;
  int64_t ahead;
  const float* scale_rows;
  const Columns* columns;

  struct Cursor {
    const char* at;
    int64_t stride;
    int64_t ahead;
    const char* next(int) {
      const char* const row = at;
      __builtin_prefetch(row + ahead);
      at += stride;
      return row;
    }
  };
  Cursor rows(int first_row, int64_t offset) const { return {first + first_row * stride + offset, stride, ahead}; }
  Lanes scales(int64_t task) const { return columns->load(scale_rows, task); }
};

struct ListedItems {
  const char* row[kLane];
  const float* scale_row[kLane];

  struct Cursor {
    const char* const* row;
    int64_t offset;
    const char* next(int i) { return row[i] + offset; }
  };
  Cursor rows(int first_row, int64_t offset) const { return {row + first_row, offset}; }
  Lanes scales(int64_t task) const {
    float values[kLane];
    for (int64_t i = 0; i < kLane; ++i) values[i] = scale_row[i][task];
    return load(values);
  }
};

// Adds one chunk of some items to their sums.
template <Precision kElement, int kItems, class Cursor, class Load>
inline void add_chunk(const float* words, Cursor rows, Load load_from,
                      typename TwinProduct<kElement>::Sum (&sum)[kItems]) {
  using P = TwinProduct<kElement>;
  decltype(P::user(words)) user[P::kParts];
#pragma GCC unroll 2
  for (int part = 0; part < P::kParts; ++part) user[part] = P::user(words + part * kLane);
#pragma GCC unroll 16
  for (int i = 0; i < kItems; ++i) {
    const Ints chunk = load_from(rows.next(i));
#pragma GCC unroll 2
    for (int part = 0; part < P::kParts; ++part) sum[i] = P::add(user[part], P::item(chunk, part), sum[i]);
  }
}

// A task's dot products with some items.
template <Precision kElement, int kItems, bool kRest, class Items>
inline void dot_items(const Items& items, int first, int64_t offset, const float* words, int64_t whole_chunks,
                      const PartChunk& rest, typename TwinProduct<kElement>::Sum (&sum)[kItems]) {
  using P = TwinProduct<kElement>;
#pragma GCC unroll 16
  for (int i = 0; i < kItems; ++i) sum[i] = P::zero();
  for (int64_t chunk = 0; chunk < whole_chunks; ++chunk, offset += kChunkBytes, words += P::kParts * kLane) {
    add_chunk<kElement>(words, items.rows(first, offset), load_chunk, sum);
  }
  if constexpr (kRest) {
    add_chunk<kElement>(words, items.rows(first, offset), [&](const char* row) { return rest.load(row); }, sum);
  }
}

// Those of 16 items, kSumsAtOnce at a time, as lanes.
template <Precision kElement, bool kRest, class Items>
inline auto dot_lanes(const Items& items, int64_t offset, const float* words, int64_t whole_chunks,
                      const PartChunk& rest) {
  using Sum = typename TwinProduct<kElement>::Sum;
  Sum sums[kLane];
  if constexpr (kSumsAtOnce == kLane) {
    dot_items<kElement, kLane, kRest>(items, 0, offset, words, whole_chunks, rest, sums);
  } else {
    for (int first = 0; first < kLane; first += kSumsAtOnce) {
      Sum some[kSumsAtOnce];
      dot_items<kElement, kSumsAtOnce, kRest>(items, first, offset, words, whole_chunks, rest, some);
#pragma GCC unroll 16
      for (int i = 0; i < kSumsAtOnce; ++i) sums[first + i] = some[i];
    }
  }
  return totals(sums);
}

// Own logits r_k of 16 items.
template <Precision kElement, class Items>
inline Lanes own_logit(const TwinUser<kElement>& user, int32_t task, const Items& items,
                       typename TwinProduct<kElement>::Sum sum) {
  if constexpr (kElement == Precision::int8) {
    const Lanes product = to_float(sum + broadcast_int(user.start[task]));
    return product * (broadcast(user.scale[task]) * items.scales(task));
  } else {
    return sum;
  }
}

// Logits z_k of 16 items.
template <Precision kElement, class Items>
inline void twin_logits(const TwinTile& tile, const TwinUser<kElement>& user, const Items& items, int64_t whole_chunks,
                        const PartChunk& rest, float* logits) {
  const TwinModel& model = *tile.model;
  const int64_t task_bytes = model.width * bytes_of(kElement);
  for (int32_t k = 0; k < model.tasks; ++k) {
    const int64_t offset = k * task_bytes;
    const float* const words = user.words + k * user.task_floats;
    const auto sum = rest.bytes > 0 ? dot_lanes<kElement, true>(items, offset, words, whole_chunks, rest)
                                    : dot_lanes<kElement, false>(items, offset, words, whole_chunks, rest);
    Lanes logit = own_logit<kElement>(user, k, items, sum);
    const int32_t parent = model.parents[k];
    if (parent >= 0) logit = residual_logit(logit, load(logits + parent * tile.stride), model.non_increasing);
    store(logits + k * tile.stride, logit);
  }
}

// An item's scales; null where the table has none.
inline const float* scales_of(const TwinTile& tile, int64_t item) {
  return tile.table->scales ? tile.table->scales + item * tile.model->tasks : nullptr;
}

// Items of a tile from place `at` on; the last one again where the tile ends.
inline ListedItems listed_items(const TwinTile& tile, int64_t at) {
  ListedItems items;
  for (int64_t i = 0; i < kLane; ++i) {
    const int64_t place = tile.first + (at + i < tile.rows ? at + i : tile.rows - 1);
    const int64_t item = tile.ids ? tile.ids[place] : place;
    items.row[i] = static_cast<const char*>(tile.table->rows.from(item).data);
    items.scale_row[i] = scales_of(tile, item);
  }
  return items;
}

// Asks for the rows of a list's items.
inline void fetch_listed(const TwinTile& tile, int64_t from, int64_t count, int64_t row_bytes) {
  const TwinTable& table = *tile.table;
  for (int64_t place = from; place < from + count; ++place) {
    const int64_t item = tile.ids[place];
    const char* const row = static_cast<const char*>(table.rows.from(item).data);
    for (int64_t at = 0; at < row_bytes; at += kChunkBytes) __builtin_prefetch(row + at);
    if (table.scales) __builtin_prefetch(table.scales + item * tile.model->tasks);
  }
}

inline void fuse_twin(const TwinTile& tile, int64_t at) {
  const auto weight = [&](int32_t index) {
    const float* const from = tile.fusion_weights + index;
    if (tile.fusion_weights_step == 0) return broadcast(*from);
    float values[kLane];
    for (int64_t i = 0; i < kLane; ++i) {
      values[i] = from[(at + i < tile.rows ? at + i : tile.rows - 1) * tile.fusion_weights_step];
    }
    return load(values);
  };
  fuse_lanes(tile.fusion, tile.model->tasks, tile.logits + at, tile.stride, weight, tile.probs + at, tile.score + at);
}

template <Precision kElement>
inline void score_twin_tile_in(const TwinTile& tile) {
  const TwinModel& model = *tile.model;
  const TwinTable& table = *tile.table;
  const TwinUser<kElement> user(model, const_cast<float*>(tile.user));
  const int64_t task_bytes = model.width * bytes_of(kElement), row_bytes = model.tasks * task_bytes;
  const int64_t whole_chunks = task_bytes / kChunkBytes;
  const char* const table_end = static_cast<const char*>(table.rows.from(table.items - 1).data) + row_bytes;
  const PartChunk rest = part_chunk(task_bytes % kChunkBytes, table_end);
  const int64_t stride_bytes = table.rows.stride * bytes_of(kElement);
  const Columns columns(model.tasks);
  const int64_t ahead = stream_ahead(stride_bytes);
  int64_t fetched = 0;
  for (int64_t at = 0; at < tile.stride; at += kLane) {
    if (tile.ids) {
      const int64_t fetch_until = tile.fetch_rows * (at + kLane) / tile.stride;
      fetch_listed(tile, tile.fetch_from + fetched, fetch_until - fetched, row_bytes);
      fetched = fetch_until;
    }
    if (!tile.ids && at + kLane <= tile.rows) {
      const int64_t item = tile.first + at;
      const ConsecutiveItems items{static_cast<const char*>(table.rows.from(item).data), stride_bytes, ahead,
                                   scales_of(tile, item), &columns};
      twin_logits(tile, user, items, whole_chunks, rest, tile.logits + at);
    } else {
      twin_logits(tile, user, listed_items(tile, at), whole_chunks, rest, tile.logits + at);
    }
    fuse_twin(tile, at);
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
