/* Panels times weights that are read where training keeps them. */

#ifndef GOODHEART_MATMUL_H
#define GOODHEART_MATMUL_H

#include "numbers.h"

/* Outputs of a tile, whose sums stay in registers: 32 of them, or 16. */
#if LANES == 16
#define OUTS 8
#elif (defined(__aarch64__) || defined(__AVX__)) && STEP == 1
#define OUTS 6
#elif defined(__aarch64__) || defined(__AVX__)
#define OUTS 4
#else
#define OUTS 2
#endif
#define AHEAD 16 /* words of a weight row between two requests for the rows after it: one line of a cache */

typedef struct {
    const number *weight, *bias; /* (out, in), (out) or NULL; `in` is a whole number of words */
} Linear;

/* y[o][token] = b[o] + sum_k w[o][k] x[k][token], for `panels` panels (or their first tokens: `parts` vectors of each)
   and `outs` outputs. in: words. Every sum runs over k in order, in one accumulator. */
#define TILE(name, type, packed, product)                                                                              \
    INLINE void name(const int panels, const int parts, const int outs, const word *x, const number *w,                \
                     const number *bias, float *y, int64_t in, int64_t out) {                                          \
        typedef float near __attribute__((vector_size(sizeof(type)), aligned(4), may_alias));                         \
        typedef word near_words __attribute__((vector_size(sizeof(type)), aligned(4), may_alias));                    \
        const int lanes = sizeof(type) / 4;                                                                           \
        type total[2][PARTS][OUTS];                                                                                   \
        for (int p = 0; p < panels; p++)                                                                              \
            for (int i = 0; i < parts; i++)                                                                           \
                for (int o = 0; o < outs; o++) total[p][i][o] = (type){0};                                            \
        for (int64_t k = 0; k < in;) {                                                                                \
            int64_t end = in - k < AHEAD ? in : k + AHEAD;                                                            \
            for (int o = 0; o < outs; o++) __builtin_prefetch(w + ((outs + o) * in + k) * STEP);                      \
            _Pragma("GCC unroll 4") for (; k < end; k++) {                                                            \
                packed a[2][PARTS];                                                                                   \
                for (int p = 0; p < panels; p++)                                                                      \
                    for (int i = 0; i < parts; i++) {                                                                 \
                        a[p][i] = *(const near_words *)(x + (p * in + k) * PANEL + i * lanes);                        \
                        KEEP(a[p][i]);                                                                                \
                    }                                                                                                 \
                for (int o = 0; o < outs; o++) {                                                                      \
                    packed b = *(const loose_word *)(w + (o * in + k) * STEP) - (packed){0};                          \
                    if (panels * parts > 1) KEEP(b);                                                                  \
                    for (int p = 0; p < panels; p++)                                                                  \
                        for (int i = 0; i < parts; i++) total[p][i][o] = product(total[p][i][o], a[p][i], b);         \
                }                                                                                                     \
                if (panels * parts * outs == 1) KEEP(total[0][0][0]); /* else GCC may not fuse a chain of its own */  \
            }                                                                                                         \
        }                                                                                                             \
        for (int o = 0; o < outs; o++)                                                                                \
            for (int p = 0; p < panels; p++)                                                                          \
                for (int i = 0; i < parts; i++) {                                                                     \
                    type sum = total[p][i][o] + (bias ? value(bias[o]) : 0.0f);                                       \
                    *(near *)(y + (p * out + o) * PANEL + i * lanes) = rounded(sum);                                  \
                }                                                                                                     \
    }

TILE(tile, vec, words, dot)
#if LANES == 16
TILE(half_tile, half, half_words, half_dot)
#define HALF_PARTS 1
#define PAIR 2
#else
#define half_tile tile
#define HALF_PARTS (PARTS / 2)
#define PAIR 1
#endif

INLINE void tiles(const int outs, const word *x, const number *w, const number *bias, float *y, int64_t tokens,
                  int64_t in, int64_t out) {
    int64_t t = 0;
    for (; PAIR == 2 && tokens - t > PANEL; t += 2 * PANEL)
        tile(PAIR, PARTS, outs, x + t * in, w, bias, y + t * out, in, out);
    for (; tokens - t > PANEL / 2; t += PANEL) tile(1, PARTS, outs, x + t * in, w, bias, y + t * out, in, out);
    if (t < tokens) half_tile(1, HALF_PARTS, outs, x + t * in, w, bias, y + t * out, in, out);
}

/* Outputs first .. end - 1 of y = x w^T + b, from panels of `in` features in words to panels of `out` floats. */
static void linear(const Linear *l, const word *x, float *y, int64_t out, int64_t tokens, int64_t in, int64_t first,
                   int64_t end) {
#define OUTPUTS(count)                                                                                                 \
    for (; o + count <= end; o += count)                                                                               \
        tiles(count, x, l->weight + o * in, l->bias ? l->bias + o : NULL, y + o * PANEL, tokens, in / STEP, out);
    int64_t o = first;
    OUTPUTS(OUTS)
    OUTPUTS(2)
    OUTPUTS(1)
}

#endif
