/* What all threads of a team call together, each doing its share; at the end of each they have waited for one another,
 * unless it says otherwise. Called by one thread alone, each does the whole. */
#pragma once
#include "vectors.h"

typedef struct {
  int64_t start, end, shared_start, shared_end;
} span;

/* out = x / sqrt(mean(x^2) + eps) * weight; x, out: (rows, size). */
void norm_rows(const real *x, const real *weight, real *out, long rows, long size, float eps);

/* Turn the first `turned` of `heads` heads in each row by its angles and copy the others; direction -1 turns back.
 * x, out: (rows, heads, width), may be the same; cos, sin: (rows, width), the first half of sin with a minus. */
void rotate_rows(const real *x, const real *cosines, const real *sines, real *out, long rows, long heads, long turned,
                 long width, float direction);

/* Append a key and a value to each row's memory at `here`, and read with its queries from `starts` on.
 * queries: (rows, heads, width), keys and values: (rows, key_heads, width), rows `stride` numbers apart; out: (rows,
 * heads, width); all_keys, all_values: (rows, key_heads, room, width). Returns 1 if there is no memory to compute in. */
int read_rows(const real *queries, const real *keys, const real *values, long stride, real *all_keys, real *all_values,
              const int64_t *starts, real *out, long rows, long heads, long key_heads, long width, long room, long here,
              float scale);

/* Attend within spans. queries, keys, values: (tokens, heads or key_heads, width), rows `stride` numbers apart; spans: of
 * all tokens, in their order; positions: `longest` of them; out: (tokens, heads, width). Returns 1 without memory. */
int read_spans(const real *queries, const real *keys, const real *values, long stride, const span *spans, long count,
               long positions, real *out, long heads, long key_heads, long width, float scale);

/* The most positions that one of the spans reads, up to whole vectors. */
long longest(const span *spans, long count);
