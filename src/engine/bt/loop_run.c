/*
 * loop_run.c - strips that end otherwise than by their own code (emit_loop.c)
 */
#include "engine/bt/bt.h"
#include "os/tsc.h"

/* So many refusals, this close to each other on the average, and the loop runs as any other. */
#define REFUSALS_MAX 64
#define REFUSAL_CYCLES UINT64_C(4000)

const uint8_t *bt_loop_recover(struct bt_vcpu *b, const struct bt_block *block, const uint8_t *at,
                               uint64_t s1, uint64_t s2)
{
    static const uint8_t in_memory[] = {CPU_R10, CPU_R11, CPU_R15};
    const struct bt_engine *be = b->engine;
    const struct bt_loop_map *m = block->has_loop ? bt_block_loop(be, block) : NULL;
    const uint8_t *guard = bt_block_guard(be, block);
    uint64_t offset = (uint64_t)(at - guard);
    uint64_t *gpr = b->soft.st.gpr, moved[ARRAY_SIZE(in_memory)];

    if (m == NULL || offset < m->begin || offset >= m->end)
        return at;
    /* the stub has put each host register where the guest's of that home belongs */
    for (unsigned i = 0; i < ARRAY_SIZE(in_memory); i++) {
        unsigned h = m->host[i];
        moved[i] = h == S1 ? s1 : h == S2 ? s2 : gpr[h == H_GUEST_RCX ? CPU_RCX : h];
    }
    for (unsigned i = 0; i < ARRAY_SIZE(in_memory); i++)
        if (m->moved & BIT(in_memory[i]))
            gpr[in_memory[i]] = moved[i];
    for (unsigned spilled = m->spilled; spilled != 0; spilled &= spilled - 1) {
        unsigned g = (unsigned)__builtin_ctz(spilled);
        gpr[g] = b->loop_spill[g];
    }
    const struct bt_copy_map *copies = bt_block_copies(be, block);
    unsigned i = m->count;
    while (i > 1 && copies[i - 1].host > offset)
        i--;
    return guard + bt_block_insn(be, block, copies[i - 1].insn).host;
}

const uint8_t *bt_loop_refuse(struct bt_vcpu *b, const uint8_t *at)
{
    struct bt_engine *be = b->engine;
    struct bt_block *block = bt_block_at(be, at);
    struct bt_loop_map *m = bt_block_loop(be, block);
    uint64_t now = tsc_read();

    b->stats.loop_refusals++;
    if (m->refusals++ == 0)
        m->refused_tsc = now;
    if (m->refusals >= REFUSALS_MAX) {
        m->refusals = 0;
        if (now - m->refused_tsc < REFUSALS_MAX * REFUSAL_CYCLES) {
            pthread_mutex_lock(&be->lock);
            bt_loop_disable(be, block);
            pthread_mutex_unlock(&be->lock);
        }
    }
    return bt_block_guard(be, block) + bt_block_insn(be, block, 0).host;
}
