// int8 panels for decode.c.
#include "vectors.h"

// A row of `inputs` numbers as int8, of the given step, into its place in a panel; their sum.
static int64_t pack_row(const float *row, int64_t inputs, float step, char *place)
{
    int64_t total = 0;
    for (int64_t k = 0; k < inputs; k += LANES) {
        char bytes[LANES];
        store_bytes(bytes, whole(smaller(larger(nearest(load(row + k) / step), all(-127.0f)), all(127.0f))));
        for (int i = 0; i < LANES; i += 4) memcpy(place + (k + i) * PANEL, bytes + i, 4);
        for (int i = 0; i < LANES; i++) total += (int8_t)bytes[i];
    }
    return total;
}

// int8 panels of a float32 matrix (outputs, inputs): what `Panels` does with torch, quicker.
void regpt_pack_int8(const float *weight, int64_t outputs, int64_t inputs, char *out, float *scale,
                     float *sums, int64_t threads)
{
    int64_t panels = (outputs + PANEL - 1) / PANEL;
    (void)threads;
#pragma omp parallel for num_threads((int)threads) schedule(static)
    for (int64_t p = 0; p < panels; p++) {
        char *panel = out + p * PANEL * inputs;
        memset(panel, 0, PANEL * inputs);
        for (int64_t n = p * PANEL; n < outputs && n < (p + 1) * PANEL; n++) {
            const float *row = weight + n * inputs;
            vfloat largest = all(1e-12f);
            for (int64_t k = 0; k < inputs; k += LANES) {
                vfloat x = load(row + k);
                largest = larger(larger(x, -x), largest);
            }
            scale[n] = largest_of(largest) / 127;
            sums[n] = (float)pack_row(row, inputs, scale[n], panel + 4 * (n % PANEL)) * scale[n];
        }
    }
}
