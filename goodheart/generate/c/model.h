/* Our decoder over a cache of keys and values, panel by panel: what it is made of, the room it needs, and norms. Sizes as
   in the Python files: D width, A = H + 2G heads of size d in the fused projection, F MLP width. */

#ifndef GOODHEART_MODEL_H
#define GOODHEART_MODEL_H

#include "matmul.h"
#include "threads.h"

typedef struct {
    Linear qkv, out, gate_up, down;
    const float *before_attention, *after_attention, *before_mlp, *after_mlp; /* norm weights (D), NULL = no norm */
    const float *q_norm, *k_norm;                                             /* (d), NULL = no norm */
    const float *turns;                                                       /* (length, 2, d): cos, +-sin; NULL */
    number *keys;   /* (slots, G, length / PANEL, words of d, PANEL): scores of PANEL positions come side by side */
    number *values; /* (slots, G, words of length, d): numbers of a word are of positions that follow each other */
    int64_t window; /* tokens seen, 0 = all */
} Layer;

typedef struct {
    int64_t layers, width, heads, kv_heads, head_dim, mlp_width, length, gelu;
    float eps, embedding_scale, attention_scale, softcap; /* softcap 0 = off */
    const number *embedding;
    const float *final_norm;
    const Layer *layer;
} Model;

/* Tokens go through the layers in chunks, so that what is computed for them stays in the second cache. */
#define CHUNK 64

typedef struct {
    int64_t count, slot[CHUNK], at[CHUNK], row[CHUNK]; /* row: whose last token it is, or -1 */
    float *x, *big;       /* of the team: the stream, intermediate results */
    word *mixed;          /* of the team: what is multiplied next */
    word *h;              /* of the member: normalised x */
    float *scores, *head; /* of the member: room for the scores of a token; for a head and its result */
} Chunk;

static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

/* Room in floats that a team and each of its members needs for a chunk. */
static int64_t shared_room(const Model *m) {
    int64_t A = (m->heads + 2 * m->kv_heads) * m->head_dim;
    return CHUNK * (m->width + most(most(A, m->width), 2 * m->mlp_width) + most(m->heads * m->head_dim, m->mlp_width));
}

static int64_t own_room(const Model *m) { return CHUNK * m->width + m->length + 2 * PANEL + 2 * (m->head_dim + PANEL); }

static void lay_out(Chunk *c, const Model *m, float *shared, float *own) {
    int64_t A = (m->heads + 2 * m->kv_heads) * m->head_dim;
    c->x = shared, c->big = c->x + CHUNK * m->width;
    c->mixed = (word *)(c->big + CHUNK * most(most(A, m->width), 2 * m->mlp_width));
    c->h = (word *)own, c->scores = own + CHUNK * m->width, c->head = c->scores + m->length + 2 * PANEL;
}

/* 1 / sqrt(mean x^2 + eps) of the tokens of a panel. */
INLINE void scales(const float *x, int64_t n, float eps, float *scale) {
    vec squares[PARTS] = {0};
    for (int64_t k = 0; k < n; k++)
        for (int i = 0; i < PARTS; i++) squares[i] += load(x + k * PANEL + i * LANES) * load(x + k * PANEL + i * LANES);
    memcpy(scale, squares, sizeof squares);
    for (int i = 0; i < PANEL; i++) scale[i] = 1.0f / sqrtf(scale[i] / (float)n + eps);
}

/* y = x / sqrt(mean x^2 + eps) * weight, in words. */
static void norm(const float *x, const float *weight, word *y, int64_t tokens, int64_t n, float eps) {
    for (int64_t p = 0; p < panels_of(tokens); p++, x += n * PANEL, y += n / STEP * PANEL) {
        float scale[PANEL];
        scales(x, n, eps, scale);
        for (int64_t k = 0; k < n; k += STEP)
            for (int i = 0; i < PANEL; i += LANES) {
                vec first = load(x + k * PANEL + i) * load(scale + i) * weight[k];
                vec last = load(x + (k + STEP - 1) * PANEL + i) * load(scale + i) * weight[k + STEP - 1];
                *(loose_words *)(y + k / STEP * PANEL + i) = together(first, last);
            }
    }
}

/* Features first .. end - 1 of x += norm(y), without norm where there is no weight. */
static void add(float *x, const float *y, const float *weight, int64_t tokens, int64_t n, float eps, int64_t first,
                int64_t end) {
    for (int64_t p = 0; p < panels_of(tokens); p++, x += n * PANEL, y += n * PANEL) {
        float scale[PANEL];
        if (weight) scales(y, n, eps, scale);
        for (int64_t k = first; k < end; k++)
            for (int i = 0; i < PANEL; i += LANES) {
                vec v = load(y + k * PANEL + i);
                if (weight) v = rounded(v * load(scale + i) * weight[k]);
                store(x + k * PANEL + i, rounded(load(x + k * PANEL + i) + v));
            }
    }
}

#endif
