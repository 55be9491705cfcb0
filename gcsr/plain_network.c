/* Answers, losses, gradients and whole epochs of a plain ReLU network (mlpK), float32 on CPUs. Called by
 * gcsr/native_network.py and gcsr/native_epoch.py; the readable references are in gcsr/plain_network.py and
 * gcsr/trainer.py.
 *
 * Nearly all that such a training computes is products of matrices of some 128 x 128: all three of a layer stay in a
 * core's cache, and ReLU, its derivative and the bias are done while a product is still in registers. Built with
 * -ffp-contract=fast: an element is summed in the order of k, by fused multiply-adds where the processor has them,
 * whichever row or column it is in: results depend neither on the number of threads nor on the width of the vectors,
 * but on whether there are fused multiply-adds. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef LANES
#elif defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#define COLUMNS (2 * LANES) /* of a tile: ROWS x COLUMNS elements of a product are summed in registers */
#if LANES == 16
#define ROWS 8 /* of 32 registers; also half of a cache line, where a factor's column is a row of memory */
#else
#define ROWS 6 /* of 16 */
#endif
#if !defined(SHUFFLES) && defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLES 1 /* GCC before 12 has none */
#endif
#endif
#define DEPTH 512       /* of a tile's sum: so many rows of a panel stay in the first or second level cache */
#define CHUNK 256       /* images that are answered at once */
#define PARALLEL 500000 /* multiplications; waking other threads costs some microseconds */

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef float four __attribute__((vector_size(16)));
typedef float eight __attribute__((vector_size(32)));
typedef float unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

typedef struct {
    const float *weight; /* [out, in] */
    const float *bias;   /* [out] */
    float *weight_grad, *bias_grad;
    int64_t in, out;
} Layer;

/* Element (i, j) is p[i * row + j * column]. */
typedef struct {
    const float *p;
    int64_t row, column;
} Matrix;

/* What becomes of a product: the bias is added and negative elements become 0, or those where the layer's output was
 * not positive do. NaN stays NaN. */
typedef struct {
    const float *bias, *kept; /* kept: like the product */
    int relu;
} Ending;

static inline floats load(const float *p) { return *(const unaligned *)p; }
static inline void store(float *p, floats v) { *(unaligned *)p = v; }

/* A tile of c = a b: `rows` (a constant where this is inlined) times COLUMNS elements. */
static inline __attribute__((always_inline)) void tile(const int rows, int64_t depth, Matrix a, const float *panel,
                                                       float *c, int64_t width, int more, Ending ending) {
    const floats zero = {0};
    floats sum[ROWS][2];
    for (int i = 0; i < rows; i++)
        for (int half = 0; half < 2; half++) {
            const int at = half * LANES;
            sum[i][half] = more ? load(c + i * width + at) : ending.bias ? load(ending.bias + at) : zero;
        }
    for (int64_t k = 0; k < depth; k++) {
        const floats left = load(panel + k * COLUMNS), right = load(panel + k * COLUMNS + LANES);
        for (int i = 0; i < rows; i++) {
            const float factor = a.p[i * a.row + k * a.column];
            sum[i][0] += factor * left;
            sum[i][1] += factor * right;
        }
    }
    for (int i = 0; i < rows; i++)
        for (int half = 0; half < 2; half++) {
            floats v = sum[i][half];
            if (ending.relu) v = (floats)((ints)v & ~(v < zero));
            if (ending.kept) v = (floats)((ints)v & ~(load(ending.kept + i * width + half * LANES) <= zero));
            store(c + i * width + half * LANES, v);
        }
}

/* Of the last rows. */
static void short_tile(int64_t rows, int64_t depth, Matrix a, const float *panel, float *c, int64_t width, int more,
                        Ending ending) {
    switch (rows) {
#if ROWS == 8
    case 8: tile(8, depth, a, panel, c, width, more, ending); break;
    case 7: tile(7, depth, a, panel, c, width, more, ending); break;
#endif
    case 6: tile(6, depth, a, panel, c, width, more, ending); break;
    case 5: tile(5, depth, a, panel, c, width, more, ending); break;
    case 4: tile(4, depth, a, panel, c, width, more, ending); break;
    case 3: tile(3, depth, a, panel, c, width, more, ending); break;
    case 2: tile(2, depth, a, panel, c, width, more, ending); break;
    case 1: tile(1, depth, a, panel, c, width, more, ending); break;
    }
}

