/* Vectors of floats, and e^x of them; for training and, in ../../generate/c, for generation. */

#ifndef GOODHEART_VECTORS_H
#define GOODHEART_VECTORS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#define NUMBERS 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
#elif defined(__AVX__)
#define LANES 8
#define NUMBERS 0, 1, 2, 3, 4, 5, 6, 7
#else
#define LANES 4
#define NUMBERS 0, 1, 2, 3
#endif
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

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

/* Halves are laid upon each other until one number is left. */
INLINE float sum(vec x) {
    float a[LANES];
    memcpy(a, &x, sizeof a);
    UNROLL for (int half = LANES / 2; half; half /= 2)
        UNROLL for (int i = 0; i < half; i++) a[i] += a[i + half];
    return a[0];
}

INLINE float largest(vec x) {
    float a[LANES];
    memcpy(a, &x, sizeof a);
    UNROLL for (int half = LANES / 2; half; half /= 2)
        UNROLL for (int i = 0; i < half; i++) a[i] = a[i + half] > a[i] ? a[i + half] : a[i];
    return a[0];
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

INLINE int64_t whole(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

#endif
