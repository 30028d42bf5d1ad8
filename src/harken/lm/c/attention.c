/* Attention: of a decoding step over memory, and within the spans of whole sequences, forward and backward. */
#include "team.h"

INLINE long tiles_of(long positions) { return (positions + LANES - 1) / LANES; }

/* Scores (tiles x 16) become weights, in place; only the first `readable` may be read, at least one. */
INLINE void soften(float *scores, long tiles, long readable) {
  for (long at = readable; at < tiles * LANES; at++) scores[at] = -INFINITY;
  vec largest = splat(-INFINITY), mass = {0};
  for (long at = 0; at < tiles * LANES; at += LANES) {
    vec some = get(scores + at);
    largest = choose(some > largest, some, largest);
  }
  float top = maximum(largest);
  for (long at = 0; at < tiles * LANES; at += LANES) {
    /* What may not be read gets no weight, not e^-87. */
    vec some = get(scores + at), weights = choose(some == -INFINITY, splat(0), exponential(some - top));
    mass += weights;
    put(scores + at, weights);
  }
  vec inverse = splat(1.0f / total(mass));
  for (long at = 0; at < tiles * LANES; at += LANES) put(scores + at, get(scores + at) * inverse);
}

/* The processor is told of two rows of memory `AHEAD` rows before they are read, as it does not look beyond a page by
 * itself; at the end of a memory (count, width) they are in the one that is read `after`. */
#define AHEAD (2 * LANES)
INLINE void ask_for(long row, const real *memory, long count, const real *after, const long width) {
  const char *wanted = (const char *)(row < count ? memory + row * width : after + (row - count) * width);
  for (long byte = 0; byte < width * (long)sizeof(real); byte += 64) __builtin_prefetch(wanted + byte);
}

/* A query times a key, not yet added up. */
INLINE vec multiply(const vec *query, const real *key, const long width) {
  vec dot = {0};
#if defined(BF16) && defined(__AVX512BF16__)
  for (long i = 0; i < width / (2 * LANES); i++) {
    vec pairs;
    memcpy(&pairs, key + i * 2 * LANES, sizeof pairs);
    dot = (vec)_mm512_dpbf16_ps((__m512)dot, (__m512bh)query[i], (__m512bh)pairs);
  }
  if (width % (2 * LANES)) dot += query[WIDEST / LANES] * load(key + width - LANES);
#else
  for (long i = 0; i < width / LANES; i++) dot += query[i] * load(key + i * LANES);
#endif
  return dot;
}

/* A query as `multiply` takes it. */
INLINE void load_query(vec *query, const real *from, const long width) {
#if defined(BF16) && defined(__AVX512BF16__)
  memcpy(query, from, (size_t)(width / (2 * LANES)) * sizeof(vec));
  if (width % (2 * LANES)) query[WIDEST / LANES] = load(from + width - LANES);
#else
  for (long i = 0; i < width / LANES; i++) query[i] = load(from + i * LANES);
#endif
}

/* What some query heads take of values (count, width), with weights `row` numbers apart; out: (some, width). */
INLINE void mix_values(const float *weights, long row, const real *values, long count, const real *after, real *out,
                       const long some, const long width) {
  vec sums[3 * WIDEST / LANES];
  for (long i = 0; i < some * width / LANES; i++) sums[i] = splat(0);
  for (long at = 0; at < count; at++) {
    ask_for(at + AHEAD, values, count, after, width);
    for (long part = 0; part < width / LANES; part++) {
      vec value = load(values + at * width + part * LANES);
      for (long i = 0; i < some; i++) sums[i * (width / LANES) + part] += weights[i * row + at] * value;
    }
  }
  for (long i = 0; i < some * width / LANES; i++) store(out + i * LANES, sums[i]);
}

/* Query heads that share keys and values (count, width), over all of those; `after`: the keys that are read next.
 * queries, out: (groups, width); scores: room for (groups, count + 15). */
