// Threads of a call, and where they wait for one another.
//
// They are OpenMP's, so that torch's operators and these kernels share one pool. OpenMP's own barrier spins for
// milliseconds before it sleeps; beside another busy process, which may hold the core of the one waited for, that
// costs ten times what it saves. Here who waits offers its core to others after about a microsecond.
#pragma once
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>

#ifdef _OPENMP
#include <omp.h>
static inline int team(void) { return omp_get_num_threads(); }
static inline int member(void) { return omp_get_thread_num(); }
#else
static inline int team(void) { return 1; }
static inline int member(void) { return 0; }
#endif

enum { SPINS = 100 };

typedef struct {
    _Atomic int arrived, round;
} Gate;

static inline void meet(Gate *gate, int64_t threads)
{
    int round = atomic_load(&gate->round);
    if (atomic_fetch_add(&gate->arrived, 1) == threads - 1) {
        atomic_store(&gate->arrived, 0);
        atomic_store(&gate->round, round + 1);
        return;
    }
    for (int spins = 0; atomic_load(&gate->round) == round; spins++) {
        if (spins >= SPINS) sched_yield();
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }
}
