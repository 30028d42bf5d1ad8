/* Layers of a model built like llama, one team of threads through all of them, for decoding: each reads what was just
 * written. Their products are of bf16, summed in fp32, in the AMX units of Intel's processors where there are any.
 *
 * With the few rows of a decoding step a product takes as long as its weight takes to come from memory. So weights lie in
 * the order in which they are read, and while some outputs are computed the weights of the next ones are asked for. */
#include "team.h"

#ifdef BF16
#ifdef __x86_64__
#include <immintrin.h>
#endif

#define SIDE 32    /* rows and outputs of a block: two tiles each */
#define TILE 512   /* numbers of a tile: 16 rows of 32 */
#define LINE 64    /* bytes of a line of the cache */
#define CHUNK 256  /* rows that stay in the second cache */
#define GROUP 4    /* blocks of outputs whose weights do, beside them */

/* Linear layers that read the same input, with a role's adapters. These structures are in decode_compiled.py too. */
typedef struct {
  const real *weight; /* in tiles, see `lay_tiles` */
  const real *down;   /* (ranks, inputs) in tiles */
  const real *up;     /* (outputs, ranks) in tiles */
  long inputs, outputs, ranks;
} projection;

typedef struct {
  projection qkv, out, gate_up, down;
  const real *norm, *mlp_norm;
  float eps, mlp_eps;
  real *keys, *values; /* memory: (rows, key_heads, room, width) */
} layer;

/* What all layers are computed on. */
typedef struct {
  const real *cosines, *sines; /* (rows, width) */
  long rows, hidden, inner, heads, key_heads, width, room, ranks;
  float scale;
  /* A step: each row is the next position of its sequence. */
  const int64_t *starts; /* (rows); NULL = prompts are read */
  long here;
  /* Prompts: each row is a token of one, whose key and value `copies` rows of memory get. */
  const span *spans;
  const int64_t *memory_rows, *columns; /* (rows) */
  long num_spans, copies;
} input;

/* --- A block: sums of 32 rows x 32 outputs. A thread calls `open_units` before and `close_units` after. */

#if defined(__AMX_BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>

/* Whether this process may use the units: Linux gives them on request (ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA). */
int has_units(void) { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

static void open_units(void) {
  static const struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  } config = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
  _tile_loadconfig(&config);
}

static void close_units(void) { _tile_release(); }

typedef char block_sums; /* they are in tiles 0 to 3 */

INLINE void clear(block_sums *sums) {
  (void)sums;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

/* Add products over 32 inputs. x: 32 rows, `inputs` numbers apart; weight: of 32 outputs, two tiles. */
INLINE void add_products(block_sums *sums, const real *x, const real *weight, long inputs) {
  const long stride = inputs * (long)sizeof(real);
  (void)sums;
  _tile_loadd(4, x, stride);
  _tile_loadd(6, weight, LINE);
  _tile_dpbf16ps(0, 4, 6);
  _tile_loadd(7, weight + TILE, LINE);
  _tile_dpbf16ps(1, 4, 7);
  _tile_loadd(5, x + LANES * inputs, stride);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

INLINE void read_sums(const block_sums *sums, float *to) {
  const long stride = SIDE * (long)sizeof(float);
  (void)sums;
  _tile_stored(0, to, stride);
  _tile_stored(1, to + LANES, stride);
  _tile_stored(2, to + LANES * SIDE, stride);
  _tile_stored(3, to + LANES * SIDE + LANES, stride);
}
#else
int has_units(void) {
#ifdef __AVX512BF16__
  return 1;
#else
  return 0;
#endif
}
static void open_units(void) {}
static void close_units(void) {}

typedef vec block_sums[2 * SIDE];

INLINE void clear(block_sums *sums) { memset(sums, 0, sizeof *sums); }

/* The products of a pair of inputs with 16 outputs. */
INLINE vec add_pair(vec sum, uint32_t x, vec weight) {
  uvec pair = x - (uvec){0};
#ifdef __AVX512BF16__
  return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)pair, (__m512bh)weight);
#else
  uvec bits = (uvec)weight;
  return sum + (vec)(pair << 16) * (vec)(bits << 16) + (vec)(pair & 0xffff0000) * (vec)(bits & 0xffff0000);
#endif
}

