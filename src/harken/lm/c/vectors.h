/* Sixteen fp32 numbers at a time, in the vectors of GCC and Clang, which know every processor.
 *
 * Everything here is compiled once for bf16 (-DBF16) and once for fp32, and called by kernels.py, which checks shapes.
 * All arithmetic is fp32; numbers are rounded to the tensors' type when they are stored. Sizes of rows are multiples of
 * 16. Each row is computed by one thread in one order, so that its bits do not depend on the rows beside it.
 */
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

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
#ifdef __AVX512F__ /* one instruction, of which GCC makes five */
  return (vec)((uvec)_mm512_cvtepu16_epi32((__m256i)bits) << 16);
#else
  return (vec)(__builtin_convertvector(bits, uvec) << 16);
#endif
}

INLINE float single(real x) {
  uint32_t bits = (uint32_t)x << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

INLINE void store(real *to, vec x) {
  uvec bits = (uvec)x;
  bits += 0x7fff + ((bits >> 16) & 1); /* to the nearest, ties to even */
#ifdef __AVX512F__
  halves rounded = (halves)_mm512_cvtepi32_epi16((__m512i)(bits >> 16));
#else
  halves rounded = __builtin_convertvector(bits >> 16, halves);
#endif
  memcpy(to, &rounded, sizeof rounded);
}
#else
typedef float real;
#define single(x) (x)
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

INLINE float maximum(vec x) {
  float top = -INFINITY;
  for (int lane = 0; lane < LANES; lane++) top = x[lane] > top ? x[lane] : top;
  return top;
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

/* Four rounds of exchanging ever smaller squares turn 16 rows into columns. */
#define EXCHANGE(distance, low, high)                                   \
  for (int i = 0; i < LANES; i++)                                       \
    if (!(i & distance)) {                                              \
      vec a = x[i], b = x[i + distance];                                \
      x[i] = FOLD(a, b, UNPACK low);                                    \
      x[i + distance] = FOLD(a, b, UNPACK high);                        \
    }
#define UNPACK(...) __VA_ARGS__
INLINE void transpose(vec x[LANES]) {
  EXCHANGE(8, (0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23),
           (8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31))
  EXCHANGE(4, (0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27),
           (4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31))
  EXCHANGE(2, (0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29),
           (2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31))
  EXCHANGE(1, (0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30),
           (1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31))
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

/* How many threads to compute so many numbers with: waking others takes as long as computing some ten thousand. */
INLINE int workers(long numbers, int threads) { return numbers < 32768 ? 1 : threads; }
