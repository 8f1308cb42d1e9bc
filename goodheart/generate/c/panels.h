/* How the numbers of tokens lie side by side.

   A panel holds PANEL tokens: of each feature the numbers of all of them, then the next feature. So every operation is
   one of whole vectors, and what is computed for a token does not depend on which tokens lie beside it. */

#ifndef GOODHEART_PANELS_H
#define GOODHEART_PANELS_H

#include <stdlib.h>

#include "vectors.h" /* of ../../models/c */

#define PANEL 16
#define PARTS (PANEL / LANES) /* vectors of a panel's row */
/* Keeps a value in its register: GCC would rather load it from memory again for each use. */
#ifdef __AVX__
#define KEEP(v) __asm__("" : "+x"(v))
#else
#define KEEP(v) (void)(v)
#endif

/* One number after the other. */
INLINE float sum_in_order(vec x) {
    float total = x[0];
    for (int i = 1; i < LANES; i++) total += x[i];
    return total;
}

/* cap tanh(x / cap) */
INLINE vec soften(vec x, float cap) { return cap * (2.0f * sigmoid(x * (2.0f / cap)) - 1.0f); }

INLINE int64_t panels_of(int64_t tokens) { return (tokens + PANEL - 1) / PANEL; }

/* Where the numbers of a token begin in panels of n features; they lie PANEL apart. */
INLINE float *column(float *panels, int64_t token, int64_t n) {
    return panels + token / PANEL * n * PANEL + token % PANEL;
}

#endif
