/* Our decoder over a cache of keys and values, panel by panel. Sizes as in the Python files: D width, A = H + 2G heads
   of size d in the fused projection, F MLP width. */

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

/* act(gate) * up */
INLINE vec gated(const Model *m, vec gate, vec up) {
    if (!m->gelu) return rounded(gate * rounded(sigmoid(gate))) * up;
    /* gelu's tanh form is x sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)) */
    return rounded(gate * sigmoid(1.595769122f * (gate + 0.044715f * gate * gate * gate))) * up;
}

/* Features first .. end - 1 of the MLP, in words. */
static void activate(const Model *m, const float *gate_up, word *y, int64_t tokens, int64_t first, int64_t end) {
    int64_t F = m->mlp_width, up = F * PANEL, second = (STEP - 1) * PANEL;
    for (int64_t p = 0; p < panels_of(tokens); p++)
        for (int64_t k = first; k < end; k += STEP)
            for (int i = 0; i < PANEL; i += LANES) {
                const float *g = gate_up + (p * 2 * F + k) * PANEL + i;
                vec a = gated(m, load(g), load(g + up)), b = a;
                if (STEP == 2) b = gated(m, load(g + second), load(g + second + up));
                *(loose_words *)(y + (p * F + k) / STEP * PANEL + i) = together(a, b);
            }
}

/* A head of a token out of panels of A * d features, normed and turned, in numbers. head: room for whole vectors. */
static void take(const Model *m, const float *from, const float *weight, const float *turn, float *head) {
    int64_t d = m->head_dim;
    for (int64_t i = 0; i < d; i++) head[i] = from[i * PANEL];
    if (weight) {
        vec squares = {0};
        for (int64_t i = 0; i < d; i += LANES) squares += load_some(head + i, d - i) * load_some(head + i, d - i);
        float scale = 1.0f / sqrtf(sum(squares) / (float)d + m->eps);
        for (int64_t i = 0; i < d; i++) head[i] = value(stored(head[i] * scale * weight[i]));
    }
    if (turn) /* x cos + swap(x) sin, where swap exchanges the halves of a head and sin carries the sign */
        for (int64_t i = 0, half = d / 2; i < half; i += LANES) {
            vec a = load_some(head + i, half - i), b = load_some(head + half + i, half - i);
            vec low = load_some(turn + i, half - i), high = load_some(turn + half + i, half - i);
            low = rounded(a * low) + b * load_some(turn + d + i, half - i);
            high = rounded(b * high) + a * load_some(turn + d + half + i, half - i);
            store_some(head + i, low, half - i);
            store_some(head + half + i, high, half - i);
        }
    for (int64_t i = 0; i < d; i += LANES) store_numbers((number *)head + i, load_some(head + i, d - i)); /* in place */
}

/* Words of a head to where they lie PANEL apart. */
static void spread(const float *head, word *to, int64_t d) {
    const word *from = (const word *)head;
    for (int64_t k = 0; k < d / STEP; k++) to[k * PANEL] = from[k];
}

/* Stores the new keys and values of this member's part of the chunk. */
static void remember(const Model *m, const Layer *l, Chunk *c, const Member *me) {
    int64_t d = m->head_dim, H = m->heads, G = m->kv_heads, A = (H + 2 * G) * d;
    PART(me, c->count * G, 1, first, end);
    for (int64_t u = first; u < end; u++) {
        int64_t i = u / G, g = u % G, at = c->at[i], block = (c->slot[i] * G + g) * m->length * d;
        const float *token = column(c->big, i, A);
        take(m, token + (H + g) * d * PANEL, l->k_norm, l->turns ? l->turns + at * 2 * d : NULL, c->head);
        spread(c->head, (word *)entry((word *)(l->keys + block), at, 0, d), d);
        take(m, token + (H + G + g) * d * PANEL, NULL, NULL, c->head);
        number *to = l->values + block + at / STEP * STEP * d + at % STEP;
        for (int64_t k = 0; k < d; k++) to[k * STEP] = ((number *)c->head)[k];
    }
}

/* scores[position] = q k for `blocks` blocks of PANEL positions, n words each. Asks for the values of them, which are
   needed next. */
