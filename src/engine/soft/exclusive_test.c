/*
 * exclusive_test.c - exclusive sections of several threads: a counter that only they protect
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "engine/soft/exclusive.h"
#include "engine/soft/vcpu.h"

#define VCPUS 4u
#define ROUNDS 2000u

struct shared {
    struct soft_engine engine;
    uint64_t counter;          /* changed in exclusive sections only, not atomically */
    _Atomic uint32_t in_guest; /* vCPUs between enter and leave, beside the owner */
    _Atomic uint32_t violations;
    _Atomic uint32_t finished;
};

struct worker {
    struct shared *shared;
    struct soft_vcpu *v;
};

static void check_alone(struct shared *s, uint32_t expected)
{
    if (atomic_load(&s->in_guest) != expected)
        atomic_fetch_add(&s->violations, 1);
    s->counter++;
}

/* A vCPU's life: in guest, poll, sometimes an exclusive section, sometimes a host call. */
static void *vcpu_thread(void *arg)
{
    struct worker *w = arg;
    struct shared *s = w->shared;
    struct soft_vcpu *v = w->v;

    soft_guest_enter(v);
    for (unsigned i = 0; i < ROUNDS; i++) {
        atomic_fetch_add(&s->in_guest, 1);
        for (unsigned n = 0; n < 50; n++)
            __asm__ volatile("pause");
        atomic_fetch_sub(&s->in_guest, 1);
        if (!__atomic_load_n(&v->go, __ATOMIC_RELAXED)) {
            __atomic_store_n(&v->go, 1, __ATOMIC_SEQ_CST);
            soft_guest_yield(v);
        }
        if (i % 8 == v->index) {
            soft_exclusive_begin(v);
            check_alone(s, 0);
            soft_exclusive_begin(v); /* nested */
            check_alone(s, 0);
            soft_exclusive_end(v);
            soft_exclusive_end(v);
        }
        if (i % 16 == 5) {
            soft_guest_leave(v);
            soft_guest_enter(v);
        }
    }
    soft_guest_leave(v);
    atomic_fetch_add(&s->finished, 1);
    return NULL;
}

static void *device_thread(void *arg)
{
    struct shared *s = arg;

    for (unsigned i = 0; i < ROUNDS / 8; i++) {
        soft_exclusive_begin_outside(&s->engine);
        check_alone(s, 0);
        soft_exclusive_end_outside(&s->engine);
    }
    return NULL;
}

static void sections_exclude_everyone(void **state)
{
    struct shared *s = calloc(1, sizeof(*s));
    struct worker workers[VCPUS];
    pthread_t threads[VCPUS], device;

    assert_non_null(s);
    assert_int_equal(soft_exclusive_create(&s->engine.exclusive, NULL), 0);
    s->engine.vcpu_count = VCPUS;
    for (unsigned i = 0; i < VCPUS; i++) {
        workers[i].shared = s;
        workers[i].v = aligned_alloc(64, align_up(sizeof(struct soft_vcpu), 64));
        assert_non_null(workers[i].v);
        memset(workers[i].v, 0, sizeof(struct soft_vcpu));
        workers[i].v->engine = &s->engine;
        workers[i].v->index = i;
        s->engine.vcpus[i] = workers[i].v;
    }
    for (unsigned i = 0; i < VCPUS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, vcpu_thread, &workers[i]), 0);
    assert_int_equal(pthread_create(&device, NULL, device_thread, s), 0);
    for (unsigned i = 0; i < VCPUS; i++)
        pthread_join(threads[i], NULL);
    pthread_join(device, NULL);

    assert_int_equal(atomic_load(&s->violations), 0);
    assert_int_equal(s->counter, VCPUS * (ROUNDS / 8) * 2 + ROUNDS / 8);
    for (unsigned i = 0; i < VCPUS; i++)
        free(workers[i].v);
    soft_exclusive_destroy(s->engine.exclusive);
    free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sections_exclude_everyone),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