/* The last columns of a product, fewer than a tile has: in a tile of their own. */
static void narrow_tile(int64_t rows, int64_t depth, Matrix a, const float *panel, float *c, int64_t width, int more,
                        Ending ending, int64_t columns) {
    float own[ROWS * COLUMNS] = {0}, kept[ROWS * COLUMNS] = {0}, bias[COLUMNS] = {0};
    for (int64_t i = 0; i < rows; i++) {
        if (more) memcpy(own + i * COLUMNS, c + i * width, columns * sizeof *c);
        if (ending.kept) memcpy(kept + i * COLUMNS, ending.kept + i * width, columns * sizeof *c);
    }
    if (ending.bias) memcpy(bias, ending.bias, columns * sizeof *c);
    const Ending padded = {ending.bias ? bias : 0, ending.kept ? kept : 0, ending.relu};
    short_tile(rows, depth, a, panel, own, COLUMNS, more, padded);
    for (int64_t i = 0; i < rows; i++) memcpy(c + i * width, own + i * COLUMNS, columns * sizeof *c);
}

/* Eight rows of eight elements each, `row` apart, become columns of the panel. */
static inline void transpose(float *panel, const float *p, int64_t row) {
#if SHUFFLES
    for (int half = 0; half < 8; half += 4) {
        eight r[4];
        for (int i = 0; i < 4; i++) {
            four low, high;
            memcpy(&low, p + i * row + half, sizeof low);
            memcpy(&high, p + (i + 4) * row + half, sizeof high);
            r[i] = __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7);
        }
        for (int pair = 0; pair < 4; pair += 2) {
            const eight one = pair ? __builtin_shufflevector(r[0], r[1], 2, 10, 3, 11, 6, 14, 7, 15)
                                   : __builtin_shufflevector(r[0], r[1], 0, 8, 1, 9, 4, 12, 5, 13);
            const eight other = pair ? __builtin_shufflevector(r[2], r[3], 2, 10, 3, 11, 6, 14, 7, 15)
                                     : __builtin_shufflevector(r[2], r[3], 0, 8, 1, 9, 4, 12, 5, 13);
            const eight even = __builtin_shufflevector(one, other, 0, 1, 8, 9, 4, 5, 12, 13);
            const eight odd = __builtin_shufflevector(one, other, 2, 3, 10, 11, 6, 7, 14, 15);
            memcpy(panel + (half + pair) * COLUMNS, &even, sizeof even);
            memcpy(panel + (half + pair + 1) * COLUMNS, &odd, sizeof odd);
        }
    }
#else
    for (int j = 0; j < 8; j++)
        for (int i = 0; i < 8; i++) panel[i * COLUMNS + j] = p[j * row + i];
#endif
}

/* `columns` columns of b, row by row, filled up to COLUMNS with zeros; of b the rows or the columns lie in one piece. */
static void pack(float *panel, Matrix b, int64_t depth, int64_t columns) {
    if (columns < COLUMNS) memset(panel, 0, depth * COLUMNS * sizeof *panel);
    if (b.column == 1) {
        for (int64_t k = 0; k < depth; k++) memcpy(panel + k * COLUMNS, b.p + k * b.row, columns * sizeof *panel);
        return;
    }
    int64_t k = 0;
    for (; k + 8 <= depth; k += 8) { /* a cache line is used up before the next is asked for */
        int64_t j = 0;
        for (; j + 8 <= columns; j += 8) transpose(panel + k * COLUMNS + j, b.p + j * b.column + k, b.column);
        for (; j < columns; j++)
            for (int64_t i = 0; i < 8; i++) panel[(k + i) * COLUMNS + j] = b.p[j * b.column + k + i];
    }
    for (; k < depth; k++)
        for (int64_t j = 0; j < columns; j++) panel[k * COLUMNS + j] = b.p[j * b.column + k];
}

/* Columns j to j + COLUMNS of c = a b, with a [m, depth], b [depth, n] and c [m, n] in row order. */
static void multiply_panel(int64_t j, int64_t m, int64_t n, int64_t depth, Matrix a, Matrix b, float *c,
                           Ending ending) {
    float panel[DEPTH * COLUMNS] __attribute__((aligned(64)));
    const int64_t columns = n - j < COLUMNS ? n - j : COLUMNS;
    for (int64_t from = 0; from < depth; from += DEPTH) {
        const int64_t part = depth - from < DEPTH ? depth - from : DEPTH;
        const int more = from > 0, last = from + part == depth;
        const Matrix below = {b.p + from * b.row + j * b.column, b.row, b.column};
        pack(panel, below, part, columns);
        for (int64_t i = 0; i < m; i += ROWS) {
            const int64_t rows = m - i < ROWS ? m - i : ROWS;
            const Matrix beside = {a.p + i * a.row + from * a.column, a.row, a.column};
            const Ending end = {ending.bias ? ending.bias + j : 0,
                                last && ending.kept ? ending.kept + i * n + j : 0, last && ending.relu};
            if (columns < COLUMNS)
                narrow_tile(rows, part, beside, panel, c + i * n + j, n, more, end, columns);
            else if (rows == ROWS)
                tile(ROWS, part, beside, panel, c + i * n + j, n, more, end);
            else
                short_tile(rows, part, beside, panel, c + i * n + j, n, more, end);
        }
    }
}

