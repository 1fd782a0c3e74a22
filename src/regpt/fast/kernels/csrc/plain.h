// No instructions in particular: what any C compiler makes of this, on any processor.
#define INSTRUCTIONS_NAME "plain C"

#define LANE_BY_LANE(name, arguments, expression)    \
    static inline vfloat name arguments              \
    {                                                \
        vfloat out;                                  \
        for (int i = 0; i < LANES; i++) out[i] = expression; \
        return out;                                  \
    }
LANE_BY_LANE(larger, (vfloat a, vfloat b), a[i] > b[i] ? a[i] : b[i])
LANE_BY_LANE(smaller, (vfloat a, vfloat b), a[i] < b[i] ? a[i] : b[i])
LANE_BY_LANE(root, (vfloat x), sqrtf(x[i]))

static inline vfloat muladd(vfloat a, vfloat b, vfloat c) { return a * b + c; }

static inline vfloat nearest(vfloat x) { return x + 0x1.8p23f - 0x1.8p23f; }  // of what lies below 2^22

static inline float sum_of(vfloat x) { return (x[0] + x[2]) + (x[1] + x[3]); }
static inline float largest_of(vfloat x) { return fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3])); }
static inline float least_of(vfloat x) { return fminf(fminf(x[0], x[1]), fminf(x[2], x[3])); }

static inline int any_at_least(vfloat x, vfloat y)
{
    vint is = x >= y;
    return (is[0] | is[1] | is[2] | is[3]) != 0;
}

static inline vbits wide(vhalf x) { return __builtin_convertvector(x, vbits); }
static inline vhalf narrow(vbits x) { return __builtin_convertvector(x, vhalf); }

static inline void store_bytes(char *place, vint x)
{
    for (int i = 0; i < LANES; i++) place[i] = (char)x[i];
}

static inline vfloat sums_of(const vfloat x[LANES]) { return (vfloat){sum_of(x[0]), sum_of(x[1]), sum_of(x[2]), sum_of(x[3])}; }
