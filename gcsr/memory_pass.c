/* The gate's passes over memory, for float32 on CPUs. Called by gcsr/native_pass.py.
 *
 * Two promises to the readable references in coherence.py, penalty.py and torch.optim.SGD:
 *   - every product and sum is rounded on its own (built with -ffp-contract=off), so a penalty that cancels a
 *     gradient exactly gives exactly 0;
 *   - results do not depend on the number of threads: |g| is summed by blocks of BLOCK elements, and the blocks'
 *     sums are added in order.
 * A block of w, g and momentum stays in a core's cache, so that counting and updating in one call read memory once. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define BLOCK 4096 /* elements; a multiple of LANES that 32 bit lane counters and float lane sums bear */
/* As many as a register of the processor has: vectors of two registers are compared element by element by GCC. */
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif
/* Elements; how far ahead of its use memory is asked for, into the second-level cache, and from there into the first: a
 * core waits for more lines at once there than here. */
#define AHEAD BLOCK
#define SOON 256
#define CACHED 64 /* blocks that stay in a core's caches from step to step: nothing is asked for */

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));

typedef struct {
    float *w;           /* weights */
    float *m;           /* momentum buffer, zeros before the first step; NULL without momentum */
    const float *g;     /* gradient; NULL: the tensor takes no part */
    int64_t n;          /* elements */
    int64_t low, high;  /* the range of them that is counted here */
    float penalty;      /* 2*lam (L2) or lam (L1): what pi is measured with */
    float lr;
    float momentum;
    float decay;        /* of the optimizer itself, where the method does not regularize */
    float l2;           /* 2 where L2 is imposed with strength lam_t, or 0 */
    float l1;           /* lr where L1 is imposed with strength lam_t, or 0 */
    int32_t sign;       /* pi is measured with the penalty of L1 */
    int32_t group;      /* which counts and which lam_t are its */
} Tensor;

typedef struct {
    double sum;          /* of |g| */
    int32_t coherent, n; /* eq. 9 */
} Tally;

/* What the decision of a step is made of, and where it is noted: Decision in gcsr/memory_pass.py. */
typedef struct {
    const float *lam;
    const double *mu;
    const uint8_t *certain;
    const float *certain_lam;
    double *sums; /* of the epoch: steps, pi, imposed, |g| */
    double *pi;
    float *lam_t;
    int32_t by_pi;
} Decision;

