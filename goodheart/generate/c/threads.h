/* Threads in teams. Teams never wait for each other; the members of one share the outputs of every matmul between them,
   for work with too few tokens to give every thread some of its own. */

#ifndef GOODHEART_THREADS_H
#define GOODHEART_THREADS_H

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

#define MOST_THREADS 256
#define LINE 64 /* bytes of a cache line: what two threads write must not share one */

typedef struct {
    _Alignas(LINE) atomic_llong arrived;
    atomic_llong turn;
    int64_t size, news; /* members; a number from the first to the others */
} Team;

typedef struct Member {
    const void *job;
    void (*work)(struct Member *);
    Team *team;
    pthread_mutex_t *gate;
    int64_t index;       /* which member of its team */
    float *shared, *own; /* room of the team and of the member */
} Member;

static inline void breathe(int *waited) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
    if (++*waited > 300) sched_yield(); /* some 10 microseconds: perhaps there are more threads than processors */
}

/* Returns when all members of the team are here. */
static inline void meet(Member *me) {
    Team *t = me->team;
    if (t->size == 1) return;
    long long turn = atomic_load_explicit(&t->turn, memory_order_acquire);
    if (atomic_fetch_add_explicit(&t->arrived, 1, memory_order_acq_rel) + 1 == t->size) {
        atomic_store_explicit(&t->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&t->turn, turn + 1, memory_order_release);
    } else
        for (int waited = 0; atomic_load_explicit(&t->turn, memory_order_acquire) == turn;) breathe(&waited);
}

/* This member's part of n things, in whole steps. */
static inline int64_t part(const Member *me, int64_t n, int64_t step, int64_t index) {
    int64_t end = (n + step - 1) / step * index / me->team->size * step;
    return end < n ? end : n;
}
#define PART(me, n, step, first, end)                                                                                  \
    int64_t first = part(me, n, step, (me)->index), end = part(me, n, step, (me)->index + 1)

static inline void *begin(void *argument) {
    Member *me = argument;
    pthread_mutex_lock(me->gate); /* opens when it is known how many threads there are */
    pthread_mutex_unlock(me->gate);
    me->work(me);
    return NULL;
}

/* New threads begin on other processors than this one, where the scheduler may well leave them waiting for us when all
   are busy. */
static inline void elsewhere(pthread_attr_t *attributes) {
#if defined(__linux__) && defined(CPU_COUNT)
    cpu_set_t allowed;
    int here = sched_getcpu();
    if (here < 0 || sched_getaffinity(0, sizeof allowed, &allowed)) return;
    CPU_CLR((size_t)here, &allowed);
    if (CPU_COUNT(&allowed)) pthread_attr_setaffinity_np(attributes, sizeof allowed, &allowed);
#else
    (void)attributes;
#endif
}

/* Runs `work` in up to `teams` teams of up to `members` threads, this one among them, with room (floats) for each team
   and each member. -> 0, or 1 when memory ran out, before anything is done. */
static inline int run_teams(void (*work)(Member *), const void *job, int64_t teams, int64_t members, int64_t shared,
                            int64_t own) {
    teams = teams < 1 ? 1 : teams < MOST_THREADS ? teams : MOST_THREADS;
    members = members < 1 ? 1 : members < MOST_THREADS / teams ? members : MOST_THREADS / teams;
    int64_t threads = teams * members, running = 1, line = LINE / 4;
    shared = (shared + line - 1) / line * line, own = (own + line - 1) / line * line;
    pthread_t started[MOST_THREADS];
    Member member[MOST_THREADS];
    pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
    pthread_attr_t attributes;
    Team *team = aligned_alloc(LINE, (size_t)teams * sizeof(Team));
    float *room = aligned_alloc(LINE, (size_t)(teams * shared + threads * own) * 4);
    int failed = !team || !room;
    if (!failed) {
        pthread_mutex_lock(&gate);
        pthread_attr_init(&attributes);
        elsewhere(&attributes);
        for (int64_t i = 0; i < threads; i++)
            member[i] = (Member){job, work, NULL, &gate, 0, NULL, room + teams * shared + i * own};
        for (; running < threads; running++)
            if (pthread_create(&started[running], &attributes, begin, &member[running])) break;
        pthread_attr_destroy(&attributes);
        if (running < threads) members = running / teams > 1 ? running / teams : 1; /* fewer than asked for */
        teams = running / members < teams ? running / members : teams;
        for (int64_t t = 0; t < teams; t++) {
            int64_t extra = t < running - teams * members; /* those left over join the first teams */
            atomic_init(&team[t].arrived, 0), atomic_init(&team[t].turn, 0);
            team[t].size = members + extra;
        }
        for (int64_t i = 0, t = 0, k = 0; i < running; i++, k++) {
            if (k == team[t].size) t++, k = 0;
            member[i].team = &team[t], member[i].index = k, member[i].shared = room + t * shared;
        }
        pthread_mutex_unlock(&gate);
        work(&member[0]);
        for (int64_t i = 1; i < running; i++) pthread_join(started[i], NULL);
    }
    pthread_mutex_destroy(&gate);
    free(team);
    free(room);
    return failed;
}

#endif
