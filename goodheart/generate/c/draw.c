/* From hidden states to tokens and their log-probabilities, without truncation, in float32. See sampling.py: `draw`. */

#include "threads.h"
#include "vectors.h"

#define BLOCK 64 /* tokens whose probabilities are added before the running sum in float64 */

typedef struct {
    Linear layer;
    int64_t vocabulary, width;
    float scale, softcap, temperature; /* softcap 0 = off */
} Head;

typedef struct {
    const Head *head;
    const float *hidden;
    const double *uniforms; /* NULL = greedy */
    float *drawn;           /* (2, rows): tokens, log-probabilities */
    int64_t rows;
} Draw;

/* Logits as they are divided by the temperature, in place, padded with -inf to whole vectors. -> the largest */
static float temper(const Head *h, float *logits, int64_t padded) {
    vec none = {0}, most = none - INFINITY;
    float *end = logits + h->vocabulary;
    for (float *p = logits; p < logits + padded; p += LANES) {
        vec x = load(p);
        if (h->scale != 1.0f) x *= h->scale;
        if (h->softcap != 0.0f) x = h->softcap * (2.0f * sigmoid(x * (2.0f / h->softcap)) - 1.0f);
        if (h->temperature != 1.0f) x /= h->temperature;
        store(p, x);
        for (float *q = p < end ? end : p; q < p + LANES; q++) *q = -INFINITY;
        x = load(p);
        most = choose(x > most, x, most);
    }
    float largest = most[0];
    for (int i = 1; i < LANES; i++) largest = most[i] > largest ? most[i] : largest;
    return largest;
}

/* e^(logit - largest) in place, and its sum in float64; sums gets that of each block. */
static double exponentials(float *logits, double *sums, int64_t padded, float largest) {
    double total = 0.0;
    for (int64_t i = 0; i < padded; i += BLOCK) {
        vec part = {0};
        for (int64_t j = i; j < padded && j < i + BLOCK; j += LANES) {
            vec e = vexp(load(logits + j) - largest);
            store(logits + j, e);
            part += e;
        }
        total += sums[i / BLOCK] = sum(part);
    }
    return total;
}

/* The first token at which the running sum exceeds target; never one of probability 0. */
static int64_t invert(const float *p, const double *sums, int64_t padded, double target) {
    double before = 0.0;
    int64_t block = 0, last = (padded - 1) / BLOCK, token = 0;
    while (block < last && before + sums[block] <= target) before += sums[block++];
    while (block && sums[block] == 0.0) before -= sums[--block]; /* rounding, at the very end of the vocabulary */
    int64_t end = (block + 1) * BLOCK < padded ? (block + 1) * BLOCK : padded;
    for (int64_t i = block * BLOCK; i < end; i++) {
        if (p[i] == 0.0f) continue;
        token = i;
        before += p[i];
        if (before > target) break;
    }
    return token;
}

static void *draw(void *argument) {
    Share *s = argument;
    const Draw *d = s->job;
    const Head *h = d->head;
    int64_t V = h->vocabulary, padded = (V + LANES - 1) / LANES * LANES;
    float *logits = malloc((size_t)(s->rows * V + padded) * 4);
    double *sums = malloc((size_t)(padded / BLOCK + 1) * 8);
    s->failed = !logits || !sums;
    if (!s->failed) {
        linear(&h->layer, d->hidden + s->first * h->width, logits, s->rows, h->width, V);
        for (int64_t r = s->rows - 1; r >= 0; r--) { /* backwards: the padding of a row lies on the next, then done */
            float *x = logits + r * V, largest = temper(h, x, padded);
            int64_t token = 0, row = s->first + r;
            if (!d->uniforms)
                while (token < V - 1 && x[token] != largest) token++;
            double total = exponentials(x, sums, padded, largest);
            if (d->uniforms) token = invert(x, sums, padded, d->uniforms[row] * total);
            d->drawn[row] = (float)token;
            d->drawn[d->rows + row] = (float)(log((double)x[token]) - log(total));
        }
    }
    free(logits);
    free(sums);
    return NULL;
}

/* drawn (2, rows): tokens, and their log-probabilities. uniforms (rows), NULL = greedy. -> 0, or 1: memory ran out. */
int goodheart_draw(const Head *head, const float *hidden, const double *uniforms, float *drawn, int64_t rows,
                   int64_t threads) {
    Draw job = {head, hidden, uniforms, drawn, rows};
    int64_t most = rows / MIN_ROWS_PER_THREAD;
    return share_out(draw, &job, rows, threads < most ? threads : most);
}