INLINE void read_memory(const real *queries, const real *keys, const real *values, const real *after, float *scores,
                        real *out, long groups, long count, const long width, float scale) {
  long tiles = tiles_of(count), row = tiles * LANES;
  for (long at = 0; at < row; at += LANES) {
    for (long i = 0; i < LANES; i++) ask_for(at + i + AHEAD, keys, count, values, width);
    for (long group = 0; group < groups; group++) {
      vec query[WIDEST / LANES + 1], dots[LANES];
      load_query(query, queries + group * width, width);
      for (long i = 0; i < LANES; i++) /* what stands for positions beyond the last is not looked at */
        dots[i] = multiply(query, keys + (at + i < count ? at + i : count - 1) * width, width);
      put(scores + group * row + at, totals(dots) * scale);
    }
  }
  for (long group = 0; group < groups; group++) soften(scores + group * row, tiles, count);
  long group = 0;
  for (; group + 3 <= groups; group += 3) /* as many sums as a processor has room for, for heads of 64 */
    mix_values(scores + group * row, row, values, count, after, out + group * width, 3, width);
  for (; group < groups; group++)
    mix_values(scores + group * row, row, values, count, after, out + group * width, 1, width);
}

int read_rows(const real *queries, const real *keys, const real *values, long stride, real *all_keys, real *all_values,
              const int64_t *starts, real *out, long rows, long heads, long key_heads, long width, long room, long here,
              float scale) {
  long groups = heads / key_heads;
  float *scratch = malloc((size_t)(groups * (here + 1 + LANES)) * sizeof(float));
#pragma omp for
  for (long task = 0; task < rows * key_heads; task++) {
    if (scratch == NULL) continue;
    long row = task / key_heads, head = task % key_heads;
    real *own_keys = all_keys + task * room * width, *own_values = all_values + task * room * width;
    memcpy(own_keys + here * width, keys + row * stride + head * width, (size_t)width * sizeof(real));
    memcpy(own_values + here * width, values + row * stride + head * width, (size_t)width * sizeof(real));
    const real *query = queries + row * stride + head * groups * width;
    real *to = out + (row * heads + head * groups) * width;
    long first = starts[row] * width, count = here + 1 - starts[row];
    long next = task + 1 < rows * key_heads ? task + 1 : task;
    const real *after = all_keys + (next * room + starts[next / key_heads]) * width;
    own_keys += first;
    own_values += first;
    if (width == 64) /* a width that is known to the compiler stays in registers */
      read_memory(query, own_keys, own_values, after, scratch, to, groups, count, 64, scale);
    else if (width == 128)
      read_memory(query, own_keys, own_values, after, scratch, to, groups, count, 128, scale);
    else
      read_memory(query, own_keys, own_values, after, scratch, to, groups, count, width, scale);
  }
  free(scratch);
  return scratch == NULL;
}

int attend_step(const real *queries, const real *keys, const real *values, long stride, real *all_keys,
                real *all_values, const int64_t *starts, real *out, long rows, long heads, long key_heads, long width,
                long room, long here, float scale, int threads) {
  int failures = 0;
#pragma omp parallel num_threads(workers(rows * heads * (here + 1) * width, threads)) reduction(+ : failures)
  failures += read_rows(queries, keys, values, stride, all_keys, all_values, starts, out, rows, heads, key_heads, width,
                        room, here, scale);
  return failures > 0;
}

/* --- Attention within spans of whole sequences: each token reads its own span up to itself, after the tokens that the
 * span shares with others (a prompt before its completions). */

#define QUERIES 8

/* Rows (count, width) that lie `stride` apart, in fp32 at `to`. */
INLINE void gather(float *to, const real *from, long count, long stride, const long width) {
  for (long at = 0; at < count; at++)
    for (long i = 0; i < width; i += LANES) put(to + at * width + i, load(from + at * stride + i));
}

