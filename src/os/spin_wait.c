/*
 * spin_wait.c - see spin_wait.h
 */
#include "os/spin_wait.h"

#include "base/bits.h"
#include "base/clock.h"

#define SPIN_MIN_NS 10000u
#define SPIN_MAX_NS 100000u
#define SPIN_GAP_NS 20000u
#define SPIN_PAUSE_NS 100000000u

uint64_t spin_wait(struct spin_wait *s, const _Atomic uint32_t *word, uint32_t bits, uint64_t start)
{
    uint64_t now = start, last;

    while (!(atomic_load_explicit(word, memory_order_relaxed) & bits) &&
           now - start < s->limit_ns) {
        for (unsigned i = 0; i < 8; i++)
            __builtin_ia32_pause();
        last = now;
        now = clock_now_ns();
        if (now - last > SPIN_GAP_NS) {
            s->limit_ns = 0;
            s->after_ns = now + SPIN_PAUSE_NS;
        }
    }
    return now - start;
}

void spin_wait_slept(struct spin_wait *s, uint64_t start, uint64_t now, bool is_allowed)
{
    if (now - start > SPIN_MAX_NS || now < s->after_ns || !is_allowed)
        s->limit_ns = 0;
    else
        s->limit_ns = MIN(MAX(2 * s->limit_ns, SPIN_MIN_NS), SPIN_MAX_NS);
}
