// Threads of a call, and where they wait for one another: OpenMP's, so that torch's operators and these kernels share
// one pool.
#pragma once

#ifdef _OPENMP
#include <omp.h>
static inline int team(void) { return omp_get_num_threads(); }
static inline int member(void) { return omp_get_thread_num(); }
#else
static inline int team(void) { return 1; }
static inline int member(void) { return 0; }
#endif

static inline void meet(void)
{
#pragma omp barrier
}
