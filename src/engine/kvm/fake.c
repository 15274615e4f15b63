/*
 * fake.c - a KVM of our own making, for tests
 */
#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>

#include "engine/kvm/fake.h"

#define RUN_SIZE 12288

static int fake_open(void *ctx)
{
    return open("/dev/null", O_RDWR | O_CLOEXEC);
}

static void *fake_map(void *ctx, int fd, size_t size)
{
    struct fake *f = ctx;

    f->run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return f->run;
}

static bool kick_is_pending(void)
{
    sigset_t set;

    return sigpending(&set) == 0 && sigismember(&set, KVM_KICK_SIGNAL);
}

/* The guest is not entered, but what was put off is done. */
static int fake_run_in_place(struct fake *f)
{
    fake_turn_fn put_off = f->put_off;

    f->in_place++;
    f->put_off = NULL;
    if (put_off != NULL && put_off(f) == 0)
        return 0;
    errno = EINTR;
    return -1;
}

/* What every turn does before the script has its say. */
static int fake_run(struct fake *f)
{
    f->events.flags = 0;
    if (f->run->immediate_exit) {
        f->completed++;
        errno = EINTR;
        return -1;
    }
    if (kick_is_pending())
        return fake_run_in_place(f);
    f->run->ready_for_interrupt_injection = (f->regs.rflags & RFLAGS_IF) != 0;
    if (!f->is_engines || f->turn == FAKE_TURNS_MAX || f->turns[f->turn] == NULL) {
        f->run->exit_reason = KVM_EXIT_HLT;
        if (f->answers_hypercalls)
            f->regs.rax = (uint64_t)-HYPERCALL_ENOSYS;
        return 0;
    }
    return f->turns[f->turn++](f);
}

static int fake_extension(const struct fake *f, unsigned long extension)
{
    if (f->lacking != 0 && extension == (unsigned long)f->lacking)
        return 0;
    switch (extension) {
    case KVM_CAP_XSAVE2:
        return 4096;
    case KVM_CAP_DISABLE_QUIRKS2:
        return 0x7f;
    case KVM_CAP_EXIT_ON_EMULATION_FAILURE:
        return !f->lacks_failure_exit;
    default:
        return 1;
    }
}

static int fake_msrs(struct fake *f, struct kvm_msrs *list, bool is_store)
{
    for (unsigned i = 0; i < list->nmsrs; i++) {
        uint64_t *value = &f->msrs[list->entries[i].index % 511];
        if (is_store)
            *value = list->entries[i].data;
        else
            list->entries[i].data = *value;
    }
    return (int)list->nmsrs;
}

#define COPY_OUT(field) (memcpy(arg, &f->field, sizeof(f->field)), 0)
#define COPY_IN(field) (memcpy(&f->field, arg, sizeof(f->field)), 0)

static int fake_vcpu_ioctl(struct fake *f, unsigned long request, void *arg)
{
    switch (request) {
    case KVM_GET_REGS:
        return COPY_OUT(regs);
    case KVM_SET_REGS:
        return COPY_IN(regs);
    case KVM_GET_SREGS2:
        return COPY_OUT(sregs);
    case KVM_SET_SREGS2:
        return COPY_IN(sregs);
    case KVM_GET_DEBUGREGS:
        return COPY_OUT(debugregs);
    case KVM_SET_DEBUGREGS:
        return COPY_IN(debugregs);
    case KVM_GET_XCRS:
        return COPY_OUT(xcrs);
    case KVM_SET_XCRS:
        return COPY_IN(xcrs);
    case KVM_GET_XSAVE:
        return COPY_OUT(xsave);
    case KVM_SET_XSAVE:
        return COPY_IN(xsave);
    case KVM_GET_VCPU_EVENTS:
        return COPY_OUT(events);
    case KVM_SET_VCPU_EVENTS:
        return COPY_IN(events);
    case KVM_GET_MSRS:
        return fake_msrs(f, arg, false);
    case KVM_SET_MSRS:
        return fake_msrs(f, arg, true);
    case KVM_SET_DEVICE_ATTR:
        memcpy(&f->tsc_offset, (void *)(uintptr_t)((struct kvm_device_attr *)arg)->addr, 8);
        return 0;
    case KVM_INTERRUPT:
        f->interrupts++;
        f->interrupt = ((struct kvm_interrupt *)arg)->irq;
        return 0;
    case KVM_NMI:
        f->nmis++;
        return 0;
    case KVM_RUN:
        return fake_run(f);
    case KVM_GET_LAPIC:
        return COPY_OUT(lapic);
    case KVM_SET_LAPIC:
        return COPY_IN(lapic);
    case KVM_GET_MP_STATE:
        return COPY_OUT(mp);
    case KVM_SET_MP_STATE:
        return COPY_IN(mp);
    default:
        return 0;
    }
}

