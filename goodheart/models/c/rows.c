/* What is done to each token by itself: norms, gates, and the softmax of the output layer. */

#include "numbers.h"
#include "parallel.h"

/* CHUNK: rows of a piece, defined by native.py */

static int64_t pieces_of(int64_t rows) { return (rows + CHUNK - 1) / CHUNK; }
static int64_t end_of(int64_t piece, int64_t rows) { return (piece + 1) * CHUNK < rows ? (piece + 1) * CHUNK : rows; }

typedef struct {
    int64_t rows, width;
    float eps;
    const number *x, *more, *weight; /* (rows, width) twice, (width); more: added to x first, NULL = nothing */
    number *sum, *out;               /* x + more (NULL without), normed */
    float *inverse;                  /* 1 / root mean square of each row */
    const number *grad_out, *grad_sum;
    number *grad_x;
    float *grad_weight; /* (pieces, width) */
} Norm;

static void norm(const void *job, int64_t piece, float *room) {
    const Norm *n = job;
    (void)room;
    for (int64_t r = piece * CHUNK; r < end_of(piece, n->rows); r++) {
        const number *x = n->x + r * n->width;
        vec squares = {0};
        if (n->more) {
            const number *more = n->more + r * n->width;
            number *both = n->sum + r * n->width;
            for (int64_t i = 0; i < n->width; i += LANES) {
                put(both + i, get(x + i, n->width - i) + get(more + i, n->width - i), n->width - i);
                vec s = get(both + i, n->width - i); /* as it is stored */
                squares += s * s;
            }
            x = both;
        } else
            for (int64_t i = 0; i < n->width; i += LANES) {
                vec s = get(x + i, n->width - i);
                squares += s * s;
            }
        float inverse = 1.0f / sqrtf(sum(squares) / (float)n->width + n->eps);
        n->inverse[r] = inverse;
        for (int64_t i = 0; i < n->width; i += LANES)
            put(n->out + r * n->width + i,
                       get(x + i, n->width - i) * inverse * get(n->weight + i, n->width - i), n->width - i);
    }
}

/* With h = x / rms(x), g the gradient and w the weight: dw = sum of g h over rows, dx = (g w - h mean(g w h)) / rms. */
static void norm_backward(const void *job, int64_t piece, float *room) {
    const Norm *n = job;
    (void)room;
    float *grad_weight = n->grad_weight + piece * n->width;
    memset(grad_weight, 0, (size_t)n->width * 4);
    for (int64_t r = piece * CHUNK; r < end_of(piece, n->rows); r++) {
        const number *x = n->x + r * n->width, *grad = n->grad_out + r * n->width;
        float inverse = n->inverse[r];
        vec products = {0};
        for (int64_t i = 0; i < n->width; i += LANES) {
            int64_t left = n->width - i;
            vec gh = get(grad + i, left) * get(x + i, left) * inverse;
            store_some(grad_weight + i, load_some(grad_weight + i, left) + gh, left);
            products += gh * get(n->weight + i, left);
        }
        float mean = sum(products) / (float)n->width;
        for (int64_t i = 0; i < n->width; i += LANES) {
            int64_t left = n->width - i;
            vec h = get(x + i, left) * inverse;
            vec dx = (get(grad + i, left) * get(n->weight + i, left) - h * mean) * inverse;
            if (n->grad_sum) dx += get(n->grad_sum + r * n->width + i, left);
            put(n->grad_x + r * n->width + i, dx, left);
        }
    }
}

typedef struct {
    int64_t rows, width;
    const number *gate_up; /* (rows, 2 width): gates, then what passes through them */
    number *out;           /* (rows, width) */
    const number *grad_out;
    number *grad_gate_up;
} Gate;

static void gate(const void *job, int64_t piece, float *room) {
    const Gate *g = job;
    (void)room;
    for (int64_t r = piece * CHUNK; r < end_of(piece, g->rows); r++) {
        const number *gates = g->gate_up + r * 2 * g->width, *ups = gates + g->width;
        for (int64_t i = 0; i < g->width; i += LANES) {
            int64_t left = g->width - i;
            vec x = get(gates + i, left);
            put(g->out + r * g->width + i, x * sigmoid(x) * get(ups + i, left), left);
        }
    }
}

