/* What is done to each token by itself: norms, gates, and the softmax of the output layer. */

#include "parallel.h"
#include "vectors.h"

/* CHUNK: rows of a piece, defined by native.py */

static int64_t pieces_of(int64_t rows) { return (rows + CHUNK - 1) / CHUNK; }
static int64_t end_of(int64_t piece, int64_t rows) { return (piece + 1) * CHUNK < rows ? (piece + 1) * CHUNK : rows; }

typedef struct {
    int64_t rows, width;
    float eps;
    const float *x, *more, *weight; /* (rows, width) twice, (width); more: added to x first, NULL = nothing */
    float *sum, *out, *inverse;     /* x + more (NULL without), normed, 1 / root mean square of each row */
    const float *grad_out, *grad_sum;
    float *grad_x, *grad_weight; /* (rows, width), (pieces, width) */
} Norm;

static void norm(const void *job, int64_t piece, float *room) {
    const Norm *n = job;
    (void)room;
    for (int64_t r = piece * CHUNK; r < end_of(piece, n->rows); r++) {
        const float *x = n->x + r * n->width;
        vec squares = {0};
        if (n->more) {
            const float *more = n->more + r * n->width;
            float *both = n->sum + r * n->width;
            for (int64_t i = 0; i < n->width; i += LANES) {
                vec s = load_some(x + i, n->width - i) + load_some(more + i, n->width - i);
                squares += s * s;
                store_some(both + i, s, n->width - i);
            }
            x = both;
        } else
            for (int64_t i = 0; i < n->width; i += LANES) {
                vec s = load_some(x + i, n->width - i);
                squares += s * s;
            }
        float inverse = 1.0f / sqrtf(sum(squares) / (float)n->width + n->eps);
        n->inverse[r] = inverse;
        for (int64_t i = 0; i < n->width; i += LANES)
            store_some(n->out + r * n->width + i,
                       load_some(x + i, n->width - i) * inverse * load_some(n->weight + i, n->width - i), n->width - i);
    }
}

/* With h = x / rms(x), g the gradient and w the weight: dw = sum of g h over rows, dx = (g w - h mean(g w h)) / rms. */
static void norm_backward(const void *job, int64_t piece, float *room) {
    const Norm *n = job;
    (void)room;
    float *grad_weight = n->grad_weight + piece * n->width;
    memset(grad_weight, 0, (size_t)n->width * 4);
    for (int64_t r = piece * CHUNK; r < end_of(piece, n->rows); r++) {
        const float *x = n->x + r * n->width, *grad = n->grad_out + r * n->width;
        float inverse = n->inverse[r];
        vec products = {0};
        for (int64_t i = 0; i < n->width; i += LANES) {
            int64_t left = n->width - i;
            vec gh = load_some(grad + i, left) * load_some(x + i, left) * inverse;
            store_some(grad_weight + i, load_some(grad_weight + i, left) + gh, left);
            products += gh * load_some(n->weight + i, left);
        }
        float mean = sum(products) / (float)n->width;
        for (int64_t i = 0; i < n->width; i += LANES) {
            int64_t left = n->width - i;
            vec h = load_some(x + i, left) * inverse;
            vec dx = (load_some(grad + i, left) * load_some(n->weight + i, left) - h * mean) * inverse;
            if (n->grad_sum) dx += load_some(n->grad_sum + r * n->width + i, left);
            store_some(n->grad_x + r * n->width + i, dx, left);
        }
    }
}

typedef struct {
    int64_t rows, width;
    const float *gate_up; /* (rows, 2 width): gates, then what passes through them */
    float *out;           /* (rows, width) */
    const float *grad_out;
    float *grad_gate_up;
} Gate;

static void gate(const void *job, int64_t piece, float *room) {
    const Gate *g = job;
    (void)room;
    for (int64_t r = piece * CHUNK; r < end_of(piece, g->rows); r++) {
        const float *gates = g->gate_up + r * 2 * g->width, *ups = gates + g->width;
        for (int64_t i = 0; i < g->width; i += LANES) {
            int64_t left = g->width - i;
            vec x = load_some(gates + i, left);
            store_some(g->out + r * g->width + i, x * sigmoid(x) * load_some(ups + i, left), left);
        }
    }
}

/* d silu(x) = s (1 + x - x s), s the sigmoid of x. */
static void gate_backward(const void *job, int64_t piece, float *room) {
    const Gate *g = job;
    (void)room;
    for (int64_t r = piece * CHUNK; r < end_of(piece, g->rows); r++) {
        const float *gates = g->gate_up + r * 2 * g->width, *ups = gates + g->width;
        float *grad_gates = g->grad_gate_up + r * 2 * g->width, *grad_ups = grad_gates + g->width;
        for (int64_t i = 0; i < g->width; i += LANES) {
            int64_t left = g->width - i;
            vec x = load_some(gates + i, left), grad = load_some(g->grad_out + r * g->width + i, left);
            vec s = sigmoid(x), silu = x * s;
            store_some(grad_gates + i, grad * load_some(ups + i, left) * (s * (1.0f + (x - silu))), left);
            store_some(grad_ups + i, grad * silu, left);
        }
    }
}

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
