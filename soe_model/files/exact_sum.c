/* Instances of a soup from its experts: out[w] = base + sum_j coefficient[w][j] * row[j], for columns [start, stop).
 *
 * Each product is rounded to float32, then each sum, in the order of the rows; a zero coefficient leaves the instance as
 * it is. So the bits are the same for any number of instances, threads and columns a call, and on any machine: this is
 * compiled with -ffp-contract=off, and exact_sum.py says the same with NumPy.
 *
 * Four rows are read once for all instances of a group, whose sums lie in a buffer of the size of the nearest cache: in
 * `out` itself, instances a multiple of a page apart would evict each other. With many instances the rows that come next
 * are fetched a line at a time while these are computed; asked for all at once they would be waited for.
 */
#include <stdint.h>
#include <string.h>

#define TILE 512
#define GROUP 16
#define PAD 16
#define ROWS 4
#define STRIP 128
#define LINE 16

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_CPU __attribute__((target_clones("avx512f", "avx2", "default")))
#define INDEPENDENT _Pragma("GCC ivdep")
#else
#define FOR_EACH_CPU
#define INDEPENDENT
#endif
#if defined(__GNUC__)
#define FETCH(address) __builtin_prefetch(address)
#else
#define FETCH(address)
#endif

FOR_EACH_CPU
static void add_one(float *restrict sum, const float *restrict row, float a, int64_t n)
{
    INDEPENDENT
    for (int64_t x = 0; x < n; x++)
        sum[x] = sum[x] + a * row[x];
}

FOR_EACH_CPU
static void add_four(float *restrict sum, const float *const *r, const float *a, int64_t n)
{
    const float *r0 = r[0], *r1 = r[1], *r2 = r[2], *r3 = r[3];
    const float a0 = a[0], a1 = a[1], a2 = a[2], a3 = a[3];
    INDEPENDENT
    for (int64_t x = 0; x < n; x++)
        sum[x] = (((sum[x] + a0 * r0[x]) + a1 * r1[x]) + a2 * r2[x]) + a3 * r3[x];
}

/* Four rows to four instances: what is loaded once is used four times. `next` is another row, to be fetched. */
FOR_EACH_CPU
static void add_four_to_four(float *restrict s0, float *restrict s1, float *restrict s2, float *restrict s3,
                             const float *const *r, const float *a, const float *b, const float *c, const float *d,
                             int64_t n, const float *next)
{
    const float *r0 = r[0], *r1 = r[1], *r2 = r[2], *r3 = r[3];
    const float a0 = a[0], a1 = a[1], a2 = a[2], a3 = a[3], b0 = b[0], b1 = b[1], b2 = b[2], b3 = b[3];
    const float c0 = c[0], c1 = c[1], c2 = c[2], c3 = c[3], d0 = d[0], d1 = d[1], d2 = d[2], d3 = d[3];
    for (int64_t first = 0; first < n; first += STRIP) {
        const int64_t last = n - first < STRIP ? n : first + STRIP;
        for (int64_t x = first; x < last; x += LINE)
            FETCH(next + x);
        INDEPENDENT
        for (int64_t x = first; x < last; x++) {
            const float e0 = r0[x], e1 = r1[x], e2 = r2[x], e3 = r3[x];
            s0[x] = (((s0[x] + a0 * e0) + a1 * e1) + a2 * e2) + a3 * e3;
            s1[x] = (((s1[x] + b0 * e0) + b1 * e1) + b2 * e2) + b3 * e3;
            s2[x] = (((s2[x] + c0 * e0) + c1 * e1) + c2 * e2) + c3 * e3;
            s3[x] = (((s3[x] + d0 * e0) + d1 * e1) + d2 * e2) + d3 * e3;
        }
    }
}

static int none_zero(const float *a)
{
    return a[0] != 0 && a[1] != 0 && a[2] != 0 && a[3] != 0;
}

/* `count` rows, four at most, to all instances of a group; `a` is their first coefficient of the first instance, and
 * `next` the four rows after them. */
static void add_rows(float (*sums)[TILE + PAD], int64_t group, const float *const *rows, int64_t count, const float *a,
                     int64_t num_rows, int64_t n, const float *const *next)
{
    for (int64_t w = 0; w < group; w++, a += num_rows) {
        const float *b = a + num_rows, *c = b + num_rows, *d = c + num_rows;
        if (count == ROWS && group - w >= 4 && none_zero(a) && none_zero(b) && none_zero(c) && none_zero(d)) {
            add_four_to_four(sums[w], sums[w + 1], sums[w + 2], sums[w + 3], rows, a, b, c, d, n, next[w / 4 % ROWS]);
            w += 3;
            a = d;
        } else if (count == ROWS && none_zero(a)) {
            add_four(sums[w], rows, a, n);
        } else {
            for (int64_t k = 0; k < count; k++)
                if (a[k] != 0)
                    add_one(sums[w], rows[k], a[k], n);
        }
    }
}

void soe_combine(float *const *out, int64_t instances, const float *base, const float *const *rows,
                 const float *coefficients, int64_t num_rows, int64_t start, int64_t stop)
{
    float sums[GROUP][TILE + PAD] __attribute__((aligned(64)));
    const float *here[ROWS], *next[ROWS];
    for (int64_t x = start; x < stop; x += TILE) {
        const int64_t n = stop - x < TILE ? stop - x : TILE, after = stop - x < 2 * TILE ? x : x + TILE;
        for (int64_t first = 0; first < instances; first += GROUP) {
            const int64_t group = instances - first < GROUP ? instances - first : GROUP;
            for (int64_t w = 0; w < group; w++)
                memcpy(sums[w], base + x, n * sizeof(float));
            for (int64_t j = 0; j < num_rows; j += ROWS) {
                const int64_t count = num_rows - j < ROWS ? num_rows - j : ROWS;
                for (int64_t k = 0; k < count; k++)
                    here[k] = rows[j + k] + x;
                for (int64_t k = 0; k < ROWS; k++) {
                    const int64_t row = j + ROWS + k;
                    next[k] = row < num_rows ? rows[row] + x : rows[row % num_rows] + after;
                }
                add_rows(sums, group, here, count, coefficients + first * num_rows + j, num_rows, n, next);
            }
            for (int64_t w = 0; w < group; w++)
                memcpy(out[first + w] + x, sums[w], n * sizeof(float));
        }
    }
}
