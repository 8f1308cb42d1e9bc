/* Products of small matrices that lie in the cache. */

#ifndef GOODHEART_MODELS_PRODUCT_H
#define GOODHEART_MODELS_PRODUCT_H

#include "vectors.h"

/* A tile of sums is held in TILE_ROWS x TILE_VECS registers. */
#define TILE_ROWS (LANES == 16 ? 8 : 6)
#define TILE_VECS (LANES == 16 ? 3 : 2)

/* Matrices are given by where they begin and how far their rows (and, of a, columns) are apart. */
INLINE void tile(const int rows, const int vecs, int64_t depth, const float *a, int64_t down, int64_t along,
                 const float *b, int64_t b_rows, float *c, int64_t c_rows, int add) {
    vec total[TILE_ROWS][TILE_VECS];
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < vecs; j++) total[i][j] = add ? load(c + i * c_rows + j * LANES) : (vec){0};
    for (int64_t k = 0; k < depth; k++) {
        vec row[TILE_VECS];
        UNROLL for (int j = 0; j < vecs; j++) row[j] = load(b + k * b_rows + j * LANES);
        UNROLL for (int i = 0; i < rows; i++) {
            float x = a[i * down + k * along];
            UNROLL for (int j = 0; j < vecs; j++) total[i][j] += x * row[j];
        }
    }
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < vecs; j++) store(c + i * c_rows + j * LANES, total[i][j]);
}

INLINE void strip(const int vecs, int64_t m, int64_t depth, const float *a, int64_t down, int64_t along, const float *b,
                  int64_t b_rows, float *c, int64_t c_rows, int add) {
    int64_t i = 0;
    for (; i + TILE_ROWS <= m; i += TILE_ROWS)
        tile(TILE_ROWS, vecs, depth, a + i * down, down, along, b, b_rows, c + i * c_rows, c_rows, add);
    for (; i < m; i += 2) tile(2, vecs, depth, a + i * down, down, along, b, b_rows, c + i * c_rows, c_rows, add);
}

/* c (m x n) = a (m x depth) b (depth x n), or added to c; n a multiple of LANES. With an odd m there must be room for one
   row more. (Tiles of a single row GCC rounds otherwise than the others: multiplied, then added.) Every sum runs over the depth from
   first to last, whatever m and n, so that no number depends on which others are computed beside it. */
static void product(int64_t m, int64_t n, int64_t depth, const float *a, int64_t down, int64_t along, const float *b,
                    int64_t b_rows, float *c, int64_t c_rows, int add) {
    int64_t j = 0, wide = TILE_VECS * LANES;
    for (; j + wide <= n; j += wide) strip(TILE_VECS, m, depth, a, down, along, b + j, b_rows, c + j, c_rows, add);
    for (; j + 2 * LANES <= n; j += 2 * LANES) strip(2, m, depth, a, down, along, b + j, b_rows, c + j, c_rows, add);
    if (j < n) strip(1, m, depth, a, down, along, b + j, b_rows, c + j, c_rows, add);
}

#endif
