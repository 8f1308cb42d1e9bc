/* Our decoder in float32 over a cache of keys and values: prompts, or one new token per row. See native.py.

   Threads own rows, not parts of a matrix: nobody waits for anybody until all is done. Weights are read in the layout
   that training uses. Every dot product adds in one fixed order, so the result of a row does not depend on which other
   rows there are.

   Sizes as in the Python files: D width, A = H + 2G heads of size d in the fused projection, F MLP width. */

#include "threads.h"
#include "vectors.h"

typedef struct {
    Linear qkv, out, gate_up, down;
    const float *before_attention, *after_attention, *before_mlp, *after_mlp; /* norm weights (D), NULL = no norm */
    const float *q_norm, *k_norm;                                             /* (d), NULL = no norm */
    const float *turns;                                                       /* (length, 2, d): cos, +-sin; NULL */
    float *keys, *values;                                                     /* (slots, G, length, d) */
    int64_t window;                                                           /* tokens seen, 0 = all */
} Layer;

typedef struct {
    int64_t layers, width, heads, kv_heads, head_dim, mlp_width, length, gelu;
    float eps, embedding_scale, attention_scale, softcap; /* softcap 0 = off */
    const float *embedding, *final_norm;
    const Layer *layer;
} Model;

typedef struct {
    const Model *model;
    const int64_t *tokens, *starts; /* tokens of row r: starts[r] to starts[r + 1] */
    const int64_t *slots, *bases;   /* of row r: its place in the cache, and the position of its first token here */
    float *hidden;                  /* (rows, D) of the last token of each row */
} Pass;

/* Tokens go through the layers in chunks, so that what is computed for them stays in the second cache. */
#define CHUNK 64

typedef struct {
    int64_t count, slot[CHUNK], at[CHUNK], row[CHUNK]; /* row: whose last token it is, or -1 */
    float *x, *h, *big, *scores;                       /* (CHUNK, D), and room for the widest intermediate results */
} Chunk;

/* y = x / sqrt(mean x^2 + eps) * weight; y may be x. */
static void norm(const float *x, const float *weight, float *y, int64_t n, float eps) {
    vec squares = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) squares += load(x + i) * load(x + i);
    if (i < n) squares += load_some(x + i, n - i) * load_some(x + i, n - i);
    float scale = 1.0f / sqrtf(sum(squares) / (float)n + eps);
    for (i = 0; i < n; i++) y[i] = x[i] * scale * weight[i];
}

static void add(float *x, const float *y, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] += y[i];
}

/* x cos + swap(x) sin, where swap exchanges the halves of a head and sin carries the sign. */
static void rotate(float *head, const float *turn, int64_t d) {
    for (int64_t i = 0; i < d / 2; i++) {
        float a = head[i], b = head[i + d / 2];
        head[i] = a * turn[i] + b * turn[d + i];
        head[i + d / 2] = b * turn[i + d / 2] + a * turn[d + i + d / 2];
    }
}

