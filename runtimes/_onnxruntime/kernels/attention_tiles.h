// Attention on blocks of queries, for one set of instructions: `attention.cpp` includes this once for each, inside a
// namespace with a `Vector`, with TILE and TILE_INLINE as what its functions are declared with.
//
// Queries stand in the lanes of vectors and keys after each other, so that maxima and sums over keys need no shuffles
// and keys and values are read as they are, one number for all lanes. Scores are powers of two, not of e: exp2 is
// cheaper. A block of queries goes over blocks of keys with a running maximum and sum (Milakov and Gimelshein, "Online
// normalizer calculation for softmax", 2018; Dao et al., "FlashAttention", 2022): no tensor of Sq x Skv exists.

using F = Vector::F;
constexpr int64_t kLanes = Vector::lanes, kRows = Vector::rows;
constexpr int kAcross = Vector::across;
constexpr int64_t kMostQueries = kLanes * kAcross;
constexpr int64_t kDepth = Vector::depth;  // numbers in one place of a vector that is multiplied

// A thread's memory for one head and one block of its queries; lengths in floats.
struct Room {
  float* keys;      // [count][steps], without the keys that nobody may attend
  float* values;    // [count / kDepth][width]
  float* bias;      // [count]
  float* middle;    // [size]
  float* query;     // [steps][across]
  float* output;    // [width][across]
  float* scores;    // [kKeyBlock][across]; then weights, [kKeyBlock / kDepth][across]
  float* pairs;     // [kKeyBlock][across]
  float top[kMostQueries], sum[kMostQueries], fade[kMostQueries];
  int64_t count = 0, width = 0, steps = 0;

  explicit Room(const AttentionCall& c) {
    width = up(c.value_size, kRows);
    steps = up(c.size, kDepth) / kDepth;
    const int64_t most = up(c.keys, kRows), tile = kKeyBlock * kMostQueries;
    const int64_t parts[] = {most * steps, most * width, most, c.size, steps * kMostQueries, width * kMostQueries, tile, tile};
    float** const places[] = {&keys, &values, &bias, &middle, &query, &output, &scores, &pairs};
    int64_t whole = 0;
    for (int64_t part : parts) whole += up(part, 16);
    float* next = reinterpret_cast<float*>(scratch(static_cast<size_t>(whole) * sizeof(float)));
    for (int i = 0; i < 8; ++i) {
      *places[i] = next;
      next += up(parts[i], 16);
    }
  }
};

// A key as it is multiplied: [steps]. Less the middle of all keys it is smaller, and loses less where it is rounded.
TILE_INLINE void put_key(float* to, const float* from, const float* middle, int64_t size) {
  for (int64_t d = 0; d < size; d += kLanes) {
    const int64_t numbers = std::min(kLanes, size - d);
    F key = Vector::some(from + d, numbers);
    if constexpr (kDepth > 1) key = Vector::sub(key, Vector::some(middle + d, numbers));
    Vector::narrow(to + d / kDepth, key, numbers);
  }
}

// The mean of the head's keys, which no softmax notices: it adds the same to all scores of a query. Zeros where it is
// not finite, since one key must not reach the queries that do not see it; for the same reason keys that nobody sees
// are left out.
TILE void find_middle(const AttentionCall& c, Room& room, int64_t b, int64_t h, int64_t group) {
  const bool by_key = c.masked_by_key();
  const auto hidden = [&](int64_t j) { return by_key && bias_of(c.mask, c.mask.at(b, h, 0, j)) == -INFINITY; };
  int64_t seen = 0;
  for (int64_t j = 0; j < c.keys; ++j) seen += !hidden(j);
  for (int64_t d = 0; d < c.size; d += kLanes) {
    const int64_t numbers = std::min(kLanes, c.size - d);
    F sum = Vector::set(0.0f);
    for (int64_t j = 0; j < c.keys; ++j)
      if (!hidden(j)) sum = Vector::add(sum, Vector::some(c.key.at(b, group, j) + d, numbers));
    Vector::some(room.middle + d, sum, numbers);
  }
  for (int64_t d = 0; d < c.size; ++d) {
    const float mean = room.middle[d] / static_cast<float>(seen);
    room.middle[d] = std::isfinite(mean) ? mean : 0.0f;
  }
}

