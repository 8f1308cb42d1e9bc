/* Rows shared out to threads that never wait for each other. */

#ifndef GOODHEART_THREADS_H
#define GOODHEART_THREADS_H

#include <pthread.h>
#include <stdint.h>

#define MIN_ROWS_PER_THREAD 4 /* fewer cost less than starting a thread */
#define MOST_THREADS 64

typedef struct {
    const void *job;
    int64_t first, rows;
    int failed; /* set by the work when memory ran out */
} Share;

/* Runs work on shares of the rows, this thread's among them. -> 0, or 1 when a share failed. */
static inline int share_out(void *(*work)(void *), const void *job, int64_t rows, int64_t threads) {
    pthread_t started[MOST_THREADS];
    Share shares[MOST_THREADS];
    int64_t running = 1;
    threads = threads < rows ? threads : rows;
    threads = threads < MOST_THREADS ? threads : MOST_THREADS;
    threads = threads > 1 ? threads : 1;
    for (int64_t t = 0; t < threads; t++) {
        int64_t first = rows * t / threads, end = rows * (t + 1) / threads;
        shares[t] = (Share){job, first, end - first, 0};
    }
    for (; running < threads; running++)
        if (pthread_create(&started[running], NULL, work, &shares[running])) break;
    work(&shares[0]);
    for (int64_t t = running; t < threads; t++) work(&shares[t]); /* whose thread did not start */
    int failed = shares[0].failed;
    for (int64_t t = 1; t < threads; t++) {
        if (t < running) pthread_join(started[t], NULL);
        failed |= shares[t].failed;
    }
    return failed;
}

#endif