INLINE void score(const int blocks, const word *q, const word *keys, const word *values, float *scores, int64_t n) {
    vec total[4][PARTS];
    for (int b = 0; b < blocks; b++)
        for (int i = 0; i < PARTS; i++) total[b][i] = (vec){0};
    for (int64_t k = 0; k < n; k++)
        for (int b = 0; b < blocks; b++) {
            __builtin_prefetch(values + (b * n + k) * PANEL);
            for (int i = 0; i < PARTS; i++)
                total[b][i] = dot(total[b][i], load_words(keys + (b * n + k) * PANEL + i * LANES), q[k] - (words){0});
        }
    for (int b = 0; b < blocks; b++)
        for (int i = 0; i < PARTS; i++) store(scores + b * PANEL + i * LANES, total[b][i]);
}

/* `vectors` vectors of sum_j p[j] v[j] over n positions, in four sums that are then added: one would wait for itself.
   Asks for `next`, where the keys of the next head begin. */
INLINE void weigh(const int vectors, const word *p, const word *values, float *out, int64_t n, int64_t d, float share,
                  const word *next) {
    vec total[4][2] = {0};
    int64_t j = 0;
    for (; j + 4 <= n / STEP; j += 4)
        for (int s = 0; s < 4; s++)
            for (int i = 0; i < vectors; i++) {
                __builtin_prefetch(next + (j + s) * d + i * LANES);
                total[s][i] = dot(total[s][i], load_words(values + (j + s) * d + i * LANES), p[j + s] - (words){0});
            }
    for (; j < n / STEP; j++)
        for (int i = 0; i < vectors; i++)
            total[0][i] = dot(total[0][i], load_words(values + j * d + i * LANES), p[j] - (words){0});
#if STEP == 2 /* the position after the last one is not to be seen, whatever lies there */
    for (int i = 0; n % 2 && i < vectors; i++)
        total[0][i] = dot(total[0][i], load_words(values + j * d + i * LANES) & ~HIGH, (p[j] & ~HIGH) - (words){0});
#endif
    for (int i = 0; i < vectors; i++)
        store(out + i * LANES, ((total[0][i] + total[1][i]) + (total[2][i] + total[3][i])) * share);
}

/* One head of one token over positions first .. end - 1 of its row: softmax(scale q k^T) v. scores has room for them,
   rounded to whole blocks on both sides. What lies in a block before or after is computed and thrown away,
   whatever it is: another thread may be storing later keys of the same prompt there. */
static void attend(const Model *m, const word *q, const word *keys, const word *values, float *scores, float *out,
                   int64_t first, int64_t end, const word *next) {
    int64_t d = m->head_dim, w = d / STEP, begin = first / PANEL * PANEL, at = 0;
    int64_t padded = panels_of(end) * PANEL - begin;
    const word *k = keys + begin * w, *v = values + begin * w;
    for (; at + 4 * PANEL <= padded; at += 4 * PANEL) score(4, q, k + at * w, v + at * w, scores + at, w);
    for (; at < padded; at += PANEL) score(1, q, k + at * w, v + at * w, scores + at, w);
    for (int64_t j = 0; j < padded; j += LANES) {
        vec s = load(scores + j) * m->attention_scale;
        if (m->softcap != 0.0f) s = soften(s, m->softcap);
        store(scores + j, s);
    }
    for (int64_t j = 0; j < first - begin; j++) scores[j] = -INFINITY;
    for (int64_t j = end - begin; j < padded; j++) scores[j] = -INFINITY;
    vec total = {0}, high = total - INFINITY;
    for (int64_t j = 0; j < padded; j += LANES) high = choose(load(scores + j) > high, load(scores + j), high);
    float top = largest(high);
    for (int64_t j = 0; j < padded; j += LANES) {
        vec e = vexp(load(scores + j) - top);
        store_numbers((number *)scores + j, e); /* behind what is still to be read */
        total += e;
    }
    float share = 1.0f / sum(total);
    int64_t i = 0, skipped = (first - begin) / STEP, n = end - begin - skipped * STEP;
    const word *p = (const word *)scores + skipped;
    v += skipped * d;
    for (; i + 2 * LANES <= d; i += 2 * LANES) weigh(2, p, v + i, out + i, n, d, share, next + i);
    for (; i + LANES <= d; i += LANES) weigh(1, p, v + i, out + i, n, d, share, next + i);
    for (; i < d; i++) {
        float x = 0.0f;
        for (int64_t j = 0; j < n; j++)
            x += value(((const number *)p)[j]) * value(((const number *)(v + j / STEP * d + i))[j % STEP]);
        out[i] = x * share;
    }
}

