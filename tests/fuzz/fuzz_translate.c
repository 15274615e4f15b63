/*
 * fuzz_translate.c - arbitrary guest code on both engines
 *
 * Input: a mode, a seed for the registers, then code. It runs in a small machine whose host table
 * does nothing, until it halts (every vector leads to a HLT), is shut down, or its time is up.
 * Whatever it is, the engines stay within guest RAM (which has inaccessible pages around it),
 * answer a kick, and where they reach an end of the guest's own choosing it is the same one.
 */
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "base/log.h"
#include "engine/engine.h"
#include "engine/null_host.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define RAM_SIZE UINT64_C(0x200000)
#define GUARD_SIZE UINT64_C(0x10000)
#define CODE_MAX 2048u
#define RUN_MS 5

/* Guest-physical layout. Up to SYSTEM_END, user code has no access. */
#define PML4 0x1000u
#define PDPT 0x2000u
#define PD 0x3000u
#define PT 0x4000u
#define PAE_PDPT 0x5000u
#define TABLES_END 0x6000u
#define GDT 0x6000u
#define IDT_64 0x7000u
#define IDT_32 0x8000u
#define TSS_64 0x9000u
#define TSS_32 0x9100u
#define HANDLERS 0xa000u
#define SYSTEM_STACK 0xf000u
#define SYSTEM_END 0x10000u
#define CODE 0x10000u
#define DATA 0x20000u
#define STACK 0x30000u
#define PAGE_ABSENT 0x1e0000u
#define PAGE_READ_ONLY 0x1e1000u
#define DEVICE UINT64_C(0x10000000)
#define ALIAS 0x200000u  /* linear: all of RAM once more, as one large page */
#define WINDOW 0x400000u /* linear: DEVICE */

#define SEL_CODE_64 0x08
#define SEL_DATA 0x10
#define SEL_USER_32 0x1b
#define SEL_USER_DATA 0x23
#define SEL_USER_64 0x2b
#define SEL_CODE_32 0x30
#define SEL_TSS_64 0x38
#define SEL_TSS_32 0x48

enum { MODE_64, MODE_64_USER, MODE_32, MODE_32_USER, MODE_32_FLAT, MODE_16, MODE_REAL, MODE_COUNT };

struct machine {
    const struct engine_ops *ops;
    struct engine *engine;
    struct engine_vcpu *vcpu;
    struct engine_pins pins;
    uint8_t *mapping, *ram;
    struct cpu_state *st;
    enum engine_stop stop;

    /* the helper thread that ends the run */
    pthread_mutex_t lock;
    pthread_cond_t over;
    bool is_over;
};

static void require(bool claim, const char *what)
{
    if (!claim) {
        fprintf(stderr, "fuzz_translate: %s\n", what);
        abort();
    }
}

static void require_same(const char *what, unsigned at, uint64_t interp, uint64_t bt)
{
    if (interp != bt) {
        fprintf(stderr, "fuzz_translate: %s +%#x: interp %#" PRIx64 ", bt %#" PRIx64 "\n", what, at,
                interp, bt);
        abort();
    }
}

static uint64_t host_mmio_read(void *cpu, gpa_t addr, unsigned size)
{
    return addr & mask_bytes(size);
}

static const struct engine_host inert_host = {
    .io_read = null_io_read,
    .io_write = null_io_write,
    .mmio_read = host_mmio_read,
    .mmio_write = null_mmio_write,
    .interrupt_acknowledge = null_interrupt_acknowledge,
    .cr8_read = null_cr8_read,
    .cr8_write = null_cr8_write,
    .msr_read = null_msr_read,
    .msr_write = null_msr_write,
    .set_ferr = null_set_ferr,
};

static void make_page_tables(uint8_t *ram)
{
    store_le64(ram + PML4, PDPT | 7);
    store_le64(ram + PML4 + 8 * 511, PDPT | 7);
    store_le64(ram + PDPT, PD | 7);
    store_le64(ram + PDPT + 8 * 511, PD | 7);
    store_le64(ram + PAE_PDPT, PD | 1);
    store_le64(ram + PAE_PDPT + 8 * 3, PD | 1);
    store_le64(ram + PD, PT | 7);
    store_le64(ram + PD + 8, 0x87);
    store_le64(ram + PD + 16, DEVICE | 0x87);
    for (uint64_t page = 0; page < RAM_SIZE; page += 0x1000)
        store_le64(ram + PT + page / 0x1000 * 8, page | (page < SYSTEM_END ? 3 : 7));
    store_le64(ram + PT + PAGE_ABSENT / 0x1000 * 8, 0);
    store_le64(ram + PT + PAGE_READ_ONLY / 0x1000 * 8, PAGE_READ_ONLY | 5);
}

