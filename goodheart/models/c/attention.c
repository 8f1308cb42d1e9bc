/* Causal attention over rows of tokens that lie one after the other, without padding, and with what several rows begin
   with stored once. Forward and backward, with rotary positions.

   Rows are sorted, so that each has all it shares with any earlier one at the beginning in common with the row before
   it. Only the rest of a row has tokens of its own. Walking through the rows, a panel holds the keys and values of the
   present one: its own are written behind what it shares, over those of the row before. The position of a token is its
   place in the panel. Rows that share nothing with the one before begin a family; families and heads of keys are
   pieces of work that touch no common memory.

   Letters: N tokens, H query heads, G heads of keys and of values, d numbers of a head. */

#include "numbers.h"
#include "parallel.h"
#include "product.h"

#define BLOCK 16 /* queries at once */

typedef struct {
    int64_t first, shared, own; /* first own token; tokens shared with the row before; own tokens */
} Row;

typedef struct {
    const Row *rows;
    const int64_t *families; /* first row of each, and the number of all rows at the end */
    int64_t number, longest; /* families; tokens of the longest row of all, shared ones included */
    int64_t heads, kv_heads, size, window; /* H, G, d; tokens that a token sees, 0 = all */
    float scale;
    const float *cos, *sin; /* (positions, d/2), NULL: nothing is turned */
    const number *qkv;      /* (N, H + 2 G, d): queries, keys, values */
    number *out;            /* (N, H, d) */
    float *log_sum;         /* (N, H) */
    const number *grad_out;
    number *grad_qkv;
} Attention;

typedef struct {
    int64_t width, keys; /* d and the family's longest row, to whole vectors */
    float *kt, *vt;      /* (d, keys): keys and values of the panel, column by column */
    float *k, *v;        /* (keys, width): row by row */
    float *dk, *dv;      /* gradients */
    float *q, *o, *dout, *dq; /* (BLOCK, width) */
    float *p, *dp;            /* (BLOCK, keys) */
    int64_t *owner;           /* (keys): the token whose key lies there */
    /* vt, dk, dv, dout, dp and owner: for backward alone */
} Panel;

/* -> floats of the room that it takes. Nothing is cleared: what is written last is what is read, see `fill`. */
static int64_t lay_out(const Attention *a, Panel *x, int64_t longest, int backward, float *room) {
    int64_t width = whole(a->size), keys = whole(longest), at = 0;
    x->width = width, x->keys = keys;
    struct {
        float **part;
        int64_t size;
    } parts[] = {
        {&x->kt, a->size * keys}, {&x->k, keys * width},  {&x->v, keys * width},  {&x->q, BLOCK * width},
        {&x->o, BLOCK * width},   {&x->dq, BLOCK * width}, {&x->p, BLOCK * keys},  {&x->vt, a->size * keys},
        {&x->dk, keys * width},   {&x->dv, keys * width},  {&x->dout, BLOCK * width}, {&x->dp, BLOCK * keys},
    };
    for (int i = 0; i < (backward ? 12 : 7); i++) *parts[i].part = room + at, at += whole(parts[i].size);
    if (!backward) return at;
    x->owner = (int64_t *)(room + at);
    return at + keys * 2;
}

static int64_t longest_of(const Attention *a, int64_t family) {
    int64_t most = 0;
    for (int64_t r = a->families[family]; r < a->families[family + 1]; r++) {
        int64_t length = a->rows[r].shared + a->rows[r].own;
        most = length > most ? length : most;
    }
    return most;
}

static void clear(float *p, int64_t n) { memset(p, 0, (size_t)n * 4); }

static void read(const number *restrict from, int64_t n, float *restrict to) {
    for (int64_t i = 0; i < n; i++) to[i] = value(from[i]);
}

static void write(const float *restrict from, int64_t n, number *restrict to) {
    for (int64_t i = 0; i < n; i++) to[i] = stored(from[i]);
}

/* `to` = the head turned by the angle of its position, times `scale`: as it is read, and the other way as its gradient
   is written. */
#define TURN(name, given, made, read, written, sign)                                                                   \
    static void name(const Attention *a, const given *restrict from, int64_t position, float scale,                    \
                     made *restrict to) {                                                                              \
        int64_t half = a->size / 2;                                                                                    \
        if (!a->cos) {                                                                                                 \
            for (int64_t i = 0; i < a->size; i++) to[i] = written(scale * read(from[i]));                              \
            return;                                                                                                    \
        }                                                                                                              \
        const float *restrict cos = a->cos + position * half, *restrict sin = a->sin + position * half;                \
        for (int64_t i = 0; i < half; i++) {                                                                           \
            float x = read(from[i]), y = read(from[half + i]), s = sign sin[i];                                        \
            to[i] = written(scale * (x * cos[i] - y * s));                                                             \
            to[half + i] = written(scale * (y * cos[i] + x * s));                                                      \
        }                                                                                                              \
    }
