/*
 * probe.c - is KVM there, and does it run kernel-mode code at hardware speed?
 *
 * Some hosts offer a /dev/kvm that interprets the guest's kernel mode at a few million
 * instructions a second; the translator is faster there. A throw-away machine in 64-bit mode
 * counts a register down at CPL 0, a few times and many times; what entering and leaving cost
 * cancels out. The shortest of some tries counts: others may want the processor, too.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "engine/kvm/kvm.h"

#define PROBE_MEMORY 0x4000u
#define PROBE_PML4 0x0000u
#define PROBE_PDPT 0x1000u
#define PROBE_PD 0x2000u
#define PROBE_CODE 0x3000u

#define PROBE_TRIES 4
#define PROBE_COUNT 500u
#define PROBE_INSTRUCTIONS (2 * PROBE_COUNT)
#define PROBE_SPEED_MIN                                                                            \
    UINT64_C(20000000) /* instructions a second; hardware has a hundred times                      \
                        */

struct probe {
    const struct kvm_sys *sys;
    int system_fd, vm_fd, vcpu_fd;
    uint8_t *memory;
    struct kvm_run *run;
    size_t run_size;
};

static void probe_close(struct probe *p)
{
    if (p->run != NULL)
        munmap(p->run, p->run_size);
    kvm_close_fd(&p->vcpu_fd);
    kvm_close_fd(&p->vm_fd);
    kvm_close_fd(&p->system_fd);
    if (p->memory != NULL)
        munmap(p->memory, PROBE_MEMORY);
}

static void probe_write_memory(uint8_t *memory)
{
    static const uint8_t code[] = {
        0x48, 0xff, 0xc9, /* dec rcx */
        0x75, 0xfb,       /* jnz the dec */
        0xf4,             /* hlt */
    };

    store_le64(memory + PROBE_PML4, PROBE_PDPT | 3);
    store_le64(memory + PROBE_PDPT, PROBE_PD | 3);
    store_le64(memory + PROBE_PD, 0x83); /* 2 MiB from 0 on */
    memcpy(memory + PROBE_CODE, code, sizeof(code));
}

static int probe_make_memory(struct probe *p, struct err *e)
{
    struct kvm_userspace_memory_region region = {.memory_size = PROBE_MEMORY};
    void *memory =
        mmap(NULL, PROBE_MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED)
        return err_set(e, errno, "allocate memory to try KVM out");
    p->memory = memory;
    probe_write_memory(memory);
    region.userspace_addr = (uintptr_t)memory;
    return KVM_CALL(p->sys, p->vm_fd, KVM_SET_USER_MEMORY_REGION, &region, e);
}

static int probe_make_vcpu(struct probe *p, struct err *e)
{
    void *run;
    int ret = KVM_CALL(p->sys, p->system_fd, KVM_GET_VCPU_MMAP_SIZE, NULL, e);

    if (ret < 0)
        return ret;
    p->run_size = MAX((size_t)ret, sizeof(struct kvm_run));
    p->vcpu_fd = ret = KVM_CALL(p->sys, p->vm_fd, KVM_CREATE_VCPU, NULL, e);
    if (ret < 0)
        return ret;
    kvm_hint_tsc(p->sys, p->vcpu_fd);
    run = p->sys->map(p->sys->ctx, p->vcpu_fd, p->run_size);
    if (run == MAP_FAILED)
        return err_set(e, errno, "map what KVM shares of a CPU");
    p->run = run;
    return 0;
}

static int probe_set_cpuid(struct probe *p, struct err *e)
{
    unsigned count = 256;
    struct kvm_cpuid2 *table = calloc(1, sizeof(*table) + count * sizeof(struct kvm_cpuid_entry2));
    int ret;

    if (table == NULL)
        return err_set(e, ENOMEM, "allocate a table of CPUID leaves");
    table->nent = count;
    ret = KVM_CALL(p->sys, p->system_fd, KVM_GET_SUPPORTED_CPUID, table, e);
    if (ret >= 0)
        ret = KVM_CALL(p->sys, p->vcpu_fd, KVM_SET_CPUID2, table, e);
    free(table);
    return ret;
}

