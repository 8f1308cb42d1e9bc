/* From hidden states to tokens and their log-probabilities, without truncation, in float32. See sampling.py: `draw`. */

#ifndef GOODHEART_DRAW_H
#define GOODHEART_DRAW_H

#include "matmul.h"

#define BLOCK 64 /* tokens whose probabilities are added before the running sum in float64 */

typedef struct {
    Linear layer;
    int64_t vocabulary, width;
    float scale, softcap, temperature; /* softcap 0 = off */
} Head;

static int64_t blocks_of(const Head *h) { return (h->vocabulary + BLOCK - 1) / BLOCK; }

/* Logits of a panel as they are divided by the temperature, in place; the largest of each token, and which it is. */
static void temper(const Head *h, float *logits, float *top, int32_t *best) {
    vec high[PARTS];
    ivec which[PARTS];
    for (int i = 0; i < PARTS; i++) high[i] = (vec){0} - INFINITY, which[i] = (ivec){0};
    for (int32_t v = 0; v < h->vocabulary; v++)
        for (int i = 0; i < PARTS; i++) {
            float *p = logits + (int64_t)v * PANEL + i * LANES;
            vec x = load(p);
            if (h->scale != 1.0f) x *= h->scale;
            if (h->softcap != 0.0f) x = soften(x, h->softcap);
            if (h->temperature != 1.0f) x /= h->temperature;
            store(p, x);
            ivec more = x > high[i];
            high[i] = choose(more, x, high[i]);
            which[i] = (more & ((ivec){0} + v)) | (~more & which[i]);
        }
    memcpy(top, high, sizeof high);
    memcpy(best, which, sizeof which);
}

/* e^(logit - top) in place; its sums over blocks of the vocabulary, (blocks, PANEL), and over all of it in float64. */
static void exponentials(const Head *h, float *logits, const float *top, float *sums, double *total) {
    memset(total, 0, PANEL * sizeof *total);
    for (int64_t first = 0; first < h->vocabulary; first += BLOCK, sums += PANEL) {
        int64_t end = first + BLOCK < h->vocabulary ? first + BLOCK : h->vocabulary;
        vec block[PARTS] = {0};
        for (float *p = logits + first * PANEL; p < logits + end * PANEL; p += PANEL)
            for (int i = 0; i < PARTS; i++) {
                vec e = vexp(load(p + i * LANES) - load(top + i * LANES));
                store(p + i * LANES, e);
                block[i] += e;
            }
        memcpy(sums, block, sizeof block);
        for (int i = 0; i < PANEL; i++) total[i] += sums[i];
    }
}

/* The first token at which the running sum exceeds target; never one of probability 0. p, sums: a token's column. */
static int64_t invert(const Head *h, const float *p, const float *sums, double target) {
    double before = 0.0;
    int64_t block = 0, last = blocks_of(h) - 1, token = 0;
    while (block < last && before + sums[block * PANEL] <= target) before += sums[block++ * PANEL];
    while (block && sums[block * PANEL] == 0.0f) before -= sums[--block * PANEL]; /* rounding, at the very end */
    int64_t end = (block + 1) * BLOCK < h->vocabulary ? (block + 1) * BLOCK : h->vocabulary;
    for (int64_t v = block * BLOCK; v < end; v++) {
        if (p[v * PANEL] == 0.0f) continue;
        token = v;
        before += p[v * PANEL];
        if (before > target) break;
    }
    return token;
}

/* One token for each of the first `tokens` columns of a panel of logits, which are overwritten. uniforms: NULL =
   greedy. sums: room for a panel of blocks. */
static void draw(const Head *h, float *logits, int64_t tokens, const double *uniforms, float *sums, int64_t *drawn,
                 float *logps) {
    float top[PANEL];
    int32_t best[PANEL];
    double total[PANEL];
    temper(h, logits, top, best);
    exponentials(h, logits, top, sums, total);
    for (int64_t i = 0; i < tokens; i++) {
        drawn[i] = uniforms ? invert(h, logits + i, sums + i, uniforms[i] * total[i]) : best[i];
        logps[i] = (float)(log((double)logits[drawn[i] * PANEL + i]) - log(total[i]));
    }
}

#endif
