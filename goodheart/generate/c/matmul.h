/* Panels times weights that are read where training keeps them. */

#ifndef GOODHEART_MATMUL_H
#define GOODHEART_MATMUL_H

#include "vectors.h"

/* Outputs of a tile, whose sums stay in registers: 32 of them, or 16. */
#if LANES == 16
#define OUTS 8
#elif defined(__aarch64__) || defined(__AVX__)
#define OUTS 6
#else
#define OUTS 2
#endif
#define AHEAD 16 /* numbers of a weight row between two requests for the rows after it: one line of a cache */

typedef struct {
    const float *weight, *bias; /* (out, in), (out) or NULL */
} Linear;

/* y[o][token] = b[o] + sum_k w[o][k] x[k][token], for `panels` panels (or their first tokens: `parts` vectors of each)
   and `outs` outputs. Every sum runs over k in order, in one accumulator. */
#define TILE(name, type)                                                                                              \
    INLINE void name(const int panels, const int parts, const int outs, const float *x, const float *w,               \
                     const float *bias, float *y, int64_t in, int64_t wide, int64_t out) {                            \
        typedef float near __attribute__((vector_size(sizeof(type)), aligned(4), may_alias));                         \
        const int lanes = sizeof(type) / 4;                                                                           \
        type total[2][PARTS][OUTS];                                                                                   \
        for (int p = 0; p < panels; p++)                                                                              \
            for (int i = 0; i < parts; i++)                                                                           \
                for (int o = 0; o < outs; o++) total[p][i][o] = (type){0};                                            \
        for (int64_t k = 0; k < in;) {                                                                                \
            int64_t end = in - k < AHEAD ? in : k + AHEAD;                                                            \
            for (int o = 0; o < outs; o++) __builtin_prefetch(w + (outs + o) * in + k);                               \
            _Pragma("GCC unroll 4") for (; k < end; k++) {                                                            \
                type a[2][PARTS];                                                                                     \
                for (int p = 0; p < panels; p++)                                                                      \
                    for (int i = 0; i < parts; i++) {                                                                 \
                        a[p][i] = *(const near *)(x + (p * wide + k) * PANEL + i * lanes);                            \
                        KEEP(a[p][i]);                                                                                \
                    }                                                                                                 \
                for (int o = 0; o < outs; o++) {                                                                      \
                    type b = w[o * in + k] - (type){0};                                                               \
                    if (panels * parts > 1) KEEP(b);                                                                  \
                    for (int p = 0; p < panels; p++)                                                                  \
                        for (int i = 0; i < parts; i++) total[p][i][o] += a[p][i] * b;                                \
                }                                                                                                     \
                if (panels * parts * outs == 1) KEEP(total[0][0][0]); /* else GCC may not fuse a chain of its own */  \
            }                                                                                                         \
        }                                                                                                             \
        for (int o = 0; o < outs; o++)                                                                                \
            for (int p = 0; p < panels; p++)                                                                          \
                for (int i = 0; i < parts; i++)                                                                       \
                    *(near *)(y + (p * out + o) * PANEL + i * lanes) = total[p][i][o] + (bias ? bias[o] : 0.0f);      \
    }

TILE(tile, vec)
#if LANES == 16
typedef float half __attribute__((vector_size(32)));
TILE(half_tile, half)
#define HALF_PARTS 1
#define PAIR 2
#else
#define half_tile tile
#define HALF_PARTS (PARTS / 2)
#define PAIR 1
#endif

INLINE void tiles(const int outs, const float *x, const float *w, const float *bias, float *y, int64_t tokens,
                  int64_t in, int64_t wide, int64_t out) {
    int64_t t = 0;
    for (; PAIR == 2 && tokens - t > PANEL; t += 2 * PANEL)
        tile(PAIR, PARTS, outs, x + t * wide, w, bias, y + t * out, in, wide, out);
    for (; tokens - t > PANEL / 2; t += PANEL) tile(1, PARTS, outs, x + t * wide, w, bias, y + t * out, in, wide, out);
    if (t < tokens) half_tile(1, HALF_PARTS, outs, x + t * wide, w, bias, y + t * out, in, wide, out);
}

/* Outputs first .. end - 1 of y = x w^T + b, from the first `in` features of panels of `wide` to panels of `out`. */
static void linear(const Linear *l, const float *x, int64_t wide, float *y, int64_t out, int64_t tokens, int64_t in,
                   int64_t first, int64_t end) {
    int64_t o = first;
    for (; o + OUTS <= end; o += OUTS)
        tiles(OUTS, x, l->weight + o * in, l->bias ? l->bias + o : NULL, y + o * PANEL, tokens, in, wide, out);
    for (; OUTS > 2 && o + 2 <= end; o += 2)
        tiles(2, x, l->weight + o * in, l->bias ? l->bias + o : NULL, y + o * PANEL, tokens, in, wide, out);
    for (; o < end; o++)
        tiles(1, x, l->weight + o * in, l->bias ? l->bias + o : NULL, y + o * PANEL, tokens, in, wide, out);
}

#endif