static int probe_set_mode(struct probe *p, struct err *e)
{
    struct kvm_segment flat = {.limit = 0xffffffff, .present = 1, .s = 1, .g = 1};
    struct kvm_sregs s;
    int ret = probe_set_cpuid(p, e);

    if (ret >= 0)
        ret = KVM_CALL(p->sys, p->vcpu_fd, KVM_GET_SREGS, &s, e);
    if (ret < 0)
        return ret;
    s.cs = s.ds = s.es = s.fs = s.gs = s.ss = flat;
    s.ds.type = s.es.type = s.fs.type = s.gs.type = s.ss.type = 3;
    s.ds.db = s.es.db = s.fs.db = s.gs.db = s.ss.db = 1;
    s.cs.type = 11;
    s.cs.l = 1;
    s.cs.selector = 8;
    s.ds.selector = s.es.selector = s.fs.selector = s.gs.selector = s.ss.selector = 16;
    s.cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_PG;
    s.cr3 = PROBE_PML4;
    s.cr4 = CR4_PAE;
    s.efer = EFER_LME | EFER_LMA;
    return KVM_CALL(p->sys, p->vcpu_fd, KVM_SET_SREGS, &s, e);
}

/* Count down from `count`: the shortest time that it took; no more tries once it is good_ns. */
static int probe_time(struct probe *p, unsigned count, uint64_t good_ns, uint64_t *best_ns,
                      struct err *e)
{
    *best_ns = UINT64_MAX;
    for (unsigned i = 0; i<PROBE_TRIES && * best_ns> good_ns; i++) {
        struct kvm_regs regs = {.rip = PROBE_CODE, .rcx = count, .rflags = RFLAGS_FIXED};
        uint64_t start;
        int ret = KVM_CALL(p->sys, p->vcpu_fd, KVM_SET_REGS, &regs, e);
        if (ret < 0)
            return ret;
        start = clock_now_ns();
        do {
            ret = kvm_try(p->sys, p->vcpu_fd, KVM_RUN, NULL);
        } while (ret < 0 && errno == EINTR);
        if (ret < 0)
            return kvm_call_failed(KVM_RUN, "KVM_RUN", e);
        *best_ns = MIN(*best_ns, clock_now_ns() - start);
        if (p->run->exit_reason != KVM_EXIT_HLT)
            return err_set(e, 0, "KVM cannot run a plain loop in 64-bit kernel mode (exit %u)",
                           p->run->exit_reason);
    }
    return 0;
}

static int probe_speed(struct probe *p, bool *is_slow, struct err *e)
{
    uint64_t loop_max_ns = PROBE_INSTRUCTIONS * UINT64_C(1000000000) / PROBE_SPEED_MIN;
    uint64_t few_ns, many_ns, loop_ns;
    int ret = probe_time(p, 1, 0, &few_ns, e);

    if (ret == 0)
        ret = probe_time(p, PROBE_COUNT, few_ns + loop_max_ns, &many_ns, e);
    if (ret != 0)
        return ret;
    loop_ns = many_ns > few_ns ? many_ns - few_ns : 0;
    *is_slow = loop_ns > loop_max_ns;
    if (*is_slow)
        return err_set(e, 0,
                       "this host's KVM runs kernel-mode code at %.1f million instructions "
                       "a second only",
                       PROBE_INSTRUCTIONS * 1e3 / (double)loop_ns);
    return 0;
}

