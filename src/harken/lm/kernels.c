/* What stands between the matrix products of a model built like llama, each in one pass over its numbers.
 *
 * Compiled once for bf16 (-DBF16) and once for fp32, and called by kernels.py, which checks every shape. All arithmetic
 * is fp32; numbers are rounded to the tensors' type when they are stored. Sizes of rows are multiples of 16. Each row is
 * computed by one thread in one order, so that its bits do not depend on the rows beside it.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16
#define WIDEST 256 /* of a head */
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES)));
#define INLINE static inline __attribute__((always_inline))

INLINE vec get(const float *from) {
  vec x;
  memcpy(&x, from, sizeof x);
  return x;
}

INLINE void put(float *to, vec x) { memcpy(to, &x, sizeof x); }

#ifdef BF16
typedef uint16_t real; /* the upper half of an fp32 */
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));

INLINE vec load(const real *from) {
  halves bits;
  memcpy(&bits, from, sizeof bits);
  return (vec)(__builtin_convertvector(bits, uvec) << 16);
}

INLINE void store(real *to, vec x) {
  uvec bits = (uvec)x;
  bits += 0x7fff + ((bits >> 16) & 1); /* to the nearest, ties to even */
  halves rounded = __builtin_convertvector(bits >> 16, halves);
  memcpy(to, &rounded, sizeof rounded);
}
#else
typedef float real;
#define load get
#define store put
#endif

INLINE vec splat(float x) { return x - (vec){0}; }

INLINE vec choose(ivec condition, vec yes, vec no) { return (vec)((condition & (ivec)yes) | (~condition & (ivec)no)); }

INLINE float total(vec x) {
  typedef float half __attribute__((vector_size(2 * LANES)));
  typedef float quarter __attribute__((vector_size(LANES)));
  half two[2];
  memcpy(two, &x, sizeof x);
  two[0] += two[1];
  quarter four[2];
  memcpy(four, two, sizeof four);
  four[0] += four[1];
  return (four[0][0] + four[0][2]) + (four[0][1] + four[0][3]);
}

