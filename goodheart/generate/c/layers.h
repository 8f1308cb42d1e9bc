/* A layer, and what comes before the first. Letters as in model.h. */

#ifndef GOODHEART_LAYERS_H
#define GOODHEART_LAYERS_H

#include "attend.h"

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