/* An offset of 2^62 is far from all that a TSC counts. */
static bool probe_tsc(struct probe *p)
{
    static const uint8_t code[] = {0x0f, 0x31, 0xf4}; /* rdtsc; hlt */
    struct kvm_regs regs = {.rip = PROBE_CODE, .rflags = RFLAGS_FIXED};
    uint64_t offset = BIT(62);
    struct kvm_device_attr attr = {
        .group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET, .addr = (uintptr_t)&offset};

    memcpy(p->memory + PROBE_CODE, code, sizeof(code));
    if (kvm_try(p->sys, p->vcpu_fd, KVM_SET_DEVICE_ATTR, &attr) < 0 ||
        kvm_try(p->sys, p->vcpu_fd, KVM_SET_REGS, &regs) < 0 ||
        kvm_try(p->sys, p->vcpu_fd, KVM_RUN, NULL) < 0 || p->run->exit_reason != KVM_EXIT_HLT ||
        kvm_try(p->sys, p->vcpu_fd, KVM_GET_REGS, &regs) < 0)
        return false;
    return !(regs.rdx & BIT(30));
}

/*
 * KVM must not put the instruction right that it is given: one that interprets would do so for
 * ever. An #UD ends in a triple fault here.
 */
static bool probe_hypercalls(struct probe *p, bool is_vmmcall)
{
    static const uint8_t vmmcall[] = {0x0f, 0x01, 0xd9, 0xf4}, vmcall[] = {0x0f, 0x01, 0xc1, 0xf4};
    struct kvm_regs regs = {.rip = PROBE_CODE, .rflags = RFLAGS_FIXED, .rax = UINT32_MAX};
    struct kvm_enable_cap cap = {.cap = KVM_CAP_DISABLE_QUIRKS2,
                                 .args[0] = KVM_X86_QUIRK_FIX_HYPERCALL_INSN};

    memcpy(p->memory + PROBE_CODE, is_vmmcall ? vmmcall : vmcall, sizeof(vmcall));
    if (kvm_try(p->sys, p->vm_fd, KVM_ENABLE_CAP, &cap) < 0 ||
        kvm_try(p->sys, p->vcpu_fd, KVM_SET_REGS, &regs) < 0 ||
        kvm_try(p->sys, p->vcpu_fd, KVM_RUN, NULL) < 0 || p->run->exit_reason != KVM_EXIT_HLT ||
        kvm_try(p->sys, p->vcpu_fd, KVM_GET_REGS, &regs) < 0)
        return false;
    return (int64_t)regs.rax == -HYPERCALL_ENOSYS;
}

/* A machine that can run code; to be closed whatever comes. */
static bool probe_open(struct probe *p, const struct kvm_sys *sys)
{
    *p = (struct probe){.sys = sys, .system_fd = -1, .vm_fd = -1, .vcpu_fd = -1};
    return kvm_open_system(sys, &p->system_fd, NULL) == 0 &&
           kvm_create_vm(sys, p->system_fd, &p->vm_fd, NULL) == 0 &&
           probe_make_memory(p, NULL) >= 0 && probe_make_vcpu(p, NULL) >= 0 &&
           probe_set_mode(p, NULL) >= 0;
}

bool kvm_probe_tsc(const struct kvm_sys *sys)
{
    struct probe p;
    bool is_hosts = probe_open(&p, sys) && probe_tsc(&p);

    probe_close(&p);
    return is_hosts;
}

bool kvm_probe_hypercalls(const struct kvm_sys *sys, bool is_vmmcall)
{
    struct probe p;
    bool is_answered = probe_open(&p, sys) && probe_hypercalls(&p, is_vmmcall);

    probe_close(&p);
    return is_answered;
}

int kvm_probe(const struct kvm_sys *sys, bool *is_interpreted, struct err *why)
{
    bool is_slow = false;
    struct probe p = {.sys = sys, .system_fd = -1, .vm_fd = -1, .vcpu_fd = -1};
    int ret = kvm_open_system(sys, &p.system_fd, why);

    if (ret == 0)
        ret = kvm_create_vm(sys, p.system_fd, &p.vm_fd, why);
    if (ret == 0)
        ret = probe_make_memory(&p, why);
    if (ret >= 0)
        ret = probe_make_vcpu(&p, why);
    if (ret >= 0)
        ret = probe_set_mode(&p, why);
    if (ret >= 0)
        ret = probe_speed(&p, &is_slow, why);
    if (is_interpreted != NULL)
        *is_interpreted = is_slow;
    probe_close(&p);
    return MIN(ret, 0);
}
