// Twin towers: logits z_k = <u_k, v_k> (+ z_parent), probabilities and score of 16 items at a time.
//
// A table's row is the concatenation of the item's vectors of all tasks, so that an item of a list of ids is in
// consecutive cache lines, and a stream over all items reads memory front to back. A row is multiplied in chunks of one
// cache line, with one accumulator for each of the 16 rows; the 16 sums are transposed into one register for sigmoid
// and fusion. Every item is summed in the same order, wherever it is in the table or list.
//
//   float32    products and sums in float32
//   bfloat16   the item's values are widened, the user's are float32: only the table is rounded
//   int8       integer products; the user is rounded to bytes once per request, with one scale per task
//
// An int8 item has one scale per task, 12 bytes next to 192 for 3 tasks of width 64. With a single scale per item, a
// task whose vectors are 4 times larger than the others' makes the error 3 times as large, and 16 times larger vectors
// make it 10 times as large.
#pragma once

namespace resflow::cpu::RESFLOW_TARGET {

constexpr int64_t kChunkBytes = 64;

// Multiplies a chunk of an item's row in kParts steps, each with 16 words of the user's.
template <Precision kElement>
struct TwinProduct {
  static_assert(kElement == Precision::float32, "a precision of tables without its TwinProduct");
  using Sum = Lanes;
  static constexpr int kParts = 1;
  static Lanes zero() { return broadcast(0.0f); }
  static Lanes user(const float* words) { return load(words); }
  static Lanes item(Ints chunk, int) { return as_lanes(chunk); }
  static Lanes add(Lanes user, Lanes item, Lanes sum) { return multiply_add(user, item, sum); }
};

// A word holds two values: the even values are the first part, the odd ones the second.
template <>
struct TwinProduct<Precision::bfloat16> : TwinProduct<Precision::float32> {
  static constexpr int kParts = 2;
  static Lanes item(Ints chunk, int part) {
    return as_lanes(part == 0 ? shift_left<16>(chunk) : chunk & broadcast_int(static_cast<int32_t>(0xffff0000)));
  }
};

// The item's bytes are flipped to v + 128, because the dot product takes one side unsigned; the excess, 128 times the
// sum of the user's bytes, is constant per request and subtracted again.
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
  static Ints add(Ints user, Ints item, Ints sum) { return sum + multiply_add_int16(item, user); }
#endif
};

constexpr int64_t twin_chunks(const TwinModel& model, Precision element) {
  return (model.width * bytes_of(element) + kChunkBytes - 1) / kChunkBytes;
}

// A user's vectors in words [task][chunk][part][kLane]. In int8 a sum starts at `start` and is multiplied by `scale`.
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

// Reorders values into a chunk's parts: word j of part p is value j * kParts + p of the chunk.
template <Precision kElement, class Source>
inline void spread_values(const Source* values, int64_t width, float* words, int64_t floats) {
  constexpr int kParts = TwinProduct<kElement>::kParts;
  for (int64_t i = 0; i < floats; ++i) words[i] = 0.0f;
  for (int64_t i = 0; i < width; ++i) {
    const int64_t chunk = i / (kLane * kParts), in_chunk = i % (kLane * kParts);
    const int64_t to = (chunk * kParts + in_chunk % kParts) * kLane + in_chunk / kParts;
    if constexpr (sizeof(Source) == sizeof(float)) {
      words[to] = values[i];
    } else {
      words[to] = word_of(static_cast<uint32_t>(values[i]) << 16);
    }
  }
}

