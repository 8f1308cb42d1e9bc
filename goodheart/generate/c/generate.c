/* Generation with our decoder in float32 or bfloat16 (numbers.h): prompts into the cache, and steps of one token per row. See compiled.py.

   Threads own tokens, not parts of a matrix, where there are enough of them: nobody waits for anybody then. Weights are
   read in the layout that training uses. Every sum adds in one fixed order, so the result of a row does not depend on
   which other rows and threads there are. */

#define _GNU_SOURCE /* where threads may run */

#include "draw.h"
#include "layers.h"
#include "threads.h"

#define MEMBER_WEIGHTS 1000000 /* weights per member of a team from which meeting costs little beside reading them */
#define CACHED_WEIGHTS 4000000 /* that stay in a processor's caches from one step to the next */

/* How many tokens a team takes at a time, when `total` are shared out to `threads`. Half a panel costs as much as fewer
   tokens; a whole one where weights come from memory, which threads then better read together than each for itself. */
static int64_t chunk_of(int64_t total, int64_t threads, int64_t weights) {
    int64_t each = (total + threads - 1) / threads, step = weights > CACHED_WEIGHTS ? PANEL : PANEL / 2;
    each = (each + step - 1) / step * step;
    return each < CHUNK ? each : CHUNK;
}

static int64_t members_of(int64_t threads, int64_t teams, int64_t weights) {
    int64_t members = threads / (teams < threads ? teams : threads);
    return members < weights / MEMBER_WEIGHTS ? members : most(weights / MEMBER_WEIGHTS, 1);
}

/* The next chunk that nobody has taken, for the whole team. */
static int64_t next_chunk(Member *me, atomic_llong *taken) {
    meet(me); /* all have read what this overwrites, and are done with the last chunk */
    if (me->index == 0) me->team->news = atomic_fetch_add(taken, 1);
    meet(me);
    return me->team->news;
}

typedef struct {
    const Model *model;
    const int64_t *tokens, *starts; /* tokens of row r: starts[r] to starts[r + 1] */
    const int64_t *slots, *bases;   /* of row r: its place in the cache, and the position of its first token here */
    number *hidden;                 /* (rows, D) of the last token of each row */
    int64_t rows, chunk;
    atomic_llong *stored; /* of each chunk: see `run_layer`; then how many chunks are taken */
} Prompts;

static void read_prompts(Member *me) {
    const Prompts *p = me->job;
    const Model *m = p->model;
    int64_t total = p->starts[p->rows], chunks = (total + p->chunk - 1) / p->chunk, row = 0;
    Chunk c;
    lay_out(&c, m, me->shared, me->own);
    for (;;) {
        int64_t taken = next_chunk(me, &p->stored[chunks]), first = taken * p->chunk, end = first + p->chunk;
        if (taken >= chunks) return;
        end = end < total ? end : total;
        while (p->starts[row + 1] <= first) row++;
        int64_t continues = first > p->starts[row];
        c.count = end - first;
        for (int64_t t = first, r = row; t < end; t++) {
            if (t == p->starts[r + 1]) r++;
            int64_t last = t + 1 == p->starts[r + 1], i = t - first, at = p->bases[r] + t - p->starts[r];
            embed(m, &c, i, p->tokens[t], p->slots[r], at, last ? r : -1, me);
        }
        meet(me);
        for (int64_t l = 0; l < m->layers; l++)
            run_layer(m, m->layer + l, &c, me, l + 1 == m->layers, continues ? &p->stored[taken - 1] : NULL,
                      &p->stored[taken]);
        norm(c.x, m->final_norm, c.h, c.count, m->width, m->eps);
        for (int64_t i = me->index; i < c.count; i += me->team->size)
            for (int64_t k = 0; k < m->width; k++)
                p->hidden[c.row[i] * m->width + k] = *entry(c.h, i, k, m->width);
    }
}

/* See Prompts; stored and chunk are not read. -> 0, or 1 when memory ran out. */
int goodheart_read(const Prompts *asked, int64_t weights, int64_t threads) {
    Prompts p = *asked;
    int64_t total = p.starts[p.rows];
    p.chunk = chunk_of(total, threads, weights);
    int64_t chunks = (total + p.chunk - 1) / p.chunk;
    p.stored = calloc((size_t)chunks + 1, sizeof *p.stored);
    if (!p.stored) return 1;
    int failed = run_teams(read_prompts, &p, chunks < threads ? chunks : threads, members_of(threads, chunks, weights),
                           shared_room(p.model), own_room(p.model));
    free(p.stored);
    return failed;
}