TURN(turn, number, float, value, , +)
TURN(turn_back, float, number, , stored, -)

static int64_t stride(const Attention *a) { return (a->heads + 2 * a->kv_heads) * a->size; }

/* Puts a row's own keys and values into the panel. Vectors reach beyond what there is: beyond d, where zeros are, and
   beyond the last key, where zeros are too; products of an odd number of rows also take the row behind. */
static void fill(const Attention *a, Panel *x, const Row *row, int64_t g, int backward) {
    for (int64_t i = 0; i < row->own; i++) {
        int64_t at = row->shared + i, token = row->first + i;
        const number *from = a->qkv + token * stride(a) + (a->heads + g) * a->size;
        float *key = x->k + at * x->width, *value = x->v + at * x->width;
        turn(a, from, at, 1.0f, key);
        read(from + a->kv_heads * a->size, a->size, value);
        clear(key + a->size, x->width - a->size);
        clear(value + a->size, x->width - a->size);
        for (int64_t c = 0; c < a->size; c++) x->kt[c * x->keys + at] = key[c];
        if (!backward) continue;
        for (int64_t c = 0; c < a->size; c++) x->vt[c * x->keys + at] = value[c];
        x->owner[at] = token;
    }
    int64_t end = row->shared + row->own, beyond = whole(end) - end;
    for (int64_t c = 0; c < a->size; c++) clear(x->kt + c * x->keys + end, beyond);
    if (!backward) return;
    for (int64_t c = 0; c < a->size; c++) clear(x->vt + c * x->keys + end, beyond);
    int64_t cleared = (row->own + (beyond > 0)) * x->width;
    clear(x->dk + row->shared * x->width, cleared);
    clear(x->dv + row->shared * x->width, cleared);
}

/* Some queries of a row and the keys they may see. */
typedef struct {
    int64_t first, number, position; /* first token, tokens, position of the first */
    int64_t from, to;                /* keys: a whole number of vectors before the first that is seen, behind the last */
} Queries;

/* The columns beyond d of rows of the queries, and the row behind an odd number of them. */
static void clear_beyond(const Attention *a, const Panel *x, const Queries *q, float *rows) {
    for (int64_t i = 0; i < q->number; i++) clear(rows + i * x->width + a->size, x->width - a->size);
    if (q->number % 2) clear(rows + q->number * x->width, x->width);
}

static Queries queries(const Attention *a, const Row *row, int64_t begin) {
    Queries q = {row->first + begin, row->own - begin, row->shared + begin, 0, 0};
    if (q.number > BLOCK) q.number = BLOCK;
    if (a->window && q.position >= a->window) q.from = (q.position - a->window + 1) / LANES * LANES;
    q.to = q.position + q.number;
    return q;
}

/* Scores of the queries in the panel's p, times scale; the queries, turned and scaled, in q. */
static void score(const Attention *a, Panel *x, const Queries *q, int64_t head) {
    for (int64_t i = 0; i < q->number; i++)
        turn(a, a->qkv + (q->first + i) * stride(a) + head * a->size, q->position + i, a->scale, x->q + i * x->width);
    clear_beyond(a, x, q, x->q);
    product(q->number, whole(q->to - q->from), a->size, x->q, x->width, 1, x->kt + q->from, x->keys, x->p + q->from,
            x->keys, 0);
}

INLINE ivec places(int64_t first) { return (ivec){NUMBERS} + (int32_t)first; }

static void forward(const void *job, int64_t piece, float *room) {
    const Attention *a = job;
    int64_t family = piece / a->kv_heads, g = piece % a->kv_heads, group = a->heads / a->kv_heads;
    Panel x;
    lay_out(a, &x, longest_of(a, family), 0, room);
    for (int64_t r = a->families[family]; r < a->families[family + 1]; r++) {
        const Row *row = &a->rows[r];
        fill(a, &x, row, g, 0);
        for (int64_t head = g * group; head < (g + 1) * group; head++)
            for (int64_t begin = 0; begin < row->own; begin += BLOCK) {
                Queries q = queries(a, row, begin);
                score(a, &x, &q, head);
                for (int64_t i = 0; i < q.number; i++) {
                    float *p = x.p + i * x.keys, most = -INFINITY;
                    int64_t last = q.position + i, first = a->window && last >= a->window ? last - a->window + 1 : 0;
                    vec top = (vec){0} - INFINITY, total = {0};
                    for (int64_t k = q.from; k <= last; k += LANES) {
                        ivec at = places(k);
                        vec s = choose((at >= (int32_t)first) & (at <= (int32_t)last), load(p + k), (vec){0} - INFINITY);
                        top = choose(s > top, s, top);
                        store(p + k, s);
                    }
                    most = largest(top);
                    int64_t k = q.from;
                    for (; k <= last; k += LANES) {
                        vec e = vexp(load(p + k) - most);
                        total += e;
                        store(p + k, e);
                    }
                    for (; k < q.to; k += LANES) store(p + k, (vec){0});
                    float all = sum(total);
                    a->log_sum[(q.first + i) * a->heads + head] = most + logf(all);
                    x.dq[i] = 1.0f / all;
                }
                product(q.number, x.width, q.to - q.from, x.p + q.from, x.keys, 1, x.v + q.from * x.width, x.width, x.o,
                        x.width, 0);
                for (int64_t i = 0; i < q.number; i++) {
                    number *to = a->out + ((q.first + i) * a->heads + head) * a->size;
                    for (int64_t c = 0; c < a->size; c++) to[c] = stored(x.o[i * x.width + c] * x.dq[i]);
                }
            }
    }
}