static void multiply(int64_t m, int64_t n, int64_t depth, Matrix a, Matrix b, float *c, Ending ending, int threads) {
    if (threads == 1 || m * n * depth < PARALLEL) {
        for (int64_t j = 0; j < n; j += COLUMNS) multiply_panel(j, m, n, depth, a, b, c, ending);
        return;
    }
#pragma omp parallel for num_threads(threads)
    for (int64_t j = 0; j < n; j += COLUMNS) multiply_panel(j, m, n, depth, a, b, c, ending);
}

/* given [batch, in] -> output [batch, out] */
static void forward(const Layer *layer, int hidden, const float *given, int64_t batch, float *output, int threads) {
    const Matrix images = {given, layer->in, 1}, transposed = {layer->weight, 1, layer->in};
    const Ending ending = {layer->bias, 0, hidden};
    multiply(batch, layer->out, layer->in, images, transposed, output, ending, threads);
}

/* logits [batch, classes] become d loss / d logits; the mean cross-entropy is returned. */
static float softmax(float *logits, const int64_t *labels, int64_t batch, int64_t classes) {
    double loss = 0;
    const float share = 1.0f / batch;
    for (int64_t b = 0; b < batch; b++) {
        float *row = logits + b * classes;
        float most = row[0], sum = 0;
        for (int64_t j = 1; j < classes; j++) most = row[j] > most ? row[j] : most;
        const float right = row[labels[b]] - most;
        for (int64_t j = 0; j < classes; j++) sum += row[j] = expf(row[j] - most);
        loss += logf(sum) - right; /* what is not finite makes the sum NaN */
        for (int64_t j = 0; j < classes; j++) row[j] = row[j] / sum * share;
        row[labels[b]] -= share;
    }
    return loss / batch;
}

/* delta [batch, out], d loss / d output, and what the layer was given -> the layer's gradients */
static void gradients(const Layer *layer, const float *given, const float *delta, int64_t batch, int threads) {
    const Matrix transposed = {delta, 1, layer->out}, images = {given, layer->in, 1};
    multiply(layer->out, layer->in, batch, transposed, images, layer->weight_grad, (Ending){0, 0, 0}, threads);
    float *sum = layer->bias_grad;
    memset(sum, 0, layer->out * sizeof *sum);
    for (int64_t b = 0; b < batch; b++)
        for (int64_t j = 0; j < layer->out; j++) sum[j] += delta[b * layer->out + j];
}

/* -> d loss / d given [batch, in], where `given` is the ReLU layer's output below */
static void backward(const Layer *layer, const float *given, const float *delta, int64_t batch, float *below,
                     int threads) {
    const Matrix deltas = {delta, layer->out, 1}, weight = {layer->weight, layer->in, 1};
    multiply(batch, layer->in, layer->out, deltas, weight, below, (Ending){0, given, 0}, threads);
}

static int64_t widest(const Layer *layers, int64_t depth) {
    int64_t most = 0;
    for (int64_t l = 0; l < depth; l++) most = layers[l].out > most ? layers[l].out : most;
    return most;
}

/* Elements of memory that a batch needs. */
int64_t gcsr_plain_scratch(const Layer *layers, int64_t depth, int64_t batch) {
    int64_t outputs = 0;
    for (int64_t l = 0; l < depth; l++) outputs += layers[l].out;
    const int64_t losses = batch * (outputs + 2 * widest(layers, depth)), answers = 2 * CHUNK * widest(layers, depth);
    return losses > answers ? losses : answers;
}

/* Mean cross-entropy of a batch, and its gradients where the layers say.
 *
 * images [batch, in]; labels [batch]; scratch: gcsr_plain_scratch of the batch. */
float gcsr_plain_loss(const Layer *layers, int64_t depth, const float *images, const int64_t *labels, int64_t batch,
                      float *scratch, int32_t threads) {
    float *delta = scratch, *below = delta + batch * widest(layers, depth);
    float *const outputs = below + batch * widest(layers, depth);
    const float *given = images;
    float *output = outputs;
    for (int64_t l = 0; l < depth; l++) {
        forward(layers + l, l < depth - 1, given, batch, output, threads);
        given = output;
        output += batch * layers[l].out;
    }
    const int64_t classes = layers[depth - 1].out;
    memcpy(delta, given, batch * classes * sizeof *delta);
    const float mean = softmax(delta, labels, batch, classes);
    for (int64_t l = depth - 1; l >= 0; l--) {
        given = l ? given - batch * layers[l - 1].out : images;
        gradients(layers + l, given, delta, batch, threads);
        if (!l) break;
        backward(layers + l, given, delta, batch, below, threads);
        float *const next = below;
        below = delta;
        delta = next;
    }
    return mean;
}

