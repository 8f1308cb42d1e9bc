/* The numbers that weights, keys and values are stored in: float32, or bfloat16 with -DBFLOAT16.

   What a dot product reads lies in words of 32 bits: one float, or two bfloat16 that follow each other along the sum and
   are multiplied and added together, where the processor can do it in one instruction. Sums are float32. Where PyTorch
   would store bfloat16 between two operations, the float is rounded to one. */

#ifndef GOODHEART_NUMBERS_H
#define GOODHEART_NUMBERS_H

#include "panels.h"

/* dot: total + a b, of words a and b. rounded: as it is stored. */
#ifdef BFLOAT16
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the first of two bfloat16 must be the low half of their word"
#endif
typedef uint16_t number __attribute__((may_alias));
typedef int32_t word __attribute__((may_alias));
#define STEP 2 /* numbers of a word */
#define HIGH -65536 /* the upper half of a word, and of a float what bfloat16 keeps */
#define bits(x) ((__typeof__((x) == (x)))(x))
/* To the nearest, ties to even; not-a-number stays one, as arithmetic leaves its lower half empty. */
#define rounded(x) ((__typeof__(x))((bits(x) + 0x7fff + ((bits(x) >> 16) & 1)) & HIGH))
#else
typedef float number, word;
#define STEP 1
#define rounded(x) (x)
#define dot(total, a, b) ((total) + (a) * (b))
#define half_dot dot
#define IN_PAIRS 0
#define IN_PAIRS 0
#endif
typedef word words __attribute__((vector_size(LANES * 4)));
typedef word loose_words __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef word loose_word __attribute__((aligned(2), may_alias));
#if LANES == 16
typedef float half __attribute__((vector_size(32)));
typedef word half_words __attribute__((vector_size(32)));
#endif

INLINE words load_words(const word *p) { return *(const loose_words *)p; }

#ifndef BFLOAT16
INLINE float value(number x) { return x; }
INLINE number stored(float x) { return x; }
INLINE words together(vec first, vec second) { return (void)second, first; }
INLINE void store_numbers(number *p, vec x) { store(p, x); }
#else
INLINE float value(number x) {
    uint32_t b = (uint32_t)x << 16;
    float y;
    memcpy(&y, &b, 4);
    return y;
}

INLINE number stored(float x) {
    uint32_t b;
    memcpy(&b, &x, 4);
    return (number)((b + 0x7fff + ((b >> 16) & 1)) >> 16);
}

INLINE words together(vec first, vec second) {
    return ((bits(rounded(first)) >> 16) & ~HIGH) | bits(rounded(second));
}

INLINE void store_numbers(number *p, vec x) {
    typedef uint16_t shorts __attribute__((vector_size(LANES * 2)));
    typedef uint16_t loose_shorts __attribute__((vector_size(LANES * 2), aligned(2), may_alias));
    *(loose_shorts *)p = __builtin_convertvector(bits(rounded(x)) >> 16, shorts);
}

#ifdef __AVX512BF16__
#include <immintrin.h>
#define IN_PAIRS 1
INLINE vec dot(vec total, words a, words b) {
    return (vec)_mm512_dpbf16_ps((__m512)total, (__m512bh)a, (__m512bh)b);
}
INLINE half half_dot(half total, half_words a, half_words b) {
    return (half)_mm256_dpbf16_ps((__m256)total, (__m256bh)a, (__m256bh)b);
}
#else
#define IN_PAIRS 0
#define as_floats(total, bits) ((__typeof__(total))(bits))
#define dot(total, a, b)                                                                                               \
    ((total) + as_floats(total, (a) << 16) * as_floats(total, (b) << 16) +                                            \
     as_floats(total, (a) & HIGH) * as_floats(total, (b) & HIGH))
#define half_dot dot
#endif
#endif

/* Panels of words, of n features: where a feature of a token lies. */
INLINE number *entry(word *panels, int64_t token, int64_t feature, int64_t n) {
    word *at = panels + (token / PANEL * (n / STEP) + feature / STEP) * PANEL + token % PANEL;
    return (number *)at + feature % STEP;
}

#endif
