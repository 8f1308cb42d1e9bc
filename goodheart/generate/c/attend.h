/* Attention over the cache of keys and values. Letters as in model.h. */

#ifndef GOODHEART_ATTEND_H
#define GOODHEART_ATTEND_H

#include "model.h"

/* A head of a token out of panels of A * d features, normed and turned, in numbers. head: room for whole vectors. */
static void take(const Model *m, const float *from, const float *weight, const float *turn, float *head) {
    int64_t d = m->head_dim;
    for (int64_t i = 0; i < d; i++) head[i] = from[i * PANEL];
    if (weight) {
        vec squares = {0};
        for (int64_t i = 0; i < d; i += LANES) squares += load_some(head + i, d - i) * load_some(head + i, d - i);
        float scale = 1.0f / sqrtf(sum_in_order(squares) / (float)d + m->eps);
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
    float share = 1.0f / sum_in_order(total);
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

#endif