static void make_system_tables(uint8_t *ram)
{
    static const uint64_t descriptors[] = {
        0,
        UINT64_C(0x00af9b000000ffff), /* 64-bit code */
        UINT64_C(0x00cf93000000ffff),
        UINT64_C(0x00cffb000000ffff), /* user: 32-bit code, data, 64-bit code */
        UINT64_C(0x00cff3000000ffff),
        UINT64_C(0x00affb000000ffff),
        UINT64_C(0x00cf9b000000ffff), /* 32-bit code */
        UINT64_C(0x00008b0000000067) | (uint64_t)TSS_64 << 16,
        0,
        UINT64_C(0x00008b0000000067) | (uint64_t)TSS_32 << 16,
        UINT64_C(0x00009b010000ffff), /* 16-bit code at CODE, data */
        UINT64_C(0x000093000000ffff),
    };
    for (unsigned i = 0; i < ARRAY_SIZE(descriptors); i++)
        store_le64(ram + GDT + 8 * i, descriptors[i]);
    for (unsigned i = 0; i < 256; i++) {
        uint64_t handler = HANDLERS + i;
        ram[handler] = 0xf4;
        store_le32(ram + 4 * i, (uint32_t)handler); /* real mode */
        store_le64(ram + IDT_64 + 16 * i, handler | SEL_CODE_64 << 16 | UINT64_C(0xee01) << 32);
        store_le64(ram + IDT_32 + 8 * i, handler | SEL_CODE_32 << 16 | UINT64_C(0xee00) << 32);
    }
    store_le64(ram + TSS_64 + 4, SYSTEM_STACK);
    store_le64(ram + TSS_64 + 36, SYSTEM_STACK);
    store_le32(ram + TSS_32 + 4, SYSTEM_STACK);
    store_le32(ram + TSS_32 + 8, SEL_DATA);
    store_le16(ram + TSS_64 + 102, 0xffff); /* no port for user code */
    store_le16(ram + TSS_32 + 102, 0xffff);
}

static void set_segments(struct cpu_state *st, uint16_t code, uint32_t code_attr, uint16_t data)
{
    uint32_t dpl = (uint32_t)(code & 3) << SEG_DPL_SHIFT;
    for (unsigned i = 0; i <= CPU_GS; i++)
        st->seg[i] = (struct cpu_seg){.selector = data,
                                      .attr = SEG_P | SEG_S | 3 | SEG_DB | SEG_G | dpl,
                                      .limit = UINT32_MAX};
    st->seg[CPU_CS] = (struct cpu_seg){.selector = code,
                                       .attr = SEG_P | SEG_S | 0xb | SEG_G | code_attr | dpl,
                                       .limit = UINT32_MAX};
}

static void set_real(struct cpu_state *st)
{
    for (unsigned i = 0; i <= CPU_GS; i++)
        st->seg[i] = (struct cpu_seg){.selector = i == CPU_CS ? CODE >> 4 : DATA >> 4,
                                      .attr = SEG_P | SEG_S | 3,
                                      .limit = 0xffff,
                                      .base = i == CPU_CS ? CODE : DATA};
    st->idtr = (struct cpu_table){.limit = 0x3ff};
    st->rip = 0;
}

