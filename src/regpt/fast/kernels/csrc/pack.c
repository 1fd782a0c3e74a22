// int8 panels for decode.c, and which kinds of weights this build multiplies.
#include <omp.h>

#include "vectors.h"

// int8 panels of a float32 matrix (outputs, inputs): what `Panels` does with torch, quicker.
void regpt_pack_int8(const float *weight, int64_t outputs, int64_t inputs, char *out, float *scale,
                     float *sums, int64_t threads)
{
    int64_t panels = (outputs + PANEL - 1) / PANEL;
#pragma omp parallel for num_threads((int)threads) schedule(static)
    for (int64_t p = 0; p < panels; p++) {
        int64_t here = outputs - p * PANEL < PANEL ? outputs - p * PANEL : PANEL, total[PANEL] = {0};
        const float *rows = weight + p * PANEL * inputs;
        char *place = out + p * PANEL * inputs;
        float *step = scale + p * PANEL;
        for (int64_t n = 0; n < here; n++) {
            float largest = 0;
            for (int64_t k = 0; k < inputs; k++) {
                float size = fabsf(rows[n * inputs + k]);
                largest = size > largest ? size : largest;
            }
            step[n] = (largest > 1e-12f ? largest : 1e-12f) / 127;
        }
        for (int64_t k = 0; k < inputs; k += 4, place += 4 * PANEL)
            for (int64_t n = 0; n < PANEL; n++) {
                int32_t four = 0;
                if (n < here) {
                    __m128 x = _mm_div_ps(_mm_loadu_ps(rows + n * inputs + k), _mm_set1_ps(step[n]));
                    __m128i q = _mm_cvtps_epi32(x);
                    q = _mm_max_epi32(_mm_min_epi32(q, _mm_set1_epi32(127)), _mm_set1_epi32(-127));
                    four = _mm_cvtsi128_si32(_mm_cvtepi32_epi8(q));
                    total[n] += (int8_t)four + (int8_t)(four >> 8) + (int8_t)(four >> 16) + (int8_t)(four >> 24);
                }
                memcpy(place + 4 * n, &four, 4);
            }
        for (int64_t n = 0; n < here; n++) sums[p * PANEL + n] = (float)total[n] * step[n];
    }
}

// Whether this build multiplies weights of a kind.
int regpt_supports(int64_t kind)
{
    (void)kind;
#ifndef __AVX512BF16__
    if (kind == BF16) return 0;
#endif
#ifndef __AVX512VNNI__
    if (kind == INT8) return 0;
#endif
    return 1;
}
