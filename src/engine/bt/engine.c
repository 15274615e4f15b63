/*
 * engine.c - the engine table of the translator
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "engine/bt/bt.h"
#include "os/fault.h"

/* Enough for a distribution's boot and a working set of large programs. */
#define CODE_CACHE_DEFAULT (UINT64_C(256) << 20)
#define CODE_CACHE_MIN (UINT64_C(4) << 20)
#define CODE_CACHE_MAX (UINT64_C(1) << 30) /* relative jumps span it */

static void bt_close(struct engine *engine);

static int bt_open(const struct engine_config *config, struct engine **out, struct err *e)
{
    uint64_t size = config->code_cache_size != 0 ? config->code_cache_size : CODE_CACHE_DEFAULT;

    if (!__builtin_cpu_supports("bmi2"))
        return err_set(e, 0,
                       "the translator needs a host CPU with BMI2 (any since 2015 or so); use "
                       "--engine interp here");
    if (size < CODE_CACHE_MIN || size > CODE_CACHE_MAX)
        return err_set(e, 0, "a code cache of %llu bytes is outside of 4M to 1G",
                       (unsigned long long)size);
    struct bt_engine *be = calloc(1, sizeof(*be));
    if (be == NULL)
        return err_set(e, ENOMEM, "allocate the translator");
    pthread_mutex_init(&be->lock, NULL);
    int r = fault_init(e);
    if (r == 0)
        r = soft_engine_init(&be->soft, config, e);
    if (r == 0)
        r = bt_cache_create(be, size, e);
    if (r == 0)
        r = bt_trace_open(be, config, e);
    if (r != 0) {
        bt_close((struct engine *)be);
        return r;
    }
    be->soft.code_written = bt_code_written;
    be->soft.sizes = SOFT_SIZES_ASIDE;
    be->is_counting = config->counts_hits;
    be->slice = config->slice;
    *out = (struct engine *)be;
    return 0;
}

static void pages_free(struct bt_engine *be, unsigned slot)
{
    free(be->pages[slot]);
    be->pages[slot] = NULL;
}

static void bt_close(struct engine *engine)
{
    struct bt_engine *be = (struct bt_engine *)engine;
    if (be == NULL)
        return;
    for (unsigned i = 0; i < be->soft.ram_count; i++)
        pages_free(be, i);
    bt_trace_close(be);
    bt_cache_destroy(be);
    soft_engine_fini(&be->soft);
    pthread_mutex_destroy(&be->lock);
    free(be);
}

static int bt_attach(struct engine *engine, unsigned index, void *cpu, struct engine_pins *pins,
                     struct engine_vcpu **out, struct err *e)
{
    struct bt_engine *be = (struct bt_engine *)engine;
    struct bt_vcpu *b = aligned_alloc(64, align_up(sizeof(*b), 64));

    if (b == NULL)
        return err_set(e, ENOMEM, "allocate CPU %u of the translator", index);
    memset(b, 0, sizeof(*b));
    b->engine = be;
    b->self = (uintptr_t)b;
    b->mask_tlb = (uint64_t)(SOFT_TLB_SIZE - 1) << SOFT_PAGE_SHIFT;
    b->mask_page = ~UINT64_C(0xfff);
    b->mask_high = ~(uint64_t)UINT32_MAX;
    b->mask_jc = (uint64_t)(BT_JC_SIZE - 1) << 1;
    b->mask_bit[0] = 31;
    b->mask_bit[1] = 63;
    b->mask_df = RFLAGS_DF >> 8;
    for (unsigned i = 0; i < 256; i++) {
        b->set_bit_1[i] = (uint8_t)(i | 2);
        b->clear_bit_1[i] = (uint8_t)(i & ~2u);
    }
    for (unsigned set = 0; set < SOFT_TLB_SETS; set++)
        bt_jump_cache_init(&b->jc[set]);
    int r = soft_vcpu_init(&b->soft, &be->soft, index, cpu, pins, e);
    if (r != 0) {
        free(b);
        return r;
    }
    b->soft.is_mode_stale = 1;
    b->slice_left = (int64_t)be->slice;
    *out = (struct engine_vcpu *)b;
    return 0;
}