/* Tiles of 16 rows (count, width) as columns: (tiles, width, 16). */
INLINE void turn(float *to, const float *from, long tiles, const long width) {
  for (long tile = 0; tile < tiles; tile++)
    for (long i = 0; i < width; i += LANES) {
      vec x[LANES];
      for (int at = 0; at < LANES; at++) x[at] = get(from + (tile * LANES + at) * width + i);
      transpose(x);
      for (int at = 0; at < LANES; at++) put(to + (tile * width + i + at) * LANES, x[at]);
    }
}

/* Products of up to 8 rows (count, width) with all columns of some tiles: (count, tiles x 16), `row` numbers apart. */
INLINE void products(float *to, long row, const float *rows, const float *columns, long tiles, const long width) {
  for (long tile = 0; tile < tiles; tile++) {
    vec sums[QUERIES];
    for (int i = 0; i < QUERIES; i++) sums[i] = splat(0);
    for (long d = 0; d < width; d++) {
      vec column = get(columns + (tile * width + d) * LANES);
      for (int i = 0; i < QUERIES; i++) sums[i] += rows[i * width + d] * column;
    }
    for (int i = 0; i < QUERIES; i++) put(to + i * row + tile * LANES, sums[i]);
  }
}

/* Add to two rows (width) the rows of `x` (count, width), each times its weight. */
INLINE void mix(float *to, const float *weights, long row, const float *x, long count, const long width) {
  for (int i = 0; i < QUERIES; i += 2) {
    vec first[WIDEST / LANES], second[WIDEST / LANES];
    for (long part = 0; part < width / LANES; part++) first[part] = second[part] = splat(0);
    for (long at = 0; at < count; at++)
      for (long part = 0; part < width / LANES; part++) {
        vec some = get(x + at * width + part * LANES);
        first[part] += weights[i * row + at] * some;
        second[part] += weights[(i + 1) * row + at] * some;
      }
    for (long part = 0; part < width / LANES; part++) {
      put(to + i * width + part * LANES, first[part]);
      put(to + (i + 1) * width + part * LANES, second[part]);
    }
  }
}

/* Add 8 rows of `x`, each times its weight for a position, to all positions: (count, width). */
INLINE void spread(float *to, const float *weights, long row, const float *x, long count, const long width) {
  for (long at = 0; at < count; at++)
    for (long i = 0; i < width; i += LANES) {
      vec sum = get(to + at * width + i);
      for (int query = 0; query < QUERIES; query++) sum += weights[query * row + at] * get(x + query * width + i);
      put(to + at * width + i, sum);
    }
}

/* Keys or values of what a span reads, (tiles x 16, width), zero after the last. */
INLINE void gather_known(float *to, const real *from, long stride, const span *own, const long width) {
  long shared = own->shared_end - own->shared_start, size = own->end - own->start;
  gather(to, from + own->shared_start * stride, shared, stride, width);
  gather(to + shared * width, from + own->start * stride, size, stride, width);
  long beyond = (LANES - (shared + size) % LANES) % LANES;
  memset(to + (shared + size) * width, 0, (size_t)(beyond * width) * sizeof(float));
}

/* Up to 8 rows (count, width) times a factor, zero after the last. */
INLINE void gather_queries(float *to, const real *from, long count, long stride, float factor, const long width) {
  for (long at = 0; at < QUERIES; at++)
    for (long i = 0; i < width; i += LANES)
      put(to + at * width + i, at < count ? load(from + at * stride + i) * factor : splat(0));
}