/* One head of one token against its row: softmax(scale q k^T) v. scores has room for n, rounded up to whole vectors. */
static void attend(const Model *m, const float *q, const float *keys, const float *values, float *scores, float *out,
                   int64_t n) {
    int64_t d = m->head_dim, j = 0;
    for (; j + ROWS <= n; j += ROWS) tile(ROWS, 1, keys + j * d, q, scores + j, d, 1, NULL);
    for (; j < n; j++) tile(1, 1, keys + j * d, q, scores + j, d, 1, NULL);
    for (j = n; j % LANES; j++) scores[j] = -INFINITY;
    int64_t padded = j;
    vec total = {0}, most = total - INFINITY;
    for (j = 0; j < padded; j += LANES) {
        vec s = load(scores + j) * m->attention_scale;
        if (m->softcap != 0.0f) s = m->softcap * (2.0f * sigmoid(s * (2.0f / m->softcap)) - 1.0f);
        store(scores + j, s);
        most = choose(s > most, s, most); /* the softcap makes of -inf no more than its floor: harmless here */
    }
    for (j = n; j < padded; j++) scores[j] = -INFINITY;
    float largest = most[0];
    for (int i = 1; i < LANES; i++) largest = most[i] > largest ? most[i] : largest;
    for (j = 0; j < padded; j += LANES) {
        vec e = vexp(load(scores + j) - largest);
        store(scores + j, e);
        total += e;
    }
    float share = 1.0f / sum(total);
    int64_t i = 0;
    for (; i + 4 * LANES <= d; i += 4 * LANES) {
        vec a = {0}, b = {0}, c = {0}, e = {0};
        for (j = 0; j < n; j++) {
            const float *v = values + j * d + i;
            a += scores[j] * load(v), b += scores[j] * load(v + LANES);
            c += scores[j] * load(v + 2 * LANES), e += scores[j] * load(v + 3 * LANES);
        }
        store(out + i, a * share), store(out + i + LANES, b * share);
        store(out + i + 2 * LANES, c * share), store(out + i + 3 * LANES, e * share);
    }
    for (; i < d; i += LANES) {
        int64_t rest = d - i < LANES ? d - i : LANES;
        vec a = {0};
        for (j = 0; j < n; j++) a += scores[j] * load_some(values + j * d + i, rest);
        store_some(out + i, a * share, rest);
    }
}

/* Norms and turns the new heads of a token, and stores its keys and values. */
static void remember(const Model *m, const Layer *l, float *qkv, int64_t slot, int64_t at) {
    int64_t d = m->head_dim, H = m->heads, G = m->kv_heads;
    for (int64_t h = 0; h < H + G; h++) {
        const float *weight = h < H ? l->q_norm : l->k_norm;
        if (weight) norm(qkv + h * d, weight, qkv + h * d, d, m->eps);
        if (l->turns) rotate(qkv + h * d, l->turns + at * 2 * d, d);
    }
    for (int64_t g = 0; g < G; g++) {
        int64_t place = ((slot * G + g) * m->length + at) * d;
        memcpy(l->keys + place, qkv + (H + g) * d, (size_t)d * 4);
        memcpy(l->values + place, qkv + (H + G + g) * d, (size_t)d * 4);
    }
}

/* Attention of all heads of a token. */
static void look_back(const Model *m, const Layer *l, const float *q, float *scores, float *out, int64_t slot,
                      int64_t at) {
    int64_t d = m->head_dim, shared = m->heads / m->kv_heads, first = 0;
    if (l->window && at >= l->window) first = at + 1 - l->window;
    for (int64_t h = 0; h < m->heads; h++) {
        int64_t place = ((slot * m->kv_heads + h / shared) * m->length + first) * d;
        attend(m, q + h * d, l->keys + place, l->values + place, scores, out + h * d, at + 1 - first);
    }
}

/* Keeps the last token of each row: in the last layer, all others are needed for their keys and values only. */
static void keep_last(Chunk *c, float *qkv, int64_t D, int64_t A) {
    int64_t kept = 0;
    for (int64_t i = 0; i < c->count; i++) {
        if (c->row[i] < 0) continue;
        memmove(c->x + kept * D, c->x + i * D, (size_t)D * 4);
        memmove(qkv + kept * A, qkv + i * A, (size_t)A * 4);
        c->slot[kept] = c->slot[i], c->at[kept] = c->at[i], c->row[kept++] = c->row[i];
    }
    c->count = kept;
}

/* act(gate) * up into the first half of each row of gate_up, rows then lie F apart. */
static void gate(const Model *m, float *gate_up, int64_t rows) {
    int64_t F = m->mlp_width;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < F; i += LANES) {
            int64_t n = F - i < LANES ? F - i : LANES;
            vec x = load_some(gate_up + r * 2 * F + i, n), up = load_some(gate_up + r * 2 * F + F + i, n);
            /* gelu's tanh form is x sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)) */
            vec y = x * sigmoid(m->gelu ? 1.595769122f * (x + 0.044715f * x * x * x) : x) * up;
            store_some(gate_up + r * F + i, y, n);
        }
}

