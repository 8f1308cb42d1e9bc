/* The numbers that tensors are stored in: float32, or bfloat16 with -DBFLOAT16. What is computed with is float32. */

#ifndef GOODHEART_MODELS_NUMBERS_H
#define GOODHEART_MODELS_NUMBERS_H

#include "vectors.h"

#ifndef BFLOAT16
typedef float number;
INLINE float value(number x) { return x; }
INLINE number stored(float x) { return x; }
#define get load_some
#define put store_some
#else
typedef uint16_t number;
typedef uint16_t shorts __attribute__((vector_size(LANES * 2)));
typedef uint16_t loose_shorts __attribute__((vector_size(LANES * 2), aligned(2), may_alias));

INLINE float value(number x) {
    union {
        uint32_t bits;
        float x;
    } same = {.bits = (uint32_t)x << 16};
    return same.x;
}

/* To the nearest, ties to even; not-a-number stays one, as arithmetic leaves its lower half empty. */
INLINE number stored(float x) {
    union {
        float x;
        uint32_t bits;
    } same = {.x = x};
    return (number)((same.bits + 0x7fff + ((same.bits >> 16) & 1)) >> 16);
}

INLINE vec get(const number *p, int64_t n) {
    shorts x = {0};
    if (n >= LANES)
        x = *(const loose_shorts *)p;
    else
        memcpy(&x, p, (size_t)n * 2);
    return (vec)(__builtin_convertvector(x, ivec) << 16);
}

INLINE void put(number *p, vec x, int64_t n) {
    ivec bits = (ivec)x;
    shorts kept = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, shorts);
    if (n >= LANES)
        *(loose_shorts *)p = kept;
    else
        memcpy(p, &kept, (size_t)n * 2);
}
#endif

#endif