/* The queries of a span that share a key head. scratch: 3 x (positions + 8) x width and 8 x positions numbers. */
INLINE void read_span(const real *queries, const real *keys, const real *values, long stride, const span *own, real *out,
                      long groups, long heads, float *scratch, long positions, float scale, const long width) {
  long shared = own->shared_end - own->shared_start, size = own->end - own->start;
  float *known = scratch, *columns = known + positions * width, *contents = columns + positions * width;
  float *scores = contents + positions * width, *asked = scores + QUERIES * positions, *read = asked + QUERIES * width;
  gather_known(known, keys, stride, own, width);
  turn(columns, known, tiles_of(shared + size), width);
  gather_known(contents, values, stride, own, width);
  for (long group = 0; group < groups; group++)
    for (long first = 0; first < size; first += QUERIES) {
      long count = size - first < QUERIES ? size - first : QUERIES, tiles = tiles_of(shared + first + count);
      gather_queries(asked, queries + (own->start + first) * stride + group * width, count, stride, scale, width);
      products(scores, positions, asked, columns, tiles, width);
      for (long i = 0; i < QUERIES; i++) soften(scores + i * positions, tiles, shared + first + i + 1);
      mix(read, scores, positions, contents, shared + first + count, width);
      for (long i = 0; i < count; i++)
        for (long part = 0; part < width; part += LANES)
          store(out + ((own->start + first + i) * heads + group) * width + part, get(read + i * width + part));
    }
}

/* The slopes of one span and key head: for its queries into `out` (rows of `stride`), for keys and values added to
 * (tokens from `base` on, width). scratch: 3 x (positions + 8) x width and 16 x positions numbers. */
INLINE void slopes_of_span(const real *grad, const real *queries, const real *keys, const real *values, long stride,
                           const span *own, real *out, float *for_keys, float *for_values, long base, long groups,
                           long heads, float *scratch, long positions, float scale, const long width) {
  long shared = own->shared_end - own->shared_start, size = own->end - own->start;
  float *known = scratch, *columns = known + positions * width, *value_columns = columns + positions * width;
  float *weights = value_columns + positions * width, *errors = weights + QUERIES * positions;
  float *asked = errors + QUERIES * positions, *wanted = asked + QUERIES * width, *found = wanted + QUERIES * width;
  gather_known(known, values, stride, own, width);
  turn(value_columns, known, tiles_of(shared + size), width);
  gather_known(known, keys, stride, own, width);
  turn(columns, known, tiles_of(shared + size), width);
  long before = (own->shared_start - base) * width, inside = (own->start - base) * width;
  for (long group = 0; group < groups; group++)
    for (long first = 0; first < size; first += QUERIES) {
      long count = size - first < QUERIES ? size - first : QUERIES, tiles = tiles_of(shared + first + count);
      long place = own->start + first;
      gather_queries(asked, queries + place * stride + group * width, count, stride, scale, width);
      gather_queries(wanted, grad + (place * heads + group) * width, count, heads * width, 1.0f, width);
      products(weights, positions, asked, columns, tiles, width);
      products(errors, positions, wanted, value_columns, tiles, width);
      for (long i = 0; i < QUERIES; i++) {
        float *weight = weights + i * positions, *error = errors + i * positions;
        soften(weight, tiles, shared + first + i + 1);
        vec sum = {0};
        for (long at = 0; at < tiles * LANES; at += LANES) sum += get(weight + at) * get(error + at);
        vec mean = splat(total(sum));
        for (long at = 0; at < tiles * LANES; at += LANES)
          put(error + at, get(weight + at) * (get(error + at) - mean));
      }
      mix(found, errors, positions, known, shared + first + count, width);
      for (long i = 0; i < count; i++)
        for (long part = 0; part < width; part += LANES)
          store(out + (place + i) * stride + group * width + part, get(found + i * width + part) * scale);
      spread(for_values + before, weights, positions, wanted, shared, width);
      spread(for_values + inside, weights + shared, positions, wanted, first + count, width);
      spread(for_keys + before, errors, positions, asked, shared, width);
      spread(for_keys + inside, errors + shared, positions, asked, first + count, width);
    }
}

long longest(const span *spans, long count) {
  long most = 0;
  for (long i = 0; i < count; i++) {
    long size = spans[i].end - spans[i].start + spans[i].shared_end - spans[i].shared_start;
    most = size > most ? size : most;
  }
  return tiles_of(most) * LANES;
}