static inline floats load(const float *p) {
    floats v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* Eq. 9 on LANES elements: adds to the lanes' counters. Comparisons give -1 where true. */
static inline void tally(floats g, floats w, float penalty, int l1, ints *coherent, ints *n, floats *sum) {
    const floats zero = {0};
    const int32_t minus = 0x80000000; /* the sign's bit */
    const floats p = l1 ? (floats)((w != zero) & ((ints)(zero + penalty) | ((ints)w & minus))) : penalty * w;
    const ints learning = g != zero;
    const floats along = (floats)((ints)(g + p) ^ ((ints)g & minus)); /* g + p, seen along g's sign */
    *coherent -= learning & (along > zero);
    *n -= learning;
    *sum += (floats)((ints)g & 0x7fffffff);
}

static Tally count_range(const Tensor *t, int64_t from, int64_t to, int cached) {
    const float *g = t->g, *w = t->w, penalty = t->penalty;
    const int l1 = t->sign;
    ints coherent = {0}, n = {0};
    floats sum = {0};
    int64_t i = from;
    for (; i + LANES <= to; i += LANES) {
        if (!cached) {
            __builtin_prefetch(g + i + AHEAD, 0, 2);
            __builtin_prefetch(w + i + AHEAD, 0, 2);
            __builtin_prefetch(g + i + SOON);
            __builtin_prefetch(w + i + SOON);
        }
        tally(load(g + i), load(w + i), penalty, l1, &coherent, &n, &sum);
    }
    if (i < to) { /* the rest, filled up with zeros: those are not counted */
        float rest_g[LANES] = {0}, rest_w[LANES] = {0};
        memcpy(rest_g, g + i, (to - i) * sizeof *g);
        memcpy(rest_w, w + i, (to - i) * sizeof *w);
        tally(load(rest_g), load(rest_w), penalty, l1, &coherent, &n, &sum);
    }
    Tally total = {0, 0, 0};
    for (int lane = 0; lane < LANES; lane++) {
        total.coherent += coherent[lane];
        total.n += n[lane];
        total.sum += sum[lane];
    }
    return total;
}

/* torch.optim.SGD's step with the penalty of L2 in front (before the momentum) and eq. 10 of L1 behind it. */
static void update_range(const Tensor *t, float lam_t, int64_t from, int64_t to) {
    float *restrict w = t->w, *restrict m = t->m;
    const float *restrict g = t->g;
    const float lr = t->lr, momentum = t->momentum, decay = t->decay + t->l2 * lam_t, z = t->l1 * lam_t;
    if (m && decay != 0) {
        for (int64_t i = from; i < to; i++) {
            m[i] = momentum * m[i] + (g[i] + decay * w[i]);
            w[i] -= lr * m[i];
        }
    } else if (m) {
        for (int64_t i = from; i < to; i++) {
            m[i] = momentum * m[i] + g[i];
            w[i] -= lr * m[i];
        }
    } else {
        for (int64_t i = from; i < to; i++) w[i] -= lr * (decay != 0 ? g[i] + decay * w[i] : g[i]);
    }
    if (z != 0) {
        for (int64_t i = from; i < to; i++) w[i] -= w[i] > z ? z : w[i] < -z ? -z : w[i];
    }
}

/* Counts (if asked to) and updates (if lam_t is given) all tensors. first_block holds the number of each tensor's first
 * block, and of the block after the last; tallies has room for each block. lam_t, coherent, n and sum have one number a
 * group; the last three are added to. */
void gcsr_pass(const Tensor *tensors, int64_t number, const int64_t *first_block, Tally *tallies, int32_t count,
               const float *lam_t, int32_t threads, int64_t *coherent, int64_t *n, double *sum) {
    const int64_t blocks = first_block[number];
    /* With torch's own OpenMP threads, where there are any: others would fight with them for the cores. */
#pragma omp parallel num_threads(threads)
    {
        int64_t index = 0;
#pragma omp for schedule(static)
        for (int64_t block = 0; block < blocks; block++) {
            while (block >= first_block[index + 1]) index++;
            const Tensor *t = tensors + index;
            const int64_t from = (block - first_block[index]) * BLOCK;
            const int64_t to = from + BLOCK < t->n ? from + BLOCK : t->n;
            const int64_t low = t->low > from ? t->low : from, high = t->high < to ? t->high : to;
            tallies[block] = (Tally){0, 0, 0};
            if (!t->g) continue;
            if (count && low < high) tallies[block] = count_range(t, low, high, blocks <= CACHED);
            if (lam_t) update_range(t, lam_t[t->group], from, to);
        }
    }
    if (!count) return;
    for (int64_t index = 0; index < number; index++) {
        const int32_t group = tensors[index].group;
        for (int64_t block = first_block[index]; block < first_block[index + 1]; block++) {
            coherent[group] += tallies[block].coherent;
            n[group] += tallies[block].n;
            sum[group] += tallies[block].sum;
        }
    }
}

/* Eq. 9 from its counts, and eq. 8. */
static void decide(const Decision *by, int64_t coherent, int64_t n, double sum) {
    const double pi = sum < INFINITY ? coherent / (double)(n ? n : 1) : NAN; /* nor is NaN less */
    const int imposed = by->by_pi ? pi > *by->mu : *by->certain;
    *by->pi = pi;
    *by->lam_t = imposed ? *by->lam : 0;
    const double noted[] = {1, pi, imposed, sum};
    for (int i = 0; i < 4; i++) by->sums[i] += noted[i];
}

/* A whole step of tensors that are all in the first group: coherence, decision, update. Where the decision does not wait
 * for the count, one pass does both. */
void gcsr_step(const Tensor *tensors, int64_t number, const int64_t *first_block, Tally *tallies, int32_t threads,
               const Decision *by) {
    int64_t coherent = 0, n = 0;
    double sum = 0;
    gcsr_pass(tensors, number, first_block, tallies, 1, by->by_pi ? 0 : by->certain_lam, threads, &coherent, &n, &sum);
    decide(by, coherent, n, sum);
    if (by->by_pi) gcsr_pass(tensors, number, first_block, tallies, 0, by->lam_t, threads, &coherent, &n, &sum);
}

int32_t gcsr_block(void) { return BLOCK; }
