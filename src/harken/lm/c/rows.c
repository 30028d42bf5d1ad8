/* Norm, gate and rotation of rows, forward and backward, each in one pass. */
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