/* d silu(x) = s (1 + x - x s), s the sigmoid of x. */
static void gate_backward(const void *job, int64_t piece, float *room) {
    const Gate *g = job;
    (void)room;
    for (int64_t r = piece * CHUNK; r < end_of(piece, g->rows); r++) {
        const number *gates = g->gate_up + r * 2 * g->width, *ups = gates + g->width;
        number *grad_gates = g->grad_gate_up + r * 2 * g->width, *grad_ups = grad_gates + g->width;
        for (int64_t i = 0; i < g->width; i += LANES) {
            int64_t left = g->width - i;
            vec x = get(gates + i, left), grad = get(g->grad_out + r * g->width + i, left);
            vec s = sigmoid(x), silu = x * s;
            put(grad_gates + i, grad * get(ups + i, left) * (s * (1.0f + (x - silu))), left);
            put(grad_ups + i, grad * silu, left);
        }
    }
}

/* Of float32 always. */
typedef struct {
    int64_t rows, columns;
    const float *logits;    /* (rows, columns) */
    const int64_t *targets; /* (rows) */
    float *logps, *log_sum, *entropy; /* (rows); entropy NULL: not wanted */
    const float *grad_logps, *grad_entropy; /* NULL: none */
    float *grad;                            /* (rows, columns) */
} Softmax;

static void softmax(const void *job, int64_t piece, float *room) {
    const Softmax *s = job;
    (void)room;
    for (int64_t r = piece * CHUNK; r < end_of(piece, s->rows); r++) {
        const float *logits = s->logits + r * s->columns;
        int64_t n = s->columns, i = 0;
        vec top = (vec){0} - INFINITY, total = {0}, weighted = {0};
        float most = -INFINITY;
        for (; i + LANES <= n; i += LANES) {
            vec x = load(logits + i);
            top = choose(x > top, x, top);
        }
        for (most = largest(top); i < n; i++) most = logits[i] > most ? logits[i] : most;
        for (i = 0; i < n; i += LANES) {
            int64_t left = n - i;
            vec x = left < LANES ? (vec){0} - INFINITY : load(logits + i);
            if (left < LANES) memcpy(&x, logits + i, (size_t)left * 4);
            vec e = vexp(x - most);
            total += e;
            if (s->entropy) weighted += choose(e > 0.0f, e * (x - most), (vec){0});
        }
        float all = sum(total), log_all = logf(all);
        s->log_sum[r] = most + log_all;
        s->logps[r] = logits[s->targets[r]] - most - log_all;
        if (s->entropy) s->entropy[r] = log_all - sum(weighted) / all;
    }
}

/* With p the softmax and H its entropy: d log p[target] = [target] - p, d H = -p (log p + H). */
static void softmax_backward(const void *job, int64_t piece, float *room) {
    const Softmax *s = job;
    (void)room;
    for (int64_t r = piece * CHUNK; r < end_of(piece, s->rows); r++) {
        const float *logits = s->logits + r * s->columns;
        float *grad = s->grad + r * s->columns, log_sum = s->log_sum[r];
        float slope = s->grad_logps ? s->grad_logps[r] : 0.0f, entropy_slope = 0.0f, constant = slope;
        if (s->grad_entropy) entropy_slope = s->grad_entropy[r], constant += entropy_slope * s->entropy[r];
        for (int64_t i = 0; i < s->columns; i += LANES) {
            int64_t left = s->columns - i;
            vec logp = load_some(logits + i, left) - log_sum, p = vexp(logp);
            vec dx = -p * constant;
            if (s->grad_entropy) dx = choose(p > 0.0f, dx - p * logp * entropy_slope, dx);
            store_some(grad + i, dx, left);
        }
        grad[s->targets[r]] += slope;
    }
}

int goodheart_norm(const Norm *n, const Crew *c) { return share(c, norm, n, pieces_of(n->rows), 0); }
int goodheart_norm_backward(const Norm *n, const Crew *c) { return share(c, norm_backward, n, pieces_of(n->rows), 0); }
int goodheart_gate(const Gate *g, const Crew *c) { return share(c, gate, g, pieces_of(g->rows), 0); }
int goodheart_gate_backward(const Gate *g, const Crew *c) { return share(c, gate_backward, g, pieces_of(g->rows), 0); }
int goodheart_softmax(const Softmax *s, const Crew *c) { return share(c, softmax, s, pieces_of(s->rows), 0); }
int goodheart_softmax_backward(const Softmax *s, const Crew *c) {
    return share(c, softmax_backward, s, pieces_of(s->rows), 0);
}