static void set_mode(struct cpu_state *st, unsigned mode, const struct cpu_model *model)
{
    bool is_64 = mode <= MODE_64_USER;

    st->rip = CODE;
    st->cr0 = CR0_PE | CR0_NE | CR0_MP | CR0_ET | CR0_WP;
    st->cr4 = CR4_OSFXSR | CR4_OSXMMEXCPT;
    st->xcr0 = XCR0_X87;
    if (cpu_model_has(model, CPU_FEATURE_XSAVE)) {
        st->cr4 |= CR4_OSXSAVE;
        st->xcr0 = model->xcr0_valid;
    }
    st->gdtr = (struct cpu_table){.base = GDT, .limit = 0x5f};
    st->idtr = (struct cpu_table){.base = is_64 ? IDT_64 : IDT_32, .limit = is_64 ? 0xfff : 0x7ff};
    st->seg[CPU_TR] = (struct cpu_seg){.selector = is_64 ? SEL_TSS_64 : SEL_TSS_32,
                                       .attr = SEG_P | 0xb,
                                       .limit = 0x67,
                                       .base = is_64 ? TSS_64 : TSS_32};
    st->seg[CPU_LDTR] = (struct cpu_seg){.attr = SEG_UNUSABLE};
    if (is_64) {
        st->cr0 |= CR0_PG;
        st->cr4 |= CR4_PAE;
        st->cr3 = PML4;
        st->efer = EFER_LME | EFER_LMA | EFER_SCE;
    } else if (mode <= MODE_32_USER) {
        st->cr0 |= CR0_PG;
        st->cr4 |= CR4_PAE;
        st->cr3 = PAE_PDPT;
        st->pae_pdpte[0] = st->pae_pdpte[3] = PD | 1;
    }
    if (mode == MODE_64)
        set_segments(st, SEL_CODE_64, SEG_L, SEL_DATA);
    else if (mode == MODE_64_USER)
        set_segments(st, SEL_USER_64, SEG_L, SEL_USER_DATA);
    else if (mode == MODE_32_USER)
        set_segments(st, SEL_USER_32, SEG_DB, SEL_USER_DATA);
    else
        set_segments(st, SEL_CODE_32, mode == MODE_16 ? 0 : SEG_DB, SEL_DATA);
    if (mode == MODE_REAL) {
        set_real(st);
        st->cr0 &= ~(CR0_PE | CR0_WP);
    }
}

/* Addresses of all kinds, small numbers, and bits. */
static uint64_t draw_register(uint32_t *seed)
{
    static const uint64_t values[] = {
        0,
        1,
        7,
        DATA + 0x800,
        DATA + 0xffc,
        STACK,
        CODE,
        CODE + 0x40,
        WINDOW,
        ALIAS + CODE,
        ALIAS + DATA,
        PAGE_ABSENT,
        0xffff,
        PML4,
        0x80000000,
        PAGE_READ_ONLY,
        PAGE_ABSENT - 4,
        RAM_SIZE - 2,
        0xffffffff,
        DATA,
        DATA + 64,
        ALIAS - 3,
        UINT64_C(0xffffffffc0010000),
        0x7fffffff,
        UINT64_C(0x8000000000000000),
        UINT64_C(0x0123456789abcdef),
    };
    *seed = *seed * 1664525 + 1013904223;
    return values[(*seed >> 16) % ARRAY_SIZE(values)];
}

static void make_state(struct cpu_state *st, const struct cpu_model *model, unsigned mode,
                       uint32_t seed)
{
    cpu_state_reset(st, 0);
    set_mode(st, mode, model);
    for (unsigned i = 0; i < CPU_GPR_COUNT; i++)
        st->gpr[i] = mode <= MODE_64_USER ? draw_register(&seed) : (uint32_t)draw_register(&seed);
    st->gpr[CPU_RSP] = mode == MODE_REAL ? 0x8000 : STACK + 0x800;
    store_le16(st->xsave, 0x37f);
    store_le32(st->xsave + 24, 0x1f80);
    for (unsigned i = 0; i < 256; i += 8)
        store_le64(st->xsave + 160 + i, draw_register(&seed));
    store_le64(st->xsave + 512, st->xcr0 & 7);
}

static struct machine *machine_create(const struct engine_ops *ops, const struct cpu_model *model)
{
    const struct engine_config config = {
        .model = model, .host = &inert_host, .cpu_count = 1, .code_cache_size = UINT64_C(4) << 20};
    struct machine *m = calloc(1, sizeof(*m));
    struct err e;