static void bt_detach(struct engine_vcpu *vcpu)
{
    struct bt_vcpu *b = (struct bt_vcpu *)vcpu;
    if (b == NULL)
        return;
    soft_vcpu_fini(&b->soft);
    free(b);
}

static void bt_kick(struct engine_vcpu *vcpu)
{
    __atomic_store_n(&((struct bt_vcpu *)vcpu)->soft.go, 0, __ATOMIC_SEQ_CST);
}

static void bt_pull(struct engine_vcpu *vcpu, struct cpu_state *out, uint32_t groups)
{
    soft_vcpu_pull(&((struct bt_vcpu *)vcpu)->soft, out, groups);
}

static void bt_push(struct engine_vcpu *vcpu, const struct cpu_state *in, uint32_t groups)
{
    soft_vcpu_push(&((struct bt_vcpu *)vcpu)->soft, in, groups);
}

static int bt_add_ram(struct engine *engine, gpa_t addr, void *host, uint64_t size, bool is_rom,
                      struct err *e)
{
    struct bt_engine *be = (struct bt_engine *)engine;
    unsigned slot = be->soft.ram_count;
    int r = soft_engine_add_ram(&be->soft, addr, host, size, is_rom, e);
    if (r != 0)
        return r;
    be->pages[slot] = calloc(size >> SOFT_PAGE_SHIFT, sizeof(be->pages[slot][0]));
    if (be->pages[slot] == NULL)
        return err_set(e, ENOMEM, "allocate the code map of %llu bytes of RAM",
                       (unsigned long long)size);
    return 0;
}

/* Slots move when one goes, so everything known of them is forgotten first. */
static int bt_remove_ram(struct engine *engine, gpa_t addr, struct err *e)
{
    struct bt_engine *be = (struct bt_engine *)engine;
    unsigned slot = 0;

    while (slot < be->soft.ram_count && be->soft.ram[slot].addr != addr)
        slot++;
    if (slot == be->soft.ram_count)
        return err_set(e, 0, "no RAM slot at %#llx to remove", (unsigned long long)addr);
    bt_cache_empty(be);
    pages_free(be, slot);
    int r = soft_engine_remove_ram(&be->soft, addr, e);
    if (r != 0)
        return r;
    memmove(&be->pages[slot], &be->pages[slot + 1],
            (SOFT_RAM_SLOTS_MAX - slot - 1) * sizeof(be->pages[0]));
    be->pages[SOFT_RAM_SLOTS_MAX - 1] = NULL;
    return 0;
}

static void bt_code_changed(struct engine *engine, gpa_t addr, uint64_t size)
{
    struct bt_engine *be = (struct bt_engine *)engine;

    while (size > 0) {
        uint64_t n = MIN(size, SOFT_PAGE_SIZE - (addr & 0xfff));
        struct soft_ram *ram = soft_ram_find(&be->soft, addr);
        if (ram != NULL &&
            atomic_load(&ram->page_flags[(addr - ram->addr) >> SOFT_PAGE_SHIFT]) & SOFT_PAGE_CODE)
            bt_code_written(&be->soft, NULL, addr, (unsigned)n);
        addr += n;
        size -= n;
    }
}

const struct engine_ops engine_bt = {
    .name = "bt",
    .has_slices = true,
    .open = bt_open,
    .close = bt_close,
    .attach = bt_attach,
    .detach = bt_detach,
    .run = bt_run,
    .kick = bt_kick,
    .pull = bt_pull,
    .push = bt_push,
    .add_ram = bt_add_ram,
    .remove_ram = bt_remove_ram,
    .code_changed = bt_code_changed,
    .report_stats = bt_report_stats,
};