/* Add products over 32 inputs. x: 32 rows, `inputs` numbers apart; weight: of 32 outputs, two tiles. */
INLINE void add_products(block_sums *sums, const real *x, const real *weight, long inputs) {
  for (int row = 0; row < SIDE; row += 8) { /* as many sums as a processor has room for */
    vec some[16];
    memcpy(some, *sums + 2 * row, sizeof some);
    for (int pair = 0; pair < LANES; pair++) {
      vec first, second;
      memcpy(&first, weight + pair * SIDE, sizeof first);
      memcpy(&second, weight + TILE + pair * SIDE, sizeof second);
      for (int i = 0; i < 8; i++) {
        uint32_t two;
        memcpy(&two, x + (row + i) * inputs + 2 * pair, sizeof two);
        some[2 * i] = add_pair(some[2 * i], two, first);
        some[2 * i + 1] = add_pair(some[2 * i + 1], two, second);
      }
    }
    memcpy(*sums + 2 * row, some, sizeof some);
  }
}

INLINE void read_sums(const block_sums *sums, float *to) { memcpy(to, *sums, sizeof *sums); }
#endif

/* --- Products. */

/* weight: (outputs, inputs); out: blocks (outputs / 32, inputs / 32, 2 tiles, 16 pairs of inputs, 16 outputs, 2). With
 * `gated` the first tile of each block is of the first half of the outputs, the second of the other. */
void lay_tiles(const real *weight, real *out, long outputs, long inputs, int gated, int threads) {
#pragma omp parallel for num_threads(workers(outputs * inputs, threads))
  for (long tile = 0; tile < outputs / LANES; tile++) {
    long first = gated ? tile / 2 * LANES + tile % 2 * (outputs / 2) : tile * LANES;
    for (long part = 0; part < inputs / SIDE; part++) {
      vec pairs[LANES];
      for (int i = 0; i < LANES; i++) memcpy(pairs + i, weight + (first + i) * inputs + part * SIDE, sizeof(vec));
      transpose(pairs);
      memcpy(out + ((tile / 2 * (inputs / SIDE) + part) * 2 + tile % 2) * TILE, pairs, sizeof pairs);
    }
  }
}

/* What becomes of a product's sums. */
typedef struct {
  real *out;         /* (rows, outputs), or (rows, outputs / 2) where gated */
  const real *added; /* (rows, outputs), may be `out`; NULL = nothing */
  int gated;         /* each block has 16 gates and 16 ups: silu(gate) * up is kept */
} target;

/* The sums of a block that are not kept yet: this is done while the tiles of the next one are multiplied. */
typedef struct {
  float sums[SIDE * SIDE] __attribute__((aligned(LINE)));
  long first, next, count; /* number in `out` of the first; rows that are kept, and all */
} waiting;

INLINE void keep_rows(waiting *sums, const target *to, long outputs, long rows) {
  long stop = sums->next + rows < sums->count ? sums->next + rows : sums->count;
  for (; sums->next < stop; sums->next++) {
    vec first = get(sums->sums + sums->next * SIDE), second = get(sums->sums + sums->next * SIDE + LANES);
    long place = sums->first + sums->next * outputs;
    if (to->gated) {
      store(to->out + place / 2, first * sigmoid(first) * second);
      continue;
    }
    if (to->added != NULL) {
      first += load(to->added + place);
      second += load(to->added + place + LANES);
    }
    store(to->out + place, first);
    store(to->out + place + LANES, second);
  }
}