    require(m != NULL, "out of memory");
    m->ops = ops;
    m->mapping = mmap(NULL, RAM_SIZE + 2 * GUARD_SIZE, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    require(m->mapping != MAP_FAILED, "out of memory");
    m->ram = m->mapping + GUARD_SIZE;
    m->st = aligned_alloc(64, align_up(sizeof(*m->st), 64));
    require(m->st != NULL && mprotect(m->ram, RAM_SIZE, PROT_READ | PROT_WRITE) == 0,
            "out of memory");
    make_page_tables(m->ram);
    make_system_tables(m->ram);
    require(ops->open(&config, &m->engine, &e) == 0 &&
                ops->add_ram(m->engine, 0, m->ram, RAM_SIZE, false, &e) == 0 &&
                ops->attach(m->engine, 0, m, &m->pins, &m->vcpu, &e) == 0,
            "the engine does not open");
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&m->over, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_init(&m->lock, NULL);
    return m;
}

static void machine_destroy(struct machine *m)
{
    m->ops->detach(m->vcpu);
    m->ops->close(m->engine);
    pthread_cond_destroy(&m->over);
    pthread_mutex_destroy(&m->lock);
    munmap(m->mapping, RAM_SIZE + 2 * GUARD_SIZE);
    free(m->st);
    free(m);
}

static void *stop_later(void *arg)
{
    struct machine *m = arg;
    struct timespec end;
    int r = 0;

    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_nsec += RUN_MS * 1000000;
    if (end.tv_nsec >= 1000000000) {
        end.tv_nsec -= 1000000000;
        end.tv_sec++;
    }
    pthread_mutex_lock(&m->lock);
    while (!m->is_over && r == 0)
        r = pthread_cond_timedwait(&m->over, &m->lock, &end);
    if (!m->is_over) {
        atomic_fetch_or(&m->pins.bits, PIN_STOP);
        m->ops->kick(m->vcpu);
    }
    pthread_mutex_unlock(&m->lock);
    return NULL;
}

static void machine_run(struct machine *m)
{
    pthread_t thread;
    struct err e;

    require(pthread_create(&thread, NULL, stop_later, m) == 0, "no thread");
    require(m->ops->run(m->vcpu, &m->stop, &e) == 0, "the engine fails");
    pthread_mutex_lock(&m->lock);
    m->is_over = true;
    pthread_cond_signal(&m->over);
    pthread_mutex_unlock(&m->lock);
    pthread_join(thread, NULL);
    m->ops->pull(m->vcpu, m->st, CPU_GROUP_ALL);
}

/*
 * Did the guest leave alone what makes two runs comparable? Page tables that change without a
 * flush, and what is read through them, depend on what is in the TLB. Accessed bits may come early.
 */
static bool is_comparable(const struct machine *m, uint64_t cr3)
{
    static const unsigned tables[] = {PML4, PDPT, PD, PT, PAE_PDPT};
    uint8_t *fresh = calloc(1, RAM_SIZE);
    bool is_same = m->stop != ENGINE_STOP_PIN && m->st->cr3 == cr3;

    require(fresh != NULL, "out of memory");
    make_page_tables(fresh);
    for (unsigned i = 0; i < ARRAY_SIZE(tables) && is_same; i++)
        for (unsigned at = tables[i]; at < tables[i] + 0x1000; at += 8)
            if ((load_le64(fresh + at) ^ load_le64(m->ram + at)) & ~UINT64_C(0x60))
                is_same = false;
    free(fresh);
    return is_same;
}

/* Components that XSTATE_BV leaves out are in their initial state. */
static void normalise(struct cpu_state *st, const struct cpu_model *model)
{
    uint8_t *x = st->xsave;
    uint64_t in_use = load_le64(x + 512);

    if (!(in_use & XCR0_X87)) {
        memset(x, 0, 24);
        memset(x + 32, 0, 128);
        store_le16(x, 0x37f);
    }
    if (!(in_use & XCR0_SSE))
        memset(x + 160, 0, 256);
    for (unsigned i = 2; i < 16; i++)
        if ((model->xcr0_valid >> i & 1) && !(in_use >> i & 1))
            memset(x + model->xsave_offset[i], 0, model->xsave_component_size[i]);
    for (unsigned i = 0; i < 8; i++)
        memset(x + 32 + 16 * i + 10, 0, 6);
    memset(x + 5, 0, 19); /* last x87 instruction and operand: native.c says which CPUs keep them */
    memset(x + 28, 0, 4); /* MXCSR_MASK: written by the host CPU, read by nobody */
    memset(x + 416, 0, 96); /* for software */
    memset(x + 512, 0, 64);
}

static void compare(struct machine *a, struct machine *b, const struct cpu_model *model)
{
    struct cpu_state *x = a->st, *y = b->st;

    normalise(x, model);
    normalise(y, model);
    require(a->stop == b->stop, "the engines stop for different reasons");
    require_same("rip", 0, x->rip, y->rip);
    for (unsigned i = 0; i < CPU_GPR_COUNT; i++)
        require_same("register", i, x->gpr[i], y->gpr[i]);
    require_same("rflags", 0, x->rflags, y->rflags);
    for (unsigned i = 0; i < CPU_SEG_COUNT; i++) {
        require_same("selector", i, x->seg[i].selector, y->seg[i].selector);
        require_same("segment attributes", i, x->seg[i].attr, y->seg[i].attr);
        require_same("segment base", i, x->seg[i].base, y->seg[i].base);
        require_same("segment limit", i, x->seg[i].limit, y->seg[i].limit);
    }
    require_same("cr0", 0, x->cr0, y->cr0);
    require_same("cr2", 0, x->cr2, y->cr2);
    require_same("cr4", 0, x->cr4, y->cr4);
    require_same("efer", 0, x->efer, y->efer);
    require_same("dr6", 0, x->dr6, y->dr6);
    require_same("dr7", 0, x->dr7, y->dr7);
    require_same("run state", 0, x->run_state, y->run_state);
    require_same("exception", 0, x->exception_vector, y->exception_vector);
    for (unsigned at = 0; at < CPU_XSAVE_SIZE; at += 8)
        require_same("x87 and vector state", at, load_le64(x->xsave + at),
                     load_le64(y->xsave + at));
    for (unsigned at = PML4; at < TABLES_END; at += 8)
        require_same("page tables", at, load_le64(a->ram + at) & ~UINT64_C(0x20),
                     load_le64(b->ram + at) & ~UINT64_C(0x20));
    for (unsigned at = 0; at < RAM_SIZE; at = at + 8 == PML4 ? TABLES_END : at + 8)
        require_same("memory", at, load_le64(a->ram + at), load_le64(b->ram + at));
}

/* The engines' signal handlers replace those of libFuzzer, which then cannot save what killed it.
 */
static void keep_input(const uint8_t *data, size_t size)
{
    const char *path = getenv("DOPPEL_FUZZ_INPUT");
    FILE *file = path != NULL ? fopen(path, "wb") : NULL;

    if (file == NULL)
        return;
    fwrite(data, 1, size, file);
    fclose(file);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct engine_ops *const engines[] = {&engine_interp, &engine_bt};
    struct machine *m[2];
    struct cpu_model model;
    struct err e;

    if (size < 4)
        return 0;
    keep_input(data, size);
    log_set_level(LOG_ERROR);
    /* what differs from one run to the next is left out */
    require(cpu_model_create("host,-tsc,-rdtscp,-rdrand,-rdseed", 1, 1000000000, &model, &e) == 0,
            "no CPU model");
    unsigned mode = data[0] % MODE_COUNT;
    uint32_t at = data[1] & 1 ? 0xff8 : 0; /* across two pages, or not */
    for (unsigned i = 0; i < 2; i++) {
        m[i] = machine_create(engines[i], &model);
        make_state(m[i]->st, &model, mode, load_le16(data + 2));
        m[i]->st->rip += at;
        memset(m[i]->ram + CODE, 0xf4, CODE_MAX + 0x1000);
        memcpy(m[i]->ram + CODE + at, data + 4, MIN(size - 4, CODE_MAX));
        for (unsigned k = 0; k < 0x1000; k++)
            m[i]->ram[DATA + k] = (uint8_t)(k * 37);
        uint64_t cr3 = m[i]->st->cr3;
        m[i]->ops->push(m[i]->vcpu, m[i]->st, CPU_GROUP_ALL);
        machine_run(m[i]);
        m[i]->stop = is_comparable(m[i], cr3) ? m[i]->stop : ENGINE_STOP_PIN;
    }
    if (m[0]->stop != ENGINE_STOP_PIN && m[1]->stop != ENGINE_STOP_PIN)
        compare(m[0], m[1], &model);
    machine_destroy(m[0]);
    machine_destroy(m[1]);
    return 0;
}
