/* Vectors of floats, e^x, and a matmul that reads weights as training stores them. */

#ifndef GOODHEART_VECTORS_H
#define GOODHEART_VECTORS_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define ROWS 4 /* rows and outputs of a tile: its sums and their operands fit in the registers */
#ifdef __AVX512F__
#define LANES 16
#define OUTS 4
#else
#define LANES 8
#define OUTS 2
#endif
#define L1_FLOATS 4096  /* half of a first cache of 32 KiB */
#define L2_FLOATS 49152 /* 192 KiB of a second cache of 512 KiB or more */
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE __builtin_shufflevector
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (int32_t __attribute__((vector_size(16)))){__VA_ARGS__})
#endif
/* GCC would rather load an operand from memory again for each use, and loads are what limits a tile. */
#ifdef __AVX__
#define KEEP(v) __asm__("" : "+x"(v))
#else
#define KEEP(v) (void)(v)
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float quad __attribute__((vector_size(16)));
typedef float vec __attribute__((vector_size(LANES * 4)));
typedef float loose __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(LANES * 4)));

typedef struct {
    const float *weight, *bias; /* (out, in), (out) or NULL */
} Linear;

INLINE vec load(const float *p) { return *(const loose *)p; }
INLINE void store(float *p, vec x) { *(loose *)p = x; }

INLINE vec load_some(const float *p, int64_t n) {
    if (n >= LANES) return load(p);
    vec x = {0};
    memcpy(&x, p, (size_t)n * 4);
    return x;
}

INLINE void store_some(float *p, vec x, int64_t n) {
    if (n >= LANES)
        store(p, x);
    else
        memcpy(p, &x, (size_t)n * 4);
}

INLINE vec choose(ivec which, vec a, vec b) { return (vec)((which & (ivec)a) | (~which & (ivec)b)); }

/* Sums over lanes, in one order whether alone or four at a time: halves, then (0 + 2) + (1 + 3). */
INLINE quad fold(vec x) {
    quad part[LANES / 4];
    memcpy(part, &x, sizeof x);
    for (int width = LANES / 8; width; width /= 2)
        for (int i = 0; i < width; i++) part[i] += part[i + width];
    return part[0];
}

INLINE float sum(vec x) {
    quad s = fold(x);
    return (s[0] + s[2]) + (s[1] + s[3]);
}

INLINE quad sum4(vec a, vec b, vec c, vec d) {
    quad p = fold(a), q = fold(b), r = fold(c), s = fold(d);
    quad pq = SHUFFLE(p, q, 0, 4, 1, 5) + SHUFFLE(p, q, 2, 6, 3, 7);
    quad rs = SHUFFLE(r, s, 0, 4, 1, 5) + SHUFFLE(r, s, 2, 6, 3, 7);
    return SHUFFLE(pq, rs, 0, 1, 4, 5) + SHUFFLE(pq, rs, 2, 3, 6, 7);
}

/* e^x: 2^n times a polynomial (Cephes), 2 units in the last place; 0 below -87, not-a-number stays. */
INLINE vec vexp(vec x) {
    const vec none = {0};
    ivec low = x < -87.0f;
    vec clamped = choose(x > 88.0f, none + 88.0f, choose(low, none - 87.0f, x));
    vec n = (clamped * 1.44269504f + 12582912.0f) - 12582912.0f; /* rounds: 1.5 * 2^23 has no room for fractions */
    vec r = clamped - n * 0.693359375f + n * 2.12194440e-4f;
    vec y = r * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    ivec power = (__builtin_convertvector(n, ivec) + 127) << 23;
    return choose(low, none, y * (vec)power);
}

INLINE vec sigmoid(vec x) { return 1.0f / (1.0f + vexp(-x)); }

/* y[r][o] = sum_k x[r][k] w[o][k] for a tile of constant shape. */
INLINE void tile(const int rows, const int outs, const float *x, const float *w, float *y, int64_t in, int64_t stride,
                 const float *bias) {
    vec total[ROWS][OUTS];
    for (int r = 0; r < rows; r++)
        for (int o = 0; o < outs; o++) total[r][o] = (vec){0};
    int64_t k = 0;
    for (; k + LANES <= in; k += LANES) {
        vec a[ROWS];
        for (int r = 0; r < rows; r++) {
            a[r] = load(x + r * in + k);
            KEEP(a[r]);
        }
        for (int o = 0; o < outs; o++) {
            vec b = load(w + o * in + k);
            KEEP(b);
            for (int r = 0; r < rows; r++) total[r][o] += a[r] * b;
        }
    }
    if (k < in)
        for (int o = 0; o < outs; o++) {
            vec b = load_some(w + o * in + k, in - k);
            for (int r = 0; r < rows; r++) total[r][o] += load_some(x + r * in + k, in - k) * b;
        }
    for (int o = 0; o < outs; o++) {
        float b = bias ? bias[o] : 0.0f;
        if (rows == 4) {
            quad s = sum4(total[0][o], total[1][o], total[2][o], total[3][o]);
            for (int r = 0; r < 4; r++) y[r * stride + o] = s[r] + b;
        } else
            for (int r = 0; r < rows; r++) y[r * stride + o] = sum(total[r][o]) + b;
    }
}

INLINE void tiles(const int outs, const float *x, const float *w, float *y, int64_t rows, int64_t in, int64_t stride,
                  const float *bias) {
    int64_t r = 0;
    for (; r + ROWS <= rows; r += ROWS) tile(ROWS, outs, x + r * in, w, y + r * stride, in, stride, bias);
    for (; r < rows; r++) tile(1, outs, x + r * in, w, y + r * stride, in, stride, bias);
}

/* y (rows, out) = x (rows, in) w^T + b. Outputs in blocks whose weights stay in the second cache while rows come in
   blocks that stay in the first. */
static inline void linear(const Linear *l, const float *x, float *y, int64_t rows, int64_t in, int64_t out) {
    int64_t outs = L2_FLOATS / in / OUTS * OUTS, some = L1_FLOATS / in / ROWS * ROWS;
    outs = outs > OUTS ? outs : OUTS;
    some = some > ROWS ? some : ROWS;
    for (int64_t first = 0; first < out; first += outs)
        for (int64_t r = 0; r < rows; r += some) {
            int64_t o = first, end = first + outs < out ? first + outs : out, n = rows - r < some ? rows - r : some;
            for (; o + OUTS <= end; o += OUTS)
                tiles(OUTS, x + r * in, l->weight + o * in, y + r * out + o, n, in, out, l->bias ? l->bias + o : NULL);
            for (; o < end; o++)
                tiles(1, x + r * in, l->weight + o * in, y + r * out + o, n, in, out, l->bias ? l->bias + o : NULL);
        }
}

#endif