static long share_of(long blocks, long share, long shares) { return blocks * share / shares; }

/* A thread's share of the outputs. x: (rows up to a multiple of 32, inputs); between: likewise (ranks), what the adapters
 * made of x; next: the product that follows, whose weight is asked for at the end, or NULL. */
static void project_share(const projection *p, const projection *next, const real *x, const real *between,
                          const target *to, long rows, long share, long shares) {
  long blocks = p->outputs / SIDE, end = share_of(blocks, share + 1, shares), parts = p->inputs / SIDE;
  waiting sums = {.count = 0};
  block_sums now;
  for (long begin = 0; begin < rows; begin += CHUNK) {
    long stop = rows - begin < CHUNK ? rows : begin + CHUNK, strips = (stop - begin + SIDE - 1) / SIDE;
    for (long group = share_of(blocks, share, shares); group < end; group += GROUP) {
      long after = group + GROUP < end ? group + GROUP : end;
      const char *ahead = (const char *)(p->weight + after * SIDE * p->inputs);
      if (after == end && stop == rows && next != NULL)
        ahead = (const char *)(next->weight + share_of(next->outputs / SIDE, share, shares) * SIDE * next->inputs);
      long lines = SIDE / strips; /* so that all strips together ask for as much as they read */
      for (long row = begin; row < stop; row += SIDE)
        for (long block = group; block < after; block++) {
          const real *weight = p->weight + block * SIDE * p->inputs;
          clear(&now);
          for (long part = 0; part < parts; part++) {
            for (long line = 0; line < lines; line++, ahead += LINE) __builtin_prefetch(ahead, 0, 2);
            add_products(&now, x + row * p->inputs + part * SIDE, weight + part * 2 * TILE, p->inputs);
            keep_rows(&sums, to, p->outputs, 2);
          }
          for (long part = 0; part < p->ranks / SIDE; part++)
            add_products(&now, between + row * p->ranks + part * SIDE, p->up + (block * p->ranks + part * SIDE) * SIDE,
                         p->ranks);
          keep_rows(&sums, to, p->outputs, SIDE);
          read_sums(&now, sums.sums);
          sums.first = row * p->outputs + block * SIDE;
          sums.next = 0;
          sums.count = stop - row < SIDE ? stop - row : SIDE;
        }
    }
  }
  keep_rows(&sums, to, p->outputs, SIDE);
}

/* A team's product; arguments as of `project_share`. */
static void project(const projection *p, const projection *next, const real *x, real *between, const target *to,
                    long rows, long threads) {
  if (p->ranks) {
    projection first = {.weight = p->down, .inputs = p->inputs, .outputs = p->ranks};
    target there = {.out = between};
#pragma omp for
    for (long share = 0; share < threads; share++) project_share(&first, p, x, NULL, &there, rows, share, threads);
  }
#pragma omp for
  for (long share = 0; share < threads; share++) project_share(p, next, x, between, to, rows, share, threads);
}

/* out = x weight^T; x: (rows, inputs), out: (rows, outputs), weight: in tiles. Returns 1 without memory. */
int multiply_tiles(const real *x, const real *weight, real *out, long rows, long inputs, long outputs, int threads) {
  projection p = {.weight = weight, .inputs = inputs, .outputs = outputs};
  target to = {.out = out};
  real *whole = NULL;
  if (rows % SIDE) { /* blocks read whole strips */
    size_t size = (size_t)(rows * inputs) * sizeof(real), room = (size_t)((rows + SIDE) * inputs) * sizeof(real);
    whole = aligned_alloc(LINE, room / LINE * LINE);
    if (whole == NULL) return 1;
    memcpy(whole, x, size);
    memset((char *)whole + size, 0, room / LINE * LINE - size);
  }
#pragma omp parallel num_threads(workers(inputs * outputs, threads))
  {
    open_units();
    project(&p, NULL, whole ? whole : x, NULL, &to, rows, threads);
    close_units();
  }
  free(whole);
  return 0;
}