/* The totals of 16 vectors, in their order: each step adds halves of what is left and puts two such sums together. */
#define FOLD(a, b, ...) (__builtin_shufflevector(a, b, __VA_ARGS__))
INLINE vec totals(const vec x[LANES]) {
  vec eighths[8], quarters[4], pairs[2];
  for (int i = 0; i < 8; i++)
    eighths[i] = FOLD(x[i], x[i + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
                 FOLD(x[i], x[i + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  for (int i = 0; i < 4; i++)
    quarters[i] = FOLD(eighths[i], eighths[i + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
                  FOLD(eighths[i], eighths[i + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
  for (int i = 0; i < 2; i++)
    pairs[i] = FOLD(quarters[i], quarters[i + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
                 FOLD(quarters[i], quarters[i + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  return FOLD(pairs[0], pairs[1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
         FOLD(pairs[0], pairs[1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
}

/* e^x within 2 units in the last place; below -87 it is e^-87 (1.6e-38), and NaN stays NaN. */
INLINE vec exponential(vec x) {
  x = choose(x < -87.0f, splat(-87.0f), x);
  x = choose(x > 88.0f, splat(88.0f), x);
  vec powers = x * 1.44269504f;
  powers += choose(powers < 0.0f, splat(-0.5f), splat(0.5f));
  ivec whole = __builtin_convertvector(powers, ivec);
  vec n = __builtin_convertvector(whole, vec);
  vec rest = (x - n * 0.693359375f) + n * 2.12194440e-4f; /* ln 2 in two parts (Cephes, expf) */
  vec sum = 1.9875691500e-4f * rest + 1.3981999507e-3f;
  sum = sum * rest + 8.3334519073e-3f;
  sum = sum * rest + 4.1665795894e-2f;
  sum = sum * rest + 1.6666665459e-1f;
  sum = sum * rest + 5.0000001201e-1f;
  sum = sum * rest * rest + rest + 1.0f;
  vec result = (vec)((ivec)sum + (whole << 23));
  return choose(x == x, result, x);
}

INLINE vec sigmoid(vec x) { return 1.0f / (1.0f + exponential(-x)); }

INLINE float inverse_root_mean_square(const real *x, long size, float eps) {
  vec squares = {0};
  for (long i = 0; i < size; i += LANES) squares += load(x + i) * load(x + i);
  return 1.0f / sqrtf(total(squares) / (float)size + eps);
}

/* out = x / sqrt(mean(x^2) + eps) * weight; x, out: (rows, size). */
void rms_norm(const real *x, const real *weight, real *out, long rows, long size, float eps, int threads) {
#pragma omp parallel for num_threads(threads)
  for (long row = 0; row < rows; row++) {
    const real *from = x + row * size;
    vec inverse = splat(inverse_root_mean_square(from, size, eps));
    for (long i = 0; i < size; i += LANES)
      store(out + row * size + i, load(from + i) * inverse * load(weight + i));
  }
}

/* The slopes for x, and each row's inverse root mean square (for that of the weight). */
void rms_norm_backward(const real *grad, const real *x, const real *weight, real *out, float *inverses, long rows,
                       long size, float eps, int threads) {
#pragma omp parallel for num_threads(threads)
  for (long row = 0; row < rows; row++) {
    const real *from = x + row * size, *slope = grad + row * size;
    float inverse = inverse_root_mean_square(from, size, eps);
    vec along = {0};
    for (long i = 0; i < size; i += LANES) along += load(slope + i) * load(weight + i) * load(from + i);
    /* What would only make x longer or shorter changes nothing. */
    vec share = splat(total(along) * inverse * inverse / (float)size);
    for (long i = 0; i < size; i += LANES)
      store(out + row * size + i, (load(slope + i) * load(weight + i) - load(from + i) * share) * inverse);
    inverses[row] = inverse;
  }
}

/* out = silu(gate) * up; gate_up: (rows, 2 size), gates first. */
void swiglu(const real *gate_up, real *out, long rows, long size, int threads) {
#pragma omp parallel for num_threads(threads)
  for (long row = 0; row < rows; row++) {
    const real *gates = gate_up + row * 2 * size;
    for (long i = 0; i < size; i += LANES) {
      vec gate = load(gates + i);
      store(out + row * size + i, gate * sigmoid(gate) * load(gates + size + i));
    }
  }
}

/* The slopes for gate_up, (rows, 2 size). */
void swiglu_backward(const real *grad, const real *gate_up, real *out, long rows, long size, int threads) {
#pragma omp parallel for num_threads(threads)
  for (long row = 0; row < rows; row++) {
    const real *gates = gate_up + row * 2 * size;
    real *to = out + row * 2 * size;
    for (long i = 0; i < size; i += LANES) {
      vec gate = load(gates + i), slope = load(grad + row * size + i), open = sigmoid(gate);
      store(to + i, slope * load(gates + size + i) * open * (1.0f + gate * (1.0f - open)));
      store(to + size + i, slope * gate * open);
    }
  }
}

/* Turn the first `turned` of `heads` heads in each row by its angles and copy the others; direction -1 turns back.
 * x, out: (rows, heads, width); cos, sin: (rows, width), the first half of sin with a minus. */
void rotate(const real *x, const real *cosines, const real *sines, real *out, long rows, long heads, long turned,
            long width, float direction, int threads) {
#pragma omp parallel for num_threads(threads)
  for (long row = 0; row < rows; row++) {
    const real *c = cosines + row * width, *s = sines + row * width;
    long half = width / 2;
    for (long head = 0; head < turned; head++) {
      const real *from = x + (row * heads + head) * width;
      real *to = out + (row * heads + head) * width;
      for (long i = 0; i < half; i += LANES) {
        vec first = load(from + i), second = load(from + half + i);
        store(to + i, first * load(c + i) + direction * second * load(s + i));
        store(to + half + i, second * load(c + half + i) + direction * first * load(s + half + i));
      }
    }
    long rest = (row * heads + turned) * width;
    memcpy(out + rest, x + rest, (size_t)((heads - turned) * width) * sizeof(real));
  }
}

/* A tile of 16 positions of a memory (count, width) in fp32, zero beyond the last. The processor is told of the tile
 * after the next one, as it does not look beyond a page of memory by itself. */
INLINE void load_tile(vec *tile, const real *memory, long count, long parts) {
  const char *ahead = (const char *)(memory + 2 * LANES * parts * LANES);
  for (long byte = 0; byte < LANES * parts * LANES * (long)sizeof(real); byte += 64) __builtin_prefetch(ahead + byte);
  for (long at = 0; at < LANES; at++)
    for (long part = 0; part < parts; part++)
      tile[at * parts + part] = at < count ? load(memory + (at * parts + part) * LANES) : splat(0);
}

/* Query heads that share keys and values (count, width), over all of those.
 * queries, out: (groups, width); scratch: room for 16 numbers more than (groups, count + width). */
INLINE void read_memory(const real *queries, const real *keys, const real *values, float *scratch, real *out,
                        long groups, long count, const long width, float scale) {
  const long parts = width / LANES;
  long tiles = (count + LANES - 1) / LANES;
  vec tile[WIDEST], query[WIDEST / LANES], dots[LANES];
  float *sums = scratch + groups * tiles * LANES;
  for (long at = 0; at < tiles * LANES; at += LANES) {
    load_tile(tile, keys + at * width, count - at, parts);
    for (long group = 0; group < groups; group++) {
      for (long part = 0; part < parts; part++) query[part] = load(queries + group * width + part * LANES);
      for (int i = 0; i < LANES; i++) {
        dots[i] = splat(0);
        for (long part = 0; part < parts; part++) dots[i] += query[part] * tile[i * parts + part];
      }
      put(scratch + group * tiles * LANES + at, totals(dots) * scale);
    }
  }
  memset(sums, 0, (size_t)(groups * width) * sizeof(float));
  for (long group = 0; group < groups; group++) {
    float *scores = scratch + group * tiles * LANES;
    for (long at = count; at < tiles * LANES; at++) scores[at] = -INFINITY;
    vec largest = splat(-INFINITY), mass = {0};
    for (long at = 0; at < count; at += LANES) {
      vec some = get(scores + at);
      largest = choose(some > largest, some, largest);
    }
    float top = -INFINITY;
    for (int lane = 0; lane < LANES; lane++) top = largest[lane] > top ? largest[lane] : top;
    for (long at = 0; at < count; at += LANES) {
      vec weights = exponential(get(scores + at) - top); /* e^-87 beyond the last, which adds nothing */
      mass += weights;
      put(scores + at, weights);
    }
    vec inverse = splat(1.0f / total(mass));
    for (long at = 0; at < count; at += LANES) put(scores + at, get(scores + at) * inverse);
  }
  for (long at = 0; at < tiles * LANES; at += LANES) {
    load_tile(tile, values + at * width, count - at, parts);
    for (long group = 0; group < groups; group++) {
      const float *weights = scratch + group * tiles * LANES + at;
      vec sum[WIDEST / LANES];
      memcpy(sum, sums + group * width, (size_t)width * sizeof(float));
      for (int i = 0; i < LANES; i++)
        for (long part = 0; part < parts; part++) sum[part] += weights[i] * tile[i * parts + part];
      memcpy(sums + group * width, sum, (size_t)width * sizeof(float));
    }
  }
  for (long at = 0; at < groups * width; at += LANES) store(out + at, get(sums + at));
}

/* Append a key and a value to each row's memory at `here`, and read with its queries from `starts` on.
 * queries: (rows, heads, width), keys and values: (rows, key_heads, width), rows `stride` numbers apart; out: (rows,
 * heads, width); all_keys, all_values: (rows, key_heads, room, width). Returns 1 if there is no memory to compute in. */
int attend_step(const real *queries, const real *keys, const real *values, long stride, real *all_keys,
                real *all_values, const int64_t *starts, real *out, long rows, long heads, long key_heads, long width,
                long room, long here, float scale, int threads) {
  long groups = heads / key_heads, failures = 0;
#pragma omp parallel num_threads(threads) reduction(+ : failures)
  {
    float *scratch = malloc((size_t)(groups * (here + 1 + LANES + width)) * sizeof(float));
    failures = scratch == NULL;
#pragma omp for
    for (long task = 0; task < rows * key_heads; task++) {
      if (failures) continue;
      long row = task / key_heads, head = task % key_heads;
      real *own_keys = all_keys + task * room * width, *own_values = all_values + task * room * width;
      memcpy(own_keys + here * width, keys + row * stride + head * width, (size_t)width * sizeof(real));
      memcpy(own_values + here * width, values + row * stride + head * width, (size_t)width * sizeof(real));
      const real *query = queries + row * stride + head * groups * width;
      real *to = out + (row * heads + head * groups) * width;
      long first = starts[row] * width, count = here + 1 - starts[row];
      if (width == 64) /* a width that is known to the compiler stays in registers */
        read_memory(query, own_keys + first, own_values + first, scratch, to, groups, count, 64, scale);
      else if (width == 128)
        read_memory(query, own_keys + first, own_values + first, scratch, to, groups, count, 128, scale);
      else
        read_memory(query, own_keys + first, own_values + first, scratch, to, groups, count, width, scale);
    }
    free(scratch);
  }
  return failures > 0;
}