// The values of key n; the first of a pair goes in with zeros, and once more when the second comes.
TILE_INLINE void put_value(Room& room, int64_t n, const float* from, const float* before, int64_t size) {
  float* to = room.values + n / kDepth * room.width;
  for (int64_t d = 0; d < room.width; d += kLanes) {
    const int64_t numbers = std::clamp<int64_t>(size - d, 0, kLanes);
    const F own = Vector::some(from + d, numbers);
    const F both = n % kDepth == 0 ? Vector::pair(own, Vector::set(0.0f)) : Vector::pair(Vector::some(before + d, numbers), own);
    Vector::some(to + d, both, std::min(kLanes, room.width - d));
  }
}

// The head's keys and values side by side, followed by keys that nobody attends up to whole rows.
TILE void gather(const AttentionCall& c, Room& room, int64_t b, int64_t h) {
  const int64_t group = h / (c.heads / c.key_heads), steps = room.steps, width = room.width;
  const bool by_key = c.masked_by_key(), drop = by_key && !c.causal;
  const float* before = nullptr;
  if constexpr (kDepth > 1) find_middle(c, room, b, h, group);
  int64_t n = 0;
  for (int64_t j = 0; j < c.keys; ++j) {
    const float bias = by_key ? bias_of(c.mask, c.mask.at(b, h, 0, j)) : 0.0f;
    if (drop && bias == -INFINITY) continue;
    const float* value = c.value.at(b, group, j);
    room.bias[n] = bias;
    put_key(room.keys + n * steps, c.key.at(b, group, j), room.middle, c.size);
    put_value(room, n, value, before, c.value_size);
    before = value;
    ++n;
  }
  room.count = n;
  const int64_t whole = up(n, kRows), filled = up(n, kDepth) / kDepth;
  std::fill(room.bias + n, room.bias + whole, -INFINITY);
  std::fill(room.keys + n * steps, room.keys + whole * steps, 0.0f);
  std::fill(room.values + filled * width, room.values + whole / kDepth * width, 0.0f);
}

// Queries [steps][N lanes], times the scale.
template <int N>
TILE void turn_queries(const AttentionCall& c, Room& room, int64_t b, int64_t h, int64_t first, int64_t rows) {
  constexpr int64_t wide = N * kLanes;
  const F scale = Vector::set(c.scale * kLog2E);
  for (int v = 0; v < N; ++v)
    for (int64_t d = 0; d < c.size; d += kLanes) {
      F block[kLanes];
      const int64_t numbers = std::min(kLanes, c.size - d);
      for (int64_t i = 0; i < kLanes; ++i) {
        const int64_t row = v * kLanes + i;
        block[i] = row < rows ? Vector::some(c.query.at(b, h, first + row) + d, numbers) : Vector::set(0.0f);
      }
      Vector::transpose(block);
      for (int64_t i = 0; i < numbers; i += kDepth) {
        const F value = Vector::pair(Vector::mul(block[i], scale), Vector::mul(block[i + kDepth - 1], scale));
        Vector::store(room.query + (d + i) / kDepth * wide + v * kLanes, value);
      }
    }
}

// The mask of keys [from, from + count) for each query apart, [count][N lanes].
template <int N>
TILE void turn_mask(const AttentionCall& c, Room& room, int64_t b, int64_t h, int64_t first, int64_t rows, int64_t from,
                    int64_t count) {
  constexpr int64_t wide = N * kLanes;
  const Mask& mask = c.mask;
  for (int v = 0; v < N; ++v)
    for (int64_t j = 0; j < count; j += kLanes) {
      F block[kLanes];
      const int64_t numbers = std::clamp<int64_t>(c.keys - from - j, 0, kLanes);
      for (int64_t i = 0; i < kLanes; ++i) {
        const int64_t row = v * kLanes + i;
        const int64_t at = mask.at(b, h, first + std::min(row, rows - 1), from + j);
        if (mask.key == 0) block[i] = Vector::set(bias_of(mask, at));
        else if (mask.allowed) block[i] = Vector::allowed(mask.allowed + at, numbers);
        else block[i] = Vector::mul(Vector::some(mask.added + at, numbers), Vector::set(kLog2E));
      }
      Vector::transpose(block);
      for (int64_t i = 0; i < std::min(kLanes, count - j); ++i)
        Vector::store(room.pairs + (j + i) * wide + v * kLanes, i < numbers ? block[i] : Vector::set(-INFINITY));
    }
}

