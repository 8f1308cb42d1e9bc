/* Pieces of work that no two threads share, done by the threads that PyTorch already has. */

#ifndef GOODHEART_MODELS_PARALLEL_H
#define GOODHEART_MODELS_PARALLEL_H

#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

/* GOMP_parallel: runs the function in so many threads at once, and returns when all are done. */
typedef void (*Threads)(void (*)(void *), void *, unsigned, unsigned);

typedef struct {
    Threads run; /* NULL: one thread */
    int64_t threads;
} Crew;

typedef struct {
    void (*work)(const void *job, int64_t piece, float *room);
    const void *job;
    int64_t pieces, room; /* room: floats that each thread has to itself */
    atomic_llong next;
    atomic_int failed;
} Pieces;

static void take_pieces(void *argument) {
    Pieces *p = argument;
    float *room = p->room ? aligned_alloc(64, (size_t)((p->room * 4 + 63) / 64 * 64)) : NULL;
    if (p->room && !room) {
        atomic_store(&p->failed, 1);
        return;
    }
    for (int64_t i; (i = atomic_fetch_add(&p->next, 1)) < p->pieces;) p->work(p->job, i, room);
    free(room);
}

/* -> 0, or 1 when memory ran out. */
static inline int share(const Crew *crew, void (*work)(const void *, int64_t, float *), const void *job,
                        int64_t pieces, int64_t room) {
    Pieces all = {.work = work, .job = job, .pieces = pieces, .room = room};
    int64_t threads = crew->threads < pieces ? crew->threads : pieces;
    if (crew->run && threads > 1)
        crew->run(take_pieces, &all, (unsigned)threads, 0);
    else
        take_pieces(&all);
    return atomic_load(&all.failed);
}

#endif
