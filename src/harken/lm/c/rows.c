/* Norm, gate and rotation of rows, forward and backward, and sums over the vocabulary, each in one pass. */
#include "team.h"

INLINE float inverse_root_mean_square(const real *x, long size, float eps) {
  vec squares = {0};
  for (long i = 0; i < size; i += LANES) squares += load(x + i) * load(x + i);
  return 1.0f / sqrtf(total(squares) / (float)size + eps);
}

void norm_rows(const real *x, const real *weight, real *out, long rows, long size, float eps) {
#pragma omp for
  for (long row = 0; row < rows; row++) {
    const real *from = x + row * size;
    vec inverse = splat(inverse_root_mean_square(from, size, eps));
    for (long i = 0; i < size; i += LANES)
      store(out + row * size + i, load(from + i) * inverse * load(weight + i));
  }
}

void rms_norm(const real *x, const real *weight, real *out, long rows, long size, float eps, int threads) {
#pragma omp parallel num_threads(workers(rows * size, threads))
  norm_rows(x, weight, out, rows, size, eps);
}

/* The slopes for x, and each row's inverse root mean square (for that of the weight). */
void rms_norm_backward(const real *grad, const real *x, const real *weight, real *out, float *inverses, long rows,
                       long size, float eps, int threads) {
#pragma omp parallel for num_threads(workers(rows * size, threads))
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
#pragma omp parallel for num_threads(workers(rows * size, threads))
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
#pragma omp parallel for num_threads(workers(rows * size, threads))
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

void rotate_rows(const real *x, const real *cosines, const real *sines, real *out, long rows, long heads, long turned,
                 long width, float direction) {
#pragma omp for
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
    if (out != x) memcpy(out + rest, x + rest, (size_t)((heads - turned) * width) * sizeof(real));
  }
}

void rotate(const real *x, const real *cosines, const real *sines, real *out, long rows, long heads, long turned,
            long width, float direction, int threads) {
#pragma omp parallel num_threads(workers(rows * heads * width, threads))
  rotate_rows(x, cosines, sines, out, rows, heads, turned, width, direction);
}

#define BLOCK (8 * LANES) /* as in core/drawing.py */

/* Of each block of logits, over the temperature: the largest, the sum of e^(logit - largest), and the sum of that times
 * (logit - largest). logits: (rows, size); largest, mass, below: (rows, size / BLOCK, rounded up). */
void sum_blocks(const real *logits, float temperature, float *largest, float *mass, float *below, long rows, long size,
                int threads) {
  long blocks = (size + BLOCK - 1) / BLOCK;
  float inverse = 1.0f / temperature;
#pragma omp parallel for num_threads(workers(rows * size, threads))
  for (long row = 0; row < rows; row++)
    for (long block = 0; block < blocks; block++) {
      const real *from = logits + row * size + block * BLOCK;
      float last[BLOCK];
      vec x[8], most = splat(-INFINITY), sum = {0}, sum_below = {0};
      long count = size - block * BLOCK;
      if (count < BLOCK) {
        for (long i = 0; i < BLOCK; i++) {
          last[i] = i < count ? single(from[i]) : -INFINITY;
        }
      }
      for (int i = 0; i < 8; i++) {
        x[i] = (count < BLOCK ? get(last + i * LANES) : load(from + i * LANES)) * inverse;
        most = choose(x[i] > most, x[i], most);
      }
      float top = maximum(most);
      for (int i = 0; i < 8; i++) {
        /* What has no mass must not get e^-87. */
        ivec is_none = x[i] == -INFINITY;
        vec distance = choose(is_none, splat(0), x[i] - top), some = choose(is_none, splat(0), exponential(distance));
        sum += some;
        sum_below += some * distance;
      }
      largest[row * blocks + block] = top;
      mass[row * blocks + block] = total(sum);
      below[row * blocks + block] = total(sum_below);
    }
}
