/* Vectors of floats, e^x, and how the numbers of tokens lie side by side.

   A panel holds PANEL tokens: of each feature the numbers of all of them, then the next feature. So every operation is
   one of whole vectors, and what is computed for a token does not depend on which tokens lie beside it. */

#ifndef GOODHEART_VECTORS_H
#define GOODHEART_VECTORS_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define PANEL 16
#if defined(__AVX512F__) && defined(__AVX512VL__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#define PARTS (PANEL / LANES) /* vectors of a panel's row */
/* Keeps a value in its register: GCC would rather load it from memory again for each use. */
#ifdef __AVX__
#define KEEP(v) __asm__("" : "+x"(v))
#else
#define KEEP(v) (void)(v)
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef float loose __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(LANES * 4)));

INLINE vec load(const float *p) { return *(const loose *)p; }
INLINE void store(float *p, vec x) { *(loose *)p = x; }

INLINE vec load_some(const float *p, int64_t n) {
    if (n >= LANES) return load(p);
    vec x = {0};
    memcpy(&x, p, (size_t)n * 4);
    return x;
}

INLINE void store_some(float *p, vec x, int64_t n) {
    if (n >= LANES)
        store(p, x);
    else
        memcpy(p, &x, (size_t)n * 4);
}

INLINE vec choose(ivec which, vec a, vec b) { return (vec)((which & (ivec)a) | (~which & (ivec)b)); }

INLINE float sum(vec x) {
    float total = x[0];
    for (int i = 1; i < LANES; i++) total += x[i];
    return total;
}

INLINE float largest(vec x) {
    float most = x[0];
    for (int i = 1; i < LANES; i++) most = x[i] > most ? x[i] : most;
    return most;
}

/* e^x: 2^n times a polynomial (Cephes), 2 units in the last place; 0 below -87, not-a-number stays. */
INLINE vec vexp(vec x) {
    const vec none = {0};
    ivec low = x < -87.0f;
    vec clamped = choose(x > 88.0f, none + 88.0f, choose(low, none - 87.0f, x));
    vec n = (clamped * 1.44269504f + 12582912.0f) - 12582912.0f; /* rounds: 1.5 * 2^23 has no room for fractions */
    vec r = clamped - n * 0.693359375f + n * 2.12194440e-4f;
    vec y = r * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    ivec power = (__builtin_convertvector(n, ivec) + 127) << 23;
    return choose(low, none, y * (vec)power);
}

INLINE vec sigmoid(vec x) { return 1.0f / (1.0f + vexp(-x)); }

/* cap tanh(x / cap) */
INLINE vec soften(vec x, float cap) { return cap * (2.0f * sigmoid(x * (2.0f / cap)) - 1.0f); }

INLINE int64_t panels_of(int64_t tokens) { return (tokens + PANEL - 1) / PANEL; }

/* Where the numbers of a token begin in panels of n features; they lie PANEL apart. */
INLINE float *column(float *panels, int64_t token, int64_t n) {
    return panels + token / PANEL * n * PANEL + token % PANEL;
}

#endif
