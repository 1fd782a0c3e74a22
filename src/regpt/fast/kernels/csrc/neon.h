// NEON of 64-bit ARM, and its dot products of int8 and bfloat16 where the processor has them.
#include <arm_neon.h>

#define INSTRUCTIONS_NAME "NEON"
#define HAS_PAIRS
#define LEAST_BYTE -128  // its products of bytes want both signed

static inline vfloat muladd(vfloat a, vfloat b, vfloat c) { return vfmaq_f32(c, a, b); }
static inline vfloat larger(vfloat a, vfloat b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
static inline vfloat smaller(vfloat a, vfloat b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
static inline vfloat root(vfloat x) { return vsqrtq_f32(x); }
static inline vfloat nearest(vfloat x) { return vrndnq_f32(x); }
static inline float sum_of(vfloat x) { return vaddvq_f32(x); }
static inline float largest_of(vfloat x) { return vmaxvq_f32(x); }
static inline float least_of(vfloat x) { return vminvq_f32(x); }
static inline int any_at_least(vfloat x, vfloat y) { return vmaxvq_u32(vcgeq_f32(x, y)) != 0; }

static inline vbits wide(vhalf x) { return (vbits)vmovl_u16((uint16x4_t)x); }
static inline vhalf narrow(vbits x) { return (vhalf)vmovn_u32((uint32x4_t)x); }

static inline void store_bytes(char *place, vint x)
{
    uint16x4_t low = vmovn_u32((uint32x4_t)x);
    vst1_lane_u32((uint32_t *)place, vreinterpret_u32_u8(vmovn_u16(vcombine_u16(low, low))), 0);
}

static inline vfloat sums_of(const vfloat x[LANES]) { return vpaddq_f32(vpaddq_f32(x[0], x[1]), vpaddq_f32(x[2], x[3])); }

static inline vint dot_pairs(vint x, vint w)
{
    int16x8_t a = (int16x8_t)x, b = (int16x8_t)w;
    return (vint)vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(b)), vmull_high_s16(a, b));
}

#ifdef __ARM_FEATURE_BF16_VECTOR_ARITHMETIC
#define HAS_BF16 " BF16"
static inline vfloat dot_bf16(vfloat sum, Operand x, Operand w)
{
    return vbfdotq_f32(sum, (bfloat16x8_t)x.even, (bfloat16x8_t)w.even);
}
#endif

#ifdef __ARM_FEATURE_DOTPROD
#define HAS_INT8 " DOTPROD"
static inline vint dot_int8(vint sum, Operand x, Operand w)
{
    return (vint)vdotq_s32((int32x4_t)sum, (int8x16_t)x.even, (int8x16_t)w.even);
}
#endif
