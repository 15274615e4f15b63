/*
 * exclusive.c - stopping every other vCPU outside guest code
 *
 * Invariant: while a section is exclusive, no vCPU but its owner has is_in_guest set, and none
 * can set it and go on. The fast path of entering and leaving is one exchange and one load each
 * (Dekker's pattern: the vCPU stores is_in_guest and then loads is_pending, the owner stores
 * is_pending and then loads is_in_guest; with sequential consistency at least one of the two
 * sees the other).
 *
 * Whoever begins a section leaves the guest while it waits for its turn, so another section may
 * run in between: what was read from guest memory or from the TLB before soft_exclusive_begin
 * has to be read again after it.
 *
 * Host calls (host.c) are made outside the guest and must not be made by a section's owner, so a
 * device lock that a vCPU waits for there never stands in the way of a section that a device's
 * thread begins with that lock held.
 */
#include "engine/soft/exclusive.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "engine/soft/vcpu.h"
#include "os/tsc.h"

struct soft_exclusive {
    pthread_mutex_t lock;
    pthread_cond_t changed;            /* somebody left the guest, or the section ended */
    _Atomic uint32_t is_pending;       /* written under lock: a section is wanted or runs */
    bool has_owner;                    /* under lock */
    _Atomic(struct soft_vcpu *) owner; /* a vCPU compares it with itself only */
    unsigned depth;                    /* the owner's own: sections nested in its section */
    bool was_in_guest;                 /* the owner's state before; the owner's own */
};

int soft_exclusive_create(struct soft_exclusive **out, struct err *e)
{
    struct soft_exclusive *x = calloc(1, sizeof(*x));

    if (x == NULL)
        return err_set(e, ENOMEM, "allocate the engine's exclusive lock");
    pthread_mutex_init(&x->lock, NULL);
    pthread_cond_init(&x->changed, NULL);
    *out = x;
    return 0;
}

void soft_exclusive_destroy(struct soft_exclusive *x)
{
    if (x == NULL)
        return;
    pthread_cond_destroy(&x->changed);
    pthread_mutex_destroy(&x->lock);
    free(x);
}

/* Outside the guest with a section pending: wait until it is over. */
static void exclusive_wait_over(struct soft_exclusive *x, struct soft_vcpu *v)
{
    uint64_t start = tsc_read();

    if (v->is_fpu_live)
        soft_fpu_save(v);
    pthread_mutex_lock(&x->lock);
    pthread_cond_broadcast(&x->changed);
    while (atomic_load_explicit(&x->is_pending, memory_order_relaxed))
        pthread_cond_wait(&x->changed, &x->lock);
    pthread_mutex_unlock(&x->lock);
    v->stats.exclusive_waits++;
    v->stats.exclusive_tsc += tsc_read() - start;
}

void soft_guest_enter(struct soft_vcpu *v)
{
    struct soft_exclusive *x = v->engine->exclusive;

    atomic_store(&v->is_in_guest, 1);
    while (UNLIKELY(atomic_load(&x->is_pending)) && atomic_load(&x->owner) != v) {
        atomic_store(&v->is_in_guest, 0);
        exclusive_wait_over(x, v);
        atomic_store(&v->is_in_guest, 1);
    }
}

void soft_guest_leave(struct soft_vcpu *v)
{
    struct soft_exclusive *x = v->engine->exclusive;

    atomic_store(&v->is_in_guest, 0);
    if (UNLIKELY(atomic_load(&x->is_pending))) {
        if (v->is_fpu_live)
            soft_fpu_save(v);
        pthread_mutex_lock(&x->lock);
        pthread_cond_broadcast(&x->changed);
        pthread_mutex_unlock(&x->lock);
    }
}

void soft_guest_yield(struct soft_vcpu *v)
{
    if (LIKELY(!atomic_load(&v->engine->exclusive->is_pending)))
        return;
    soft_guest_leave(v);
    soft_guest_enter(v);
}

static bool exclusive_others_in_guest(struct soft_engine *se, const struct soft_vcpu *self)
{
    for (unsigned i = 0; i < se->vcpu_count; i++) {
        struct soft_vcpu *other = se->vcpus[i];
        if (other != NULL && other != self && atomic_load(&other->is_in_guest))
            return true;
    }
    return false;
}

/* `self` has left the guest; NULL for a thread that is no vCPU. */
static void exclusive_acquire(struct soft_engine *se, struct soft_vcpu *self)
{
    struct soft_exclusive *x = se->exclusive;

    pthread_mutex_lock(&x->lock);
    pthread_cond_broadcast(&x->changed); /* a waiting owner may have waited for us */
    while (x->has_owner)
        pthread_cond_wait(&x->changed, &x->lock);
    x->has_owner = true;
    atomic_store(&x->owner, self);
    atomic_store(&x->is_pending, 1);

    /* is_pending first: a vCPU sets go before it looks at is_pending (soft_guest_yield) */
    for (unsigned i = 0; i < se->vcpu_count; i++) {
        if (se->vcpus[i] == NULL || se->vcpus[i] == self)
            continue;
        __atomic_store_n(&se->vcpus[i]->go, 0, __ATOMIC_SEQ_CST);
        if (se->call_out != NULL)
            se->call_out(se->vcpus[i]);
    }
    while (exclusive_others_in_guest(se, self))
        pthread_cond_wait(&x->changed, &x->lock);
    pthread_mutex_unlock(&x->lock);
}

static void exclusive_release(struct soft_exclusive *x)
{
    pthread_mutex_lock(&x->lock);
    x->has_owner = false;
    atomic_store(&x->owner, NULL);
    atomic_store(&x->is_pending, 0);
    pthread_cond_broadcast(&x->changed);
    pthread_mutex_unlock(&x->lock);
}

void soft_exclusive_begin(struct soft_vcpu *v)
{
    struct soft_exclusive *x = v->engine->exclusive;
    bool was_in_guest = atomic_load_explicit(&v->is_in_guest, memory_order_relaxed);
    uint64_t start = tsc_read();

    if (atomic_load(&x->owner) == v) {
        x->depth++;
        return;
    }
    if (v->is_fpu_live)
        soft_fpu_save(v);
    atomic_store(&v->is_in_guest, 0);
    exclusive_acquire(v->engine, v);
    x->was_in_guest = was_in_guest;
    atomic_store(&v->is_in_guest, 1);
    v->stats.exclusive_waits++;
    v->stats.exclusive_tsc += tsc_read() - start;
}

void soft_exclusive_end(struct soft_vcpu *v)
{
    struct soft_exclusive *x = v->engine->exclusive;

    if (x->depth != 0) {
        x->depth--;
        return;
    }
    if (v->is_fpu_live)
        soft_fpu_save(v);
    if (!x->was_in_guest)
        atomic_store(&v->is_in_guest, 0);
    exclusive_release(x);
}

void soft_exclusive_begin_outside(struct soft_engine *se)
{
    exclusive_acquire(se, NULL);
}

void soft_exclusive_end_outside(struct soft_engine *se)
{
    exclusive_release(se->exclusive);
}