static void layer(const Model *m, const Layer *l, Chunk *c, int last) {
    int64_t D = m->width, d = m->head_dim, A = (m->heads + 2 * m->kv_heads) * d, F = m->mlp_width;
    float *x = c->x, *h = c->h, *big = c->big;
    for (int64_t i = 0; i < c->count; i++) norm(x + i * D, l->before_attention, h + i * D, D, m->eps);
    linear(&l->qkv, h, big, c->count, D, A);
    for (int64_t i = 0; i < c->count; i++) remember(m, l, big + i * A, c->slot[i], c->at[i]);
    if (last) keep_last(c, big, D, A);
    for (int64_t i = 0; i < c->count; i++)
        look_back(m, l, big + i * A, c->scores, h + i * m->heads * d, c->slot[i], c->at[i]);
    linear(&l->out, h, big, c->count, m->heads * d, D);
    for (int64_t i = 0; i < c->count; i++) {
        if (l->after_attention) norm(big + i * D, l->after_attention, big + i * D, D, m->eps);
        add(x + i * D, big + i * D, D);
        norm(x + i * D, l->before_mlp, h + i * D, D, m->eps);
    }
    linear(&l->gate_up, h, big, c->count, D, 2 * F);
    gate(m, big, c->count);
    linear(&l->down, big, h, c->count, F, D);
    for (int64_t i = 0; i < c->count; i++) {
        if (l->after_mlp) norm(h + i * D, l->after_mlp, h + i * D, D, m->eps);
        add(x + i * D, h + i * D, D);
    }
}

/* The next tokens of the share, from row and token on; moves both on. */
static void fill(const Pass *p, const Share *s, Chunk *c, int64_t *row, int64_t *token) {
    const Model *m = p->model;
    for (c->count = 0; c->count < CHUNK && *row < s->first + s->rows; (*token)++) {
        int64_t i = c->count++, last = *token + 1 == p->starts[*row + 1];
        const float *embedding = m->embedding + p->tokens[*token] * m->width;
        for (int64_t k = 0; k < m->width; k++) c->x[i * m->width + k] = embedding[k] * m->embedding_scale;
        c->slot[i] = p->slots[*row];
        c->at[i] = p->bases[*row] + *token - p->starts[*row];
        c->row[i] = last ? (*row)++ : -1;
    }
}

static void *work(void *argument) {
    Share *s = argument;
    const Pass *p = s->job;
    const Model *m = p->model;
    int64_t D = m->width, heads = m->heads * m->head_dim, A = heads + 2 * m->kv_heads * m->head_dim;
    int64_t narrow = heads > D ? heads : D, wide = A > 2 * m->mlp_width ? A : 2 * m->mlp_width;
    wide = wide > D ? wide : D; /* the outputs of both blocks lie in it too */
    Chunk c;
    c.x = malloc((size_t)(CHUNK * (D + narrow + wide) + m->length + LANES) * 4);
    s->failed = c.x == NULL;
    if (s->failed) return NULL;
    c.h = c.x + CHUNK * D, c.big = c.h + CHUNK * narrow, c.scores = c.big + CHUNK * wide;
    int64_t row = s->first, token = p->starts[s->first];
    while (row < s->first + s->rows) {
        fill(p, s, &c, &row, &token);
        for (int64_t l = 0; l < m->layers; l++) layer(m, m->layer + l, &c, l + 1 == m->layers);
        for (int64_t i = 0; i < c.count; i++)
            norm(c.x + i * D, m->final_norm, p->hidden + c.row[i] * D, D, m->eps);
    }
    free(c.x);
    return NULL;
}

/* See Pass. -> 0, or 1 when memory ran out. */
int goodheart_forward(const Model *model, const int64_t *tokens, const int64_t *starts, const int64_t *slots,
                      const int64_t *bases, float *hidden, int64_t rows, int64_t threads) {
    Pass pass = {model, tokens, starts, slots, bases, hidden};
    int64_t most = starts[rows] / MIN_ROWS_PER_THREAD;
    return share_out(work, &pass, rows, threads < most ? threads : most);
}