static int64_t best(const float *logits, int64_t classes) {
    int64_t found = 0;
    for (int64_t j = 1; j < classes; j++)
        if (logits[j] > logits[found] || (isnan(logits[j]) && !isnan(logits[found]))) found = j;
    return found;
}

/* The class that each image is given: answers [number]; images [number, in] are taken by chunks, which fit into
 * gcsr_plain_scratch of no batch. */
void gcsr_plain_answers(const Layer *layers, int64_t depth, const float *images, int64_t number, float *scratch,
                        int32_t threads, int64_t *answers) {
    float *output = scratch, *other = output + CHUNK * widest(layers, depth);
    const int64_t classes = layers[depth - 1].out;
    for (int64_t from = 0; from < number; from += CHUNK) {
        const int64_t chunk = number - from < CHUNK ? number - from : CHUNK;
        const float *given = images + from * layers->in;
        for (int64_t l = 0; l < depth; l++) {
            forward(layers + l, l < depth - 1, given, chunk, output, threads);
            given = output;
            output = other;
            other = (float *)given;
        }
        for (int64_t b = 0; b < chunk; b++) answers[from + b] = best(given + b * classes, classes);
    }
}

/* Of a tensor: elements that are not 0 are added to *nonzero; the sum of |p| is returned, in the same order everywhere. */
static double measured(const float *p, int64_t number, int64_t *nonzero) {
    double sums[8] = {0}, sum = 0;
    for (int64_t i = 0; i < number; i++) *nonzero += p[i] != 0;
    int64_t i = 0;
    for (; i + 8 <= number; i += 8)
        for (int j = 0; j < 8; j++) sums[j] += fabsf(p[i + j]);
    for (; i < number; i++) sums[0] += fabsf(p[i]);
    for (int j = 0; j < 8; j++) sum += sums[j];
    return sum;
}

/* Parameters that are not 0, and the sum of |w| over the weights without biases. */
void gcsr_plain_measures(const Layer *layers, int64_t depth, int64_t *nonzero, double *sum) {
    *nonzero = 0;
    *sum = 0;
    for (int64_t l = 0; l < depth; l++) {
        *sum += measured(layers[l].weight, layers[l].in * layers[l].out, nonzero);
        measured(layers[l].bias, layers[l].out, nonzero);
    }
}

/* gcsr_step of memory_pass.c, which is built with other roundings, and what it is given. */
typedef struct {
    void (*step)(const void *tensors, int64_t number, const int64_t *first_block, void *tallies, int32_t threads,
                 const void *decision);
    const void *tensors; /* the network's weights and gradients */
    int64_t number;
    const int64_t *first_block;
    void *tallies;
    const void *decision;
    int32_t threads;
} Stepping;

/* Elements of memory that an epoch needs. */
int64_t gcsr_plain_epoch_scratch(const Layer *layers, int64_t depth, int64_t batch) {
    return batch * (2 + layers->in) + gcsr_plain_scratch(layers, depth, batch);
}

/* An epoch, or a part of one.
 *
 * images [.., in] and labels: all there are; order [number]: those that are taken, batch by batch; loss_sum: the
 * batches' mean losses times their images are added to it. */
void gcsr_plain_epoch(const Layer *layers, int64_t depth, const Stepping *by, const float *images,
                      const int64_t *labels, const int64_t *order, int64_t number, int64_t batch, float *scratch,
                      int32_t threads, double *loss_sum) {
    const int64_t in = layers->in;
    int64_t *const classes = (int64_t *)scratch;
    float *const taken = scratch + 2 * batch;
    for (int64_t from = 0; from < number; from += batch) {
        const int64_t size = number - from < batch ? number - from : batch;
        for (int64_t b = 0; b < size; b++) {
            memcpy(taken + b * in, images + order[from + b] * in, in * sizeof *taken);
            classes[b] = labels[order[from + b]];
        }
        const float mean = gcsr_plain_loss(layers, depth, taken, classes, size, taken + batch * in, threads);
        *loss_sum += mean * (double)size;
        by->step(by->tensors, by->number, by->first_block, by->tallies, by->threads, by->decision);
    }
}