/* Attention of this member's part of the chunk. In the last layer only the last tokens of rows go on, and move up. */
static void look_back(const Model *m, const Layer *l, Chunk *c, const Member *me, int only_last) {
    int64_t d = m->head_dim, H = m->heads, G = m->kv_heads, A = (H + 2 * G) * d, kept = 0;
    PART(me, c->count * H, 1, begin, end);
    for (int64_t i = 0; i < c->count; i++) {
        if (only_last && c->row[i] < 0) continue;
        int64_t at = c->at[i], first = l->window && at >= l->window ? at + 1 - l->window : 0;
        for (int64_t h = most(begin - i * H, 0); h < H && i * H + h < end; h++) {
            int64_t block = (c->slot[i] * G + h / (H / G)) * m->length * d;
            float *out = c->head + d + PANEL;
            take(m, column(c->big, i, A) + h * d * PANEL, l->q_norm, l->turns ? l->turns + at * 2 * d : NULL, c->head);
            int64_t next = h + 1 < H ? (c->slot[i] * G + (h + 1) / (H / G)) : i + 1 < c->count ? c->slot[i + 1] * G : 0;
            attend(m, (word *)c->head, (word *)(l->keys + block), (word *)(l->values + block), c->scores, out, first,
                   at + 1, (word *)(l->keys + next * m->length * d));
            for (int64_t k = 0; k < d; k += LANES) store_numbers((number *)out + k, load_some(out + k, d - k));
            spread(out, (word *)entry(c->mixed, kept, h * d, H * d), d);
        }
        if (only_last && me->index == 0 && kept < i) { /* nobody reads x here */
            float *to = column(c->x, kept, m->width), *from = column(c->x, i, m->width);
            for (int64_t k = 0; k < m->width; k++) to[k * PANEL] = from[k * PANEL];
        }
        c->slot[kept] = c->slot[i], c->at[kept] = at, c->row[kept++] = c->row[i];
    }
    c->count = kept;
}

/* One layer, all members of the team together. before, stored: how many layers have their keys and values in the cache,
   of the chunks before this one in its first row (NULL = none), and of this one with those. */
static void run_layer(const Model *m, const Layer *l, Chunk *c, Member *me, int only_last, const atomic_llong *before,
                      atomic_llong *stored) {
    int64_t D = m->width, heads = m->heads * m->head_dim, A = heads + 2 * m->kv_heads * m->head_dim, F = m->mlp_width;
    int64_t number = l - m->layer;
    PART(me, A, OUTS, a_first, a_end);
    PART(me, D, OUTS, d_first, d_end);
    PART(me, F, OUTS, f_first, f_end);
    norm(c->x, l->before_attention, c->h, c->count, D, m->eps);
    linear(&l->qkv, c->h, c->big, A, c->count, D, a_first, a_end);
    meet(me);
    remember(m, l, c, me);
    meet(me);
    if (before)
        for (int waited = 0; atomic_load_explicit(before, memory_order_acquire) <= number;) breathe(&waited);
    if (stored && me->index == 0) atomic_store_explicit(stored, number + 1, memory_order_release);
    look_back(m, l, c, me, only_last);
    meet(me);
    linear(&l->out, c->mixed, c->big, D, c->count, heads, d_first, d_end);
    if (l->after_attention) meet(me);
    add(c->x, c->big, l->after_attention, c->count, D, m->eps, d_first, d_end);
    meet(me);
    norm(c->x, l->before_mlp, c->h, c->count, D, m->eps);
    linear(&l->gate_up, c->h, c->big, 2 * F, c->count, D, f_first, f_end);
    linear(&l->gate_up, c->h, c->big, 2 * F, c->count, D, F + f_first, F + f_end);
    activate(m, c->big, c->mixed, c->count, f_first, f_end);
    meet(me);
    linear(&l->down, c->mixed, c->big, D, c->count, F, d_first, d_end);
    if (l->after_mlp) meet(me);
    add(c->x, c->big, l->after_mlp, c->count, D, m->eps, d_first, d_end);
    meet(me);
}

/* A token's embedding into column i of the chunk; members do it in turn. */
static void embed(const Model *m, Chunk *c, int64_t i, int64_t token, int64_t slot, int64_t at, int64_t row,
                  const Member *me) {
    c->slot[i] = slot, c->at[i] = at, c->row[i] = row;
    if (i % me->team->size != me->index) return;
    const number *embedding = m->embedding + token * m->width;
    float *x = column(c->x, i, m->width);
    for (int64_t k = 0; k < m->width; k++) x[k * PANEL] = value(stored(value(embedding[k]) * m->embedding_scale));
}

#endif