// What the mask adds to kRows keys: one number for all queries, or, where it says `Pairs`, one for each.
template <int N, bool Pairs>
TILE_INLINE F bias_at(const float* bias, int64_t r, int v) {
  return Pairs ? Vector::load(bias + (r * N + v) * kLanes) : Vector::set(bias[r]);
}

// kRows keys against all queries of the block. A bias of 0 or minus infinity is where the sums start, which costs
// nothing; a `Late` one, which may be large, is added to them when they are done, so that they keep their last bits.
template <int N, bool Pairs, bool Late>
TILE_INLINE void score_rows(const float* query, const float* keys, int64_t steps, const float* bias, float* to) {
  constexpr int64_t wide = N * kLanes;
  F sums[kRows][N];
#pragma GCC unroll 8
  for (int64_t r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) sums[r][v] = Late ? Vector::set(0.0f) : bias_at<N, Pairs>(bias, r, v);
  for (int64_t d = 0; d < steps; ++d, query += wide) {
    F q[N];
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) q[v] = Vector::load(query + v * kLanes);
#pragma GCC unroll 8
    for (int64_t r = 0; r < kRows; ++r) {
      const F k = Vector::set(keys[r * steps + d]);
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) sums[r][v] = Vector::fma(k, q[v], sums[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int64_t r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      const F sum = Late ? Vector::add(sums[r][v], bias_at<N, Pairs>(bias, r, v)) : sums[r][v];
      Vector::store(to + r * wide + v * kLanes, sum);
    }
}

template <int N, bool Pairs, bool Late>
TILE void score_keys(const Room& room, int64_t from, int64_t count) {
  constexpr int64_t wide = N * kLanes;
  for (int64_t j = 0; j < count; j += kRows) {
    const float* bias = Pairs ? room.pairs + j * wide : room.bias + from + j;
    score_rows<N, Pairs, Late>(room.query, room.keys + (from + j) * room.steps, room.steps, bias, room.scores + j * wide);
  }
}

template <int N>
TILE void score(const AttentionCall& c, const Room& room, int64_t from, int64_t count) {
  if (c.masked_by_pair()) score_keys<N, true, true>(room, from, count);
  else if (c.mask.added) score_keys<N, false, true>(room, from, count);
  else score_keys<N, false, false>(room, from, count);
}

// Excludes keys after the query's own.
template <int N>
TILE void exclude_later(const Room& room, int64_t first, int64_t from, int64_t count) {
  for (int64_t j = std::max<int64_t>(first + 1 - from, 0); j < count; ++j)
    for (int v = 0; v < N; ++v) {
      float* place = room.scores + (j * N + v) * kLanes;
      Vector::store(place, Vector::from(Vector::load(place), first + v * kLanes, from + j));
    }
}

template <int N>
TILE_INLINE F weight_at(const Room& room, int64_t j, int v, F top) {
  return Vector::exp2(Vector::sub(Vector::load(room.scores + (j * N + v) * kLanes), top));
}

// Scores to weights relative to the running maximum; what was summed before fades by as much as that has risen.
template <int N>
TILE void soften(Room& room, int64_t count) {
  F top[N], sum[N];
  for (int v = 0; v < N; ++v) top[v] = Vector::load(room.top + v * kLanes);
  for (int64_t j = 0; j < count; ++j)
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) top[v] = Vector::larger(top[v], Vector::load(room.scores + (j * N + v) * kLanes));
  for (int v = 0; v < N; ++v) {
    const F fade = Vector::exp2(Vector::sub(Vector::load(room.top + v * kLanes), top[v]));
    sum[v] = Vector::mul(Vector::load(room.sum + v * kLanes), fade);
    Vector::store(room.fade + v * kLanes, fade);
    Vector::store(room.top + v * kLanes, top[v]);
  }
  for (int64_t j = 0; j < count; j += kDepth)
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      F weight = weight_at<N>(room, j, v, top[v]);
      sum[v] = Vector::add(sum[v], weight);
      if constexpr (kDepth == 2) {
        const F after = weight_at<N>(room, j + 1, v, top[v]);
        sum[v] = Vector::add(sum[v], after);
        weight = Vector::pair(weight, after);
      }
      Vector::store(room.scores + (j / kDepth * N + v) * kLanes, weight);
    }
  for (int v = 0; v < N; ++v) Vector::store(room.sum + v * kLanes, sum[v]);
}