int read_spans(const real *queries, const real *keys, const real *values, long stride, const span *spans, long count,
               long positions, real *out, long heads, long key_heads, long width, float scale) {
  long groups = heads / key_heads;
  float *scratch = malloc((size_t)(3 * (positions + QUERIES) * width + QUERIES * positions) * sizeof(float));
#pragma omp for schedule(dynamic)
  for (long task = 0; task < count * key_heads; task++) {
    if (scratch == NULL) continue;
    const span *own = spans + task / key_heads;
    long head = task % key_heads;
    const real *q = queries + head * groups * width, *k = keys + head * width, *v = values + head * width;
    real *to = out + head * groups * width;
    if (width == 64)
      read_span(q, k, v, stride, own, to, groups, heads, scratch, positions, scale, 64);
    else
      read_span(q, k, v, stride, own, to, groups, heads, scratch, positions, scale, width);
  }
  free(scratch);
  return scratch == NULL;
}

int attend_spans(const real *queries, const real *keys, const real *values, long stride, const span *spans, long count,
                 real *out, long heads, long key_heads, long width, float scale, int threads) {
  long positions = longest(spans, count);
  int failures = 0;
#pragma omp parallel num_threads(workers(count * heads * positions * width, threads)) reduction(+ : failures)
  failures += read_spans(queries, keys, values, stride, spans, count, positions, out, heads, key_heads, width, scale);
  return failures > 0;
}

/* The slopes for queries, keys and values, (tokens, heads + 2 key_heads, width), of those (tokens, heads, width) for what
 * `attend_spans` gave. A span that shares nothing begins a family, whose spans may share tokens with each other only. */
int attend_spans_backward(const real *grad, const real *queries, const real *keys, const real *values, long stride,
                          const span *spans, long count, real *out, long heads, long key_heads, long width, float scale,
                          int threads) {
  long groups = heads / key_heads, positions = longest(spans, count), failures = 0, families = 0, widest = 0;
  long *firsts = malloc((size_t)(count + 1) * sizeof(long));
  if (firsts == NULL) return 1;
  for (long i = 0; i < count; i++)
    if (spans[i].shared_start == spans[i].shared_end) firsts[families++] = i;
  firsts[families] = count;
  for (long i = 0; i < families; i++) {
    long size = spans[firsts[i + 1] - 1].end - spans[firsts[i]].start;
    widest = size > widest ? size : widest;
  }
#pragma omp parallel num_threads(workers(count * heads * positions * width, threads)) reduction(+ : failures)
  {
    long own_size = 3 * (positions + QUERIES) * width + 2 * QUERIES * positions;
    float *scratch = malloc((size_t)(own_size + 2 * widest * width) * sizeof(float));
    failures = scratch == NULL;
#pragma omp for schedule(dynamic)
    for (long task = 0; task < families * key_heads; task++) {
      if (failures) continue;
      long family = task / key_heads, head = task % key_heads;
      long base = spans[firsts[family]].start, size = spans[firsts[family + 1] - 1].end - base;
      float *for_keys = scratch + own_size, *for_values = for_keys + size * width;
      memset(for_keys, 0, (size_t)(2 * size * width) * sizeof(float));
      const real *q = queries + head * groups * width, *k = keys + head * width, *v = values + head * width;
      const real *g = grad + head * groups * width;
      real *to = out + head * groups * width;
      for (const span *own = spans + firsts[family]; own < spans + firsts[family + 1]; own++)
        if (width == 64)
          slopes_of_span(g, q, k, v, stride, own, to, for_keys, for_values, base, groups, heads, scratch, positions,
                         scale, 64);
        else
          slopes_of_span(g, q, k, v, stride, own, to, for_keys, for_values, base, groups, heads, scratch, positions,
                         scale, width);
      for (long at = 0; at < size; at++) {
        real *row = out + (base + at) * stride + (heads + head) * width;
        for (long i = 0; i < width; i += LANES) {
          store(row + i, get(for_keys + at * width + i));
          store(row + key_heads * width + i, get(for_values + at * width + i));
        }
      }
    }
    free(scratch);
  }
  free(firsts);
  return failures > 0;
}