static int fake_set_routes(struct fake *f, const struct kvm_irq_routing *table)
{
    f->routes = table->nr;
    if (table->nr != 0)
        memcpy(&f->route, table->entries + table->nr - 1, sizeof(f->route));
    return 0;
}

static int fake_enable(struct fake *f, const struct kvm_enable_cap *cap)
{
    if (cap->cap == KVM_CAP_SPLIT_IRQCHIP)
        f->split_inputs = (uint32_t)cap->args[0];
    return 0;
}

static void fake_cpuid(const struct fake *f, struct kvm_cpuid2 *table)
{
    table->nent = 2;
    table->entries[0] =
        (struct kvm_cpuid_entry2){.eax = 1, .ebx = f->is_intel ? signature_INTEL_ebx : 0};
    table->entries[1] = (struct kvm_cpuid_entry2){.function = 0x40000001, .eax = 0x3880};
}

/* As the kernel: an address has one bell, and what is not there is not taken down. */
static int fake_bell(struct fake *f, const struct kvm_ioeventfd *bell)
{
    bool is_removal = bell->flags & KVM_IOEVENTFD_FLAG_DEASSIGN;
    unsigned room = f->bells_room != 0 ? f->bells_room : ARRAY_SIZE(f->bells), at = 0;

    while (at < f->bell_count && f->bells[at].addr != bell->addr)
        at++;
    if (is_removal && (at == f->bell_count || f->bells[at].fd != bell->fd)) {
        errno = ENOENT;
        return -1;
    }
    if (!is_removal && (at < f->bell_count || f->bell_count >= room)) {
        errno = at < f->bell_count ? EEXIST : ENOSPC;
        return -1;
    }
    if (is_removal)
        f->bells[at] = f->bells[--f->bell_count];
    else
        f->bells[f->bell_count++] = *bell;
    return 0;
}

static int fake_ioctl(void *ctx, int fd, unsigned long request, void *arg)
{
    struct fake *f = ctx;

    switch (request) {
    case KVM_GET_API_VERSION:
        return KVM_API_VERSION;
    case KVM_CHECK_EXTENSION:
        return fake_extension(f, (unsigned long)(uintptr_t)arg);
    case KVM_CREATE_VM:
    case KVM_CREATE_VCPU:
        return fake_open(f);
    case KVM_GET_VCPU_MMAP_SIZE:
        return RUN_SIZE;
    case KVM_SET_USER_MEMORY_REGION:
        return COPY_IN(region);
    case KVM_X86_SET_MSR_FILTER:
        f->is_engines = true;
        return 0;
    case KVM_ENABLE_CAP:
        return fake_enable(f, arg);
    case KVM_SIGNAL_MSI:
        memcpy(&f->msi, arg, sizeof(f->msi));
        return 1;
    case KVM_GET_SUPPORTED_CPUID:
        fake_cpuid(f, arg);
        return 0;
    case KVM_IOEVENTFD:
        return fake_bell(f, arg);
    case KVM_SET_GSI_ROUTING:
        return fake_set_routes(f, arg);
    case KVM_GET_DIRTY_LOG:
        *(uint64_t *)((struct kvm_dirty_log *)arg)->dirty_bitmap = f->dirty;
        f->dirty = 0;
        return 0;
    default:
        return fake_vcpu_ioctl(f, request, arg);
    }
}

struct kvm_sys fake_sys(struct fake *f)
{
    return (struct kvm_sys){.open_kvm = fake_open, .ioctl = fake_ioctl, .map = fake_map, .ctx = f};
}

/* ---- failures on demand ---- */

static bool failing_is_due(struct failing *f, unsigned long request)
{
    if (f->count++ != f->fail_at)
        return false;
    f->failed = request;
    errno = f->code;
    return true;
}

static int failing_open(void *ctx)
{
    struct failing *f = ctx;

    return failing_is_due(f, FAILING_OPEN) ? -1 : f->under->open_kvm(f->under->ctx);
}

static int failing_ioctl(void *ctx, int fd, unsigned long request, void *arg)
{
    struct failing *f = ctx;

    return failing_is_due(f, request) ? -1 : f->under->ioctl(f->under->ctx, fd, request, arg);
}

static void *failing_map(void *ctx, int fd, size_t size)
{
    struct failing *f = ctx;

    return failing_is_due(f, FAILING_MAP) ? MAP_FAILED : f->under->map(f->under->ctx, fd, size);
}

struct kvm_sys failing_sys(struct failing *f)
{
    return (struct kvm_sys){
        .open_kvm = failing_open, .ioctl = failing_ioctl, .map = failing_map, .ctx = f};
}