// kRows numbers of the values, weighted and summed over the keys, for all queries of the block.
template <int N>
TILE_INLINE void weigh_rows(const Room& room, const float* values, int64_t count, float* output, bool anew) {
  constexpr int64_t wide = N * kLanes;
  F sums[kRows][N];
#pragma GCC unroll 8
  for (int64_t r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      const F fade = Vector::load(room.fade + v * kLanes);
      sums[r][v] = anew ? Vector::set(0.0f) : Vector::mul(fade, Vector::load(output + r * wide + v * kLanes));
    }
  const float* weights = room.scores;
  for (int64_t j = 0; j < count; j += kDepth, weights += wide, values += room.width) {
    F w[N];
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) w[v] = Vector::load(weights + v * kLanes);
#pragma GCC unroll 8
    for (int64_t r = 0; r < kRows; ++r) {
      const F x = Vector::set(values[r]);
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) sums[r][v] = Vector::fma(x, w[v], sums[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int64_t r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) Vector::store(output + r * wide + v * kLanes, sums[r][v]);
}

template <int N>
TILE void weigh(const Room& room, int64_t from, int64_t count, bool anew) {
  for (int64_t d = 0; d < room.width; d += kRows)
    weigh_rows<N>(room, room.values + from / kDepth * room.width + d, count, room.output + d * N * kLanes, anew);
}

// Output rows; a query without any key answers zeros, whatever the values are.
template <int N>
TILE void turn_output(const AttentionCall& c, const Room& room, int64_t b, int64_t h, int64_t first, int64_t rows) {
  constexpr int64_t wide = N * kLanes;
  for (int64_t row = 0; row < rows; row += kLanes)
    for (int64_t d = 0; d < c.value_size; d += kLanes) {
      F block[kLanes];
      const int64_t numbers = std::min(kLanes, c.value_size - d);
      for (int64_t i = 0; i < kLanes; ++i)
        block[i] = i < numbers ? Vector::load(room.output + (d + i) * wide + row) : Vector::set(0.0f);
      Vector::transpose(block);
      for (int64_t i = 0; i < std::min(kLanes, rows - row); ++i) {
        const float sum = room.sum[row + i];
        const F value = sum == 0.0f ? Vector::set(0.0f) : Vector::mul(block[i], Vector::set(1.0f / sum));
        Vector::some(c.output.at(b, h, first + row + i) + d, value, numbers);
      }
    }
}

template <int N>
TILE void attend_block(const AttentionCall& c, Room& room, int64_t b, int64_t h, int64_t first, int64_t rows) {
  turn_queries<N>(c, room, b, h, first, rows);
  std::fill(room.top, room.top + N * kLanes, kLowest);
  std::fill(room.sum, room.sum + N * kLanes, 0.0f);
  const int64_t keys = c.causal ? std::min(room.count, first + rows) : room.count;
  const int64_t parts = (keys + kKeyBlock - 1) / kKeyBlock;
  const int64_t step = parts == 0 ? kRows : up((keys + parts - 1) / parts, kRows);
  for (int64_t from = 0; from < keys; from += step) {
    const int64_t count = std::min(step, up(keys - from, kRows));
    if (c.masked_by_pair()) turn_mask<N>(c, room, b, h, first, rows, from, count);
    score<N>(c, room, from, count);
    if (c.causal) exclude_later<N>(room, first, from, count);
    soften<N>(room, count);
    weigh<N>(room, from, count, from == 0);
  }
  turn_output<N>(c, room, b, h, first, rows);
}

template <int N>
TILE void attend_wide(int64_t wanted, const AttentionCall& c, Room& room, int64_t b, int64_t h, int64_t first,
                      int64_t rows) {
  if (wanted == N) return attend_block<N>(c, room, b, h, first, rows);
  if constexpr (N > 1) attend_wide<N - 1>(wanted, c, room, b, h, first, rows);
}

TILE void attend(const AttentionCall& c, int64_t blocks, int64_t begin, int64_t end) {
  Room room(c);
  const int64_t vectors = (c.queries + kLanes - 1) / kLanes;
  int64_t gathered = -1;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t head = item / blocks, block = item % blocks, b = head / c.heads, h = head % c.heads;
    if (gathered != head) gather(c, room, b, h);
    gathered = head;
    const int64_t first = vectors * block / blocks, last = vectors * (block + 1) / blocks;
    const int64_t rows = std::min(c.queries, last * kLanes) - first * kLanes;
    attend_wide<kAcross>(last - first, c, room, b, h, first * kLanes, rows);
  }
}