typedef struct {
    const Model *model;
    const Head *head;
    const number *hidden; /* (rows, D) to draw one token from each; NULL = tokens go through the model first */
    const int64_t *tokens, *slots, *positions; /* last token of each row, not in the cache yet, and its place there */
    const int64_t *limits;                     /* most new tokens of each row */
    const double *uniforms;                    /* NULL = greedy */
    const int64_t *at;                         /* where in `uniforms` the numbers of each row begin */
    const int64_t *ends;                       /* tokens after which a row is over */
    int64_t end_count, rows, steps;
    int64_t *drawn, *made; /* (rows, steps); how many of them */
    float *logps;          /* (rows, steps) */
    int64_t chunk;
    atomic_llong *taken; /* chunks of rows that somebody works on */
} Draws;

static int goes_on(const Draws *d, int64_t row, int64_t step) {
    for (int64_t i = 0; i < d->end_count; i++)
        if (d->drawn[row * d->steps + step] == d->ends[i]) return 0;
    return step + 1 < d->limits[row];
}

/* From states in c->h to tokens of the rows in c->row: the team shares the vocabulary, then the panels. */
static void draw_rows(const Draws *d, Chunk *c, Member *me, float *logits, float *sums, int64_t step) {
    const Head *h = d->head;
    int64_t V = h->vocabulary;
    PART(me, V, OUTS, first, end);
    linear(&h->layer, c->h, logits, V, c->count, h->width, first, end);
    meet(me);
    for (int64_t p = me->index; p < panels_of(c->count); p += me->team->size) {
        int64_t drawn[PANEL], n = c->count - p * PANEL < PANEL ? c->count - p * PANEL : PANEL;
        double uniforms[PANEL];
        float logps[PANEL];
        const int64_t *rows = c->row + p * PANEL;
        for (int64_t i = 0; d->uniforms && i < n; i++) uniforms[i] = d->uniforms[d->at[rows[i]] + step];
        draw(h, logits + p * PANEL * V, n, d->uniforms ? uniforms : NULL, sums, drawn, logps);
        for (int64_t i = 0; i < n; i++) {
            d->drawn[rows[i] * d->steps + step] = drawn[i];
            d->logps[rows[i] * d->steps + step] = logps[i];
            d->made[rows[i]] = step + 1;
        }
    }
    meet(me);
}

static void draw_tokens(Member *me) {
    const Draws *d = me->job;
    const Model *m = d->model;
    Chunk c;
    lay_out(&c, m, me->shared, me->own);
    float *logits = me->shared + shared_room(m), *sums = me->own + own_room(m);
    int64_t first, rows[CHUNK];
    while ((first = next_chunk(me, d->taken) * d->chunk) < d->rows) {
        int64_t alive = d->rows - first < d->chunk ? d->rows - first : d->chunk;
        for (int64_t i = 0; i < alive; i++) rows[i] = first + i;
        for (int64_t step = 0; step < d->steps && alive; step++) {
            c.count = alive;
            for (int64_t i = 0; i < alive; i++) {
                int64_t r = c.row[i] = rows[i];
                if (!d->hidden)
                    embed(m, &c, i, step ? d->drawn[r * d->steps + step - 1] : d->tokens[r], d->slots[r],
                          d->positions[r] + step, r, me);
                for (int64_t k = 0; d->hidden && k < m->width; k++)
                    *entry(c.h, i, k, m->width) = d->hidden[r * m->width + k];
            }
            if (!d->hidden) {
                meet(me);
                for (int64_t l = 0; l < m->layers; l++) run_layer(m, m->layer + l, &c, me, 0, NULL, NULL);
                norm(c.x, m->final_norm, c.h, c.count, m->width, m->eps);
            }
            draw_rows(d, &c, me, logits, sums, step);
            alive = 0;
            for (int64_t i = 0; i < c.count; i++)
                if (goes_on(d, c.row[i], step)) rows[alive++] = c.row[i];
        }
    }
}

/* See Draws; chunk and taken are not read. -> 0, or 1 when memory ran out. */
int goodheart_draw(const Draws *asked, int64_t weights, int64_t threads) {
    Draws d = *asked;
    atomic_llong taken;
    atomic_init(&taken, 0);
    /* Where that costs nothing, smaller chunks than threads ask for: who is done early takes another. */
    d.chunk = chunk_of(d.rows, weights > CACHED_WEIGHTS ? threads : 2 * threads, weights), d.taken = &taken;
    int64_t chunks = (d.rows + d.chunk - 1) / d.chunk;
    return run_teams(draw_tokens, &d, chunks < threads ? chunks : threads, members_of(threads, chunks, weights),
                     shared_room(d.model) + panels_of(d.chunk) * PANEL * d.head->vocabulary,
                     own_room(d.model) + blocks_of(d.head) * PANEL);
}

/* Whether the processor multiplies two bfloat16 at once here. */
int goodheart_in_pairs(void) { return IN_PAIRS; }