// Rounds values to bytes for the dot product, or for products without it widens them to the 16-bit halves of two parts;
// returns the sum of the bytes.
template <class Source>
inline int32_t spread_bytes(const Source* values, int64_t width, float scale, float* words, int64_t floats) {
  constexpr int kParts = TwinProduct<Precision::int8>::kParts;
  for (int64_t i = 0; i < floats; ++i) words[i] = 0.0f;
  const int64_t chunk_floats = floats / kParts;
  // The bytes are at the end, so that widening them front to back overwrites only bytes already read.
  auto* const bytes = reinterpret_cast<int8_t*>(words + floats - chunk_floats);
  const int32_t sum = round_to_bytes(values, width, scale, bytes);
  if constexpr (kParts == 2) {
    for (int64_t first = 0; first < chunk_floats; first += kLane) {
      const Ints chunk = as_ints(load(words + floats - chunk_floats + first));
      for (int part = 0; part < kParts; ++part) {
        float parts[kLane], widened[kLane];
        store(parts, as_lanes(chunk));
        for (int64_t i = 0; i < kLane; ++i) {
          const uint32_t pair = bits_of(parts[i]) >> (8 * part);
          const auto low = static_cast<uint16_t>(static_cast<int8_t>(pair));
          const auto high = static_cast<uint16_t>(static_cast<int8_t>(pair >> 16));
          widened[i] = word_of(static_cast<uint32_t>(high) << 16 | low);
        }
        __builtin_memcpy(words + 2 * first + part * kLane, widened, sizeof(widened));
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
  with_precision<precision_flag::in_tables>(element, [&](auto held) {
    if (user.element == Precision::bfloat16) {
      prepare_user<held.value>(model, static_cast<const uint16_t*>(user.data), out);
    } else {
      prepare_user<held.value>(model, static_cast<const float*>(user.data), out);
    }
  });
}

inline Ints load_chunk(const char* from) { return as_ints(load(reinterpret_cast<const float*>(from))); }

// Loads a task's incomplete last chunk. The bytes that follow may be another task's or item's, whose NaN must not enter
// the sum: the chunk is read whole and masked, or copied if it would cross the end of the table.
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

// Prefetch distance of a stream in bytes, rounded up to whole groups of 16 rows, so that each group prefetches exactly
// one later group. Rows are read 16 at a time and task by task; in that order hardware prefetching reaches a third of
// the memory bandwidth, and one prefetch per read reaches four fifths (1M items of 3 x 64 bytes).
constexpr int64_t kStreamAhead = 8192;

constexpr int64_t stream_ahead(int64_t row_stride) {
  const int64_t group = kLane * row_stride;
  return group > 0 ? (kStreamAhead + group - 1) / group * group : 0;
}

// 16 items of a table: consecutive ones here, listed ones below. A cursor returns their rows in order.
struct ConsecutiveItems {
  const char* first;
  int64_t stride;
  int64_t ahead;
  const float* scale_rows;
  const ColumnLoader* columns;

  struct Cursor {
    const char* next_row;
    int64_t stride;
    int64_t ahead;
    const char* next(int) {
      const char* const row = next_row;
      __builtin_prefetch(row + ahead);
      next_row += stride;
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

// Adds the products of one chunk of kItems items to their sums.
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

// A task's dot products with kItems items.
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

// A task's dot products with 16 items, one per lane, computed kSumsAtOnce at a time.
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
  return horizontal_sums(sums);
}

// Task logits r_k of 16 items, before residuals.
template <Precision kElement, class Items>
inline Lanes task_logit(const TwinUser<kElement>& user, int32_t task, const Items& items,
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
    Lanes logit = task_logit<kElement>(user, k, items, sum);
    const int32_t parent = model.parents[k];
    if (parent >= 0) logit = residual_logit(logit, load(logits + parent * tile.stride), model.non_increasing);
    store(logits + k * tile.stride, logit);
  }
}

// An item's scales; null if the table has none.
inline const float* scales_of(const TwinTile& tile, int64_t item) {
  return tile.table->scales ? tile.table->scales + item * tile.model->tasks : nullptr;
}

// The 16 items of a tile from row `first_row` on; past the tile's end, its last item is repeated.
inline ListedItems listed_items(const TwinTile& tile, int64_t first_row) {
  ListedItems items;
  for (int64_t i = 0; i < kLane; ++i) {
    const int64_t index = tile.first + (first_row + i < tile.rows ? first_row + i : tile.rows - 1);
    const int64_t item = tile.ids ? tile.ids[index] : index;
    items.row[i] = static_cast<const char*>(tile.table->rows.from(item).data);
    items.scale_row[i] = scales_of(tile, item);
  }
  return items;
}

// Prefetches the rows of a list's items.
inline void prefetch_listed(const TwinTile& tile, int64_t from, int64_t count, int64_t row_bytes) {
  const TwinTable& table = *tile.table;
  for (int64_t index = from; index < from + count; ++index) {
    const int64_t item = tile.ids[index];
    const char* const row = static_cast<const char*>(table.rows.from(item).data);
    for (int64_t byte = 0; byte < row_bytes; byte += kChunkBytes) __builtin_prefetch(row + byte);
    if (table.scales) __builtin_prefetch(table.scales + item * tile.model->tasks);
  }
}

inline void fuse_twin(const TwinTile& tile, int64_t first_row) {
  const auto weight = [&](int32_t index) {
    const float* const from = tile.fusion_weights + index;
    if (tile.fusion_weights_step == 0) return broadcast(*from);
    float values[kLane];
    for (int64_t i = 0; i < kLane; ++i) {
      values[i] = from[(first_row + i < tile.rows ? first_row + i : tile.rows - 1) * tile.fusion_weights_step];
    }
    return load(values);
  };
  fuse_lanes(tile.fusion, tile.model->tasks, tile.logits + first_row, tile.stride, weight, tile.probs + first_row,
             tile.score + first_row);
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
  const ColumnLoader columns(model.tasks);
  const int64_t ahead = stream_ahead(stride_bytes);
  int64_t prefetched = 0;
  for (int64_t row = 0; row < tile.stride; row += kLane) {
    if (tile.ids) {
      const int64_t prefetch_until = tile.prefetch_rows * (row + kLane) / tile.stride;
      prefetch_listed(tile, tile.prefetch_from + prefetched, prefetch_until - prefetched, row_bytes);
      prefetched = prefetch_until;
    }
    if (!tile.ids && row + kLane <= tile.rows) {
      const int64_t item = tile.first + row;
      const ConsecutiveItems items{static_cast<const char*>(table.rows.from(item).data), stride_bytes, ahead,
                                   scales_of(tile, item), &columns};
      twin_logits(tile, user, items, whole_chunks, rest, tile.logits + row);
    } else {
      twin_logits(tile, user, listed_items(tile, row), whole_chunks, rest, tile.logits + row);
    }
    fuse_twin(tile, row);
  }
}

void score_twin_tile(const TwinTile& tile) {
  with_precision<precision_flag::in_tables>(tile.table->rows.element,
                                            [&](auto element) { score_twin_tile_in<element.value>(tile); });
}

float read_memory(const void* from, int64_t bytes) {
  const char* const data = static_cast<const char*>(from);
  constexpr int kSums = 4;
  Ints sum[kSums];
  for (Ints& one : sum) one = broadcast_int(0);
  for (int64_t offset = 0; offset + kSums * kChunkBytes <= bytes; offset += kSums * kChunkBytes) {
#pragma GCC unroll 4
    for (int i = 0; i < kSums; ++i) sum[i] = sum[i] ^ load_chunk(data + offset + i * kChunkBytes);
  }
  return static_cast<float>(horizontal_sum((sum[0] ^ sum[1]) ^ (sum[2] ^ sum[3])));
}

}  // namespace resflow::cpu::RESFLOW_TARGET