/* Gradients of keys and values from a place of the panel on are complete: they go to their tokens. */
static void flush(const Attention *a, Panel *x, int64_t g, int64_t from, int64_t to) {
    for (int64_t at = from; at < to; at++) {
        number *key = a->grad_qkv + x->owner[at] * stride(a) + (a->heads + g) * a->size;
        turn_back(a, x->dk + at * x->width, at, 1.0f, key);
        write(x->dv + at * x->width, a->size, key + a->kv_heads * a->size);
    }
}

/* With p the weights: dv = p^T dout;  ds = p (dout v^T - sum(dout out));  dq = ds k;  dk = ds^T q. */
static void differentiate(const Attention *a, Panel *x, const Queries *q, int64_t head) {
    int64_t wide = q->to - q->from;
    score(a, x, q, head);
    for (int64_t i = 0; i < q->number; i++)
        read(a->grad_out + ((q->first + i) * a->heads + head) * a->size, a->size, x->dout + i * x->width);
    clear_beyond(a, x, q, x->dout);
    product(q->number, whole(wide), a->size, x->dout, x->width, 1, x->vt + q->from, x->keys, x->dp + q->from, x->keys, 0);
    for (int64_t i = 0; i < q->number; i++) {
        float *p = x->p + i * x->keys, *dp = x->dp + i * x->keys, along = 0;
        const number *out = a->out + ((q->first + i) * a->heads + head) * a->size;
        for (int64_t c = 0; c < a->size; c++) along += value(out[c]) * x->dout[i * x->width + c];
        float log_sum = a->log_sum[(q->first + i) * a->heads + head];
        int64_t last = q->position + i, first = a->window && last >= a->window ? last - a->window + 1 : 0;
        int64_t k = q->from;
        for (; k <= last; k += LANES) {
            ivec at = places(k);
            vec e = choose((at >= (int32_t)first) & (at <= (int32_t)last), vexp(load(p + k) - log_sum), (vec){0});
            store(p + k, e);
            store(dp + k, choose(e > 0.0f, e * (load(dp + k) - along), (vec){0}));
        }
        for (; k < q->to; k += LANES) store(p + k, (vec){0}), store(dp + k, (vec){0});
    }
    product(q->number, x->width, wide, x->dp + q->from, x->keys, 1, x->k + q->from * x->width, x->width, x->dq,
            x->width, 0);
    for (int64_t i = 0; i < q->number; i++)
        turn_back(a, x->dq + i * x->width, q->position + i, a->scale,
                  a->grad_qkv + (q->first + i) * stride(a) + head * a->size);
    product(wide, x->width, q->number, x->dp + q->from, 1, x->keys, x->q, x->width, x->dk + q->from * x->width,
            x->width, 1);
    product(wide, x->width, q->number, x->p + q->from, 1, x->keys, x->dout, x->width, x->dv + q->from * x->width,
            x->width, 1);
}

static void backward(const void *job, int64_t piece, float *room) {
    const Attention *a = job;
    int64_t family = piece / a->kv_heads, g = piece % a->kv_heads, group = a->heads / a->kv_heads, filled = 0;
    Panel x;
    lay_out(a, &x, longest_of(a, family), 1, room);
    for (int64_t r = a->families[family]; r < a->families[family + 1]; r++) {
        const Row *row = &a->rows[r];
        flush(a, &x, g, row->shared, filled);
        fill(a, &x, row, g, 1);
        filled = row->shared + row->own;
        for (int64_t head = g * group; head < (g + 1) * group; head++)
            for (int64_t begin = 0; begin < row->own; begin += BLOCK) {
                Queries q = queries(a, row, begin);
                differentiate(a, &x, &q, head);
            }
    }
    flush(a, &x, g, 0, filled);
}

int goodheart_attend(const Attention *a, const Crew *crew) {
    Panel x;
    return share(crew, forward, a, a->number * a->kv_heads, lay_out(a, &x, a->longest, 0, NULL));
}

int goodheart_attend_backward(const Attention *a, const Crew *crew) {
    Panel x;
    return share(crew, backward, a, a->number * a->kv_heads, lay_out(a, &x, a->longest, 1, NULL));
}