/* Put the keys and values of prompts into memory. No thread waits. */
static void remember(const layer *own, const input *in, const real *keys, const real *values, long stride) {
  size_t size = (size_t)in->width * sizeof(real);
#pragma omp for nowait
  for (long row = 0; row < in->rows; row++)
    for (long copy = 0; copy < in->copies; copy++)
      for (long head = 0; head < in->key_heads; head++) {
        long task = (in->memory_rows[row] * in->copies + copy) * in->key_heads + head;
        long place = (task * in->room + in->columns[row]) * in->width;
        memcpy(own->keys + place, keys + row * stride + head * in->width, size);
        memcpy(own->values + place, values + row * stride + head * in->width, size);
      }
}

/* Between layers: (rows up to a multiple of 32, size) each. */
typedef struct {
  real *normed, *heads, *read, *inner, *between;
} buffers;

static int through_layer(const layer *own, const layer *after, real *x, const input *in, const buffers *b,
                         long positions, long threads) {
  long all_heads = in->heads + 2 * in->key_heads, stride = all_heads * in->width, failures;
  const real *keys = b->heads + in->heads * in->width, *values = keys + in->key_heads * in->width;
  norm_rows(x, own->norm, b->normed, in->rows, in->hidden, own->eps);
  project(&own->qkv, &own->out, b->normed, b->between, &(target){.out = b->heads}, in->rows, threads);
  rotate_rows(b->heads, in->cosines, in->sines, b->heads, in->rows, all_heads, in->heads + in->key_heads, in->width, 1);
  if (in->starts != NULL) {
    failures = read_rows(b->heads, keys, values, stride, own->keys, own->values, in->starts, b->read, in->rows,
                         in->heads, in->key_heads, in->width, in->room, in->here, in->scale);
  } else {
    remember(own, in, keys, values, stride);
    failures = read_spans(b->heads, keys, values, stride, in->spans, in->num_spans, positions, b->read, in->heads,
                          in->key_heads, in->width, in->scale);
  }
  target added = {.out = x, .added = x};
  project(&own->out, &own->gate_up, b->read, b->between, &added, in->rows, threads);
  norm_rows(x, own->mlp_norm, b->normed, in->rows, in->hidden, own->mlp_eps);
  project(&own->gate_up, &own->down, b->normed, b->between, &(target){.out = b->inner, .gated = 1}, in->rows, threads);
  project(&own->down, after ? &after->qkv : NULL, b->inner, b->between, &added, in->rows, threads);
  return failures > 0;
}

/* Take x (rows, hidden) through `count` layers, in place. Returns 1 if there is no memory to compute in. */
int through_layers(const layer *layers, long count, real *x, const input *in, int threads) {
  long positions = in->starts == NULL ? longest(in->spans, in->num_spans) : 0, failures = 0;
  long strips = (in->rows + SIDE - 1) / SIDE;
  long sizes[5] = {in->hidden, (in->heads + 2 * in->key_heads) * in->width, in->heads * in->width, in->inner, in->ranks};
  long total = 0, places[5];
  for (int i = 0; i < 5; i++) {
    places[i] = total;
    total += strips * SIDE * sizes[i];
  }
  real *all = aligned_alloc(LINE, (size_t)total * sizeof(real));
  if (all == NULL) return 1;
  buffers b = {all + places[0], all + places[1], all + places[2], all + places[3], all + places[4]};
#pragma omp parallel num_threads(workers(in->rows * in->hidden * in->inner, threads)) reduction(+ : failures)
  {
    open_units();
    for (long i = 0; i < count; i++)
      failures += through_layer(layers + i, i + 1 < count ? layers + i + 1 : NULL, x, in, &b, positions, threads);
    close_units();
  }
  free(all);
  return failures > 0;
}
#else
int has_units(void) { return 0; }
#endif
