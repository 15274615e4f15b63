/*
 * sys.c - system calls to KVM, and what to tell the user when one fails
 */
#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bits.h"
#include "engine/kvm/kvm.h"
#include "os/tsc.h"

#define KVM_DEVICE "/dev/kvm"

static int host_open(void *ctx)
{
    return open(KVM_DEVICE, O_RDWR | O_CLOEXEC);
}

static int host_ioctl(void *ctx, int fd, unsigned long request, void *arg)
{
    return ioctl(fd, request, arg);
}

static void *host_map(void *ctx, int fd, size_t size)
{
    return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
}

const struct kvm_sys kvm_sys_host = {
    .open_kvm = host_open,
    .ioctl = host_ioctl,
    .map = host_map,
};

/* "what: reason (remedy)" */
static int fail(struct err *e, int code, const char *what, const char *remedy)
{
    err_set(e, 0, "%s: %s (%s)", what, strerror(code), remedy);
    if (e != NULL)
        e->code = code;
    return -code;
}

int kvm_try(const struct kvm_sys *sys, int fd, unsigned long request, void *arg)
{
    return sys->ioctl(sys->ctx, fd, request, arg);
}

/* Is doppel's host itself a virtual machine, and one without VMX or SVM? */
static bool host_lacks_virtualization(bool *is_guest)
{
    unsigned eax, ebx, ecx = 0, edx, amd_ecx = 0;

    __get_cpuid(1, &eax, &ebx, &ecx, &edx);
    *is_guest = ecx >> 31 & 1;
    if (ecx & BIT(5))
        return false;
    if (__get_cpuid(0x80000001, &eax, &ebx, &amd_ecx, &edx) && (amd_ecx & BIT(2)))
        return false;
    return true;
}

static const char *open_remedy(int code)
{
    bool is_guest;

    if (code == EACCES || code == EPERM)
        return "your user may not use it; join its group ('usermod -aG kvm USER' as root, then log "
               "in again)";
    if (code == EMFILE || code == ENFILE)
        return "too many open files; raise the limit (ulimit -n)";
    if (!host_lacks_virtualization(&is_guest))
        return "load the module of this processor ('modprobe kvm_intel' or 'modprobe kvm_amd'); if "
               "that fails, virtualization is switched off in the firmware set-up";
    if (is_guest)
        return "this host is a virtual machine without nested virtualization; switch that on in "
               "its "
               "host and load kvm_intel or kvm_amd here, or use --engine bt";
    return "this processor offers no virtualization, or its firmware has switched it off; use "
           "--engine bt";
}

static const char *call_remedy(unsigned long request, int code)
{
    if (code == ENOMEM)
        return "the host is short of memory, or a limit on this user's memory is too low";
    if (code == EMFILE || code == ENFILE)
        return "too many open files; raise the limit (ulimit -n)";
    if (code == EBUSY && request == KVM_CREATE_VM)
        return "another hypervisor holds the processor's virtualization; stop it first";
    if (code == EEXIST && request == KVM_CREATE_VM)
        return "the kernel could not start virtualization on a processor";
    if (code == EFAULT && request == KVM_RUN)
        return "the host could not give the guest a page of its memory";
    if (code == EPERM || code == EACCES)
        return "a security policy of this host forbids it";
    return "this host's KVM cannot do it; --engine bt needs no KVM";
}

int kvm_call(const struct kvm_sys *sys, int fd, unsigned long request, const char *name, void *arg,
             struct err *e)
{
    int ret = kvm_try(sys, fd, request, arg);

    return ret >= 0 ? ret : kvm_call_failed(request, name, e);
}

int kvm_call_failed(unsigned long request, const char *name, struct err *e)
{
    int code = errno;

    return fail(e, code, name, call_remedy(request, code));
}

int kvm_extension(const struct kvm_sys *sys, int fd, int extension)
{
    int ret = kvm_try(sys, fd, KVM_CHECK_EXTENSION, (void *)(uintptr_t)extension);

    return MAX(ret, 0);
}

/* Without these the engine cannot work; all are there since Linux 5.10. */
static const struct {
    int extension;
    const char *name;
} needed[] = {
    {KVM_CAP_USER_MEMORY, "memory slots"},
    {KVM_CAP_EXT_CPUID, "CPUID set-up"},
    {KVM_CAP_VCPU_EVENTS, "exchange of pending events"},
    {KVM_CAP_DEBUGREGS, "exchange of debug registers"},
    {KVM_CAP_XSAVE, "exchange of vector registers"},
    {KVM_CAP_USER_NMI, "NMI injection"},
    {KVM_CAP_READONLY_MEM, "read-only memory"},
    {KVM_CAP_IMMEDIATE_EXIT, "immediate exit"},
    {KVM_CAP_X86_USER_SPACE_MSR, "MSR exits"},
    {KVM_CAP_X86_MSR_FILTER, "MSR filters"},
};

int kvm_open_system(const struct kvm_sys *sys, int *fd, struct err *e)
{
    int version;

    *fd = sys->open_kvm(sys->ctx);
    if (*fd < 0) {
        int code = errno;
        return fail(e, code, "open " KVM_DEVICE, open_remedy(code));
    }
    version = KVM_CALL(sys, *fd, KVM_GET_API_VERSION, NULL, e);
    if (version >= 0 && version != KVM_API_VERSION)
        version = err_set(e, 0, KVM_DEVICE " speaks version %d of the interface, not %d", version,
                          KVM_API_VERSION);
    for (unsigned i = 0; version >= 0 && i < ARRAY_SIZE(needed); i++)
        if (kvm_extension(sys, *fd, needed[i].extension) == 0)
            version = err_set(e, 0,
                              "this host's KVM lacks %s (KVM_CHECK_EXTENSION %d); it needs Linux "
                              "5.10 or later, or use --engine bt",
                              needed[i].name, needed[i].extension);
    if (version < 0)
        kvm_close_fd(fd);
    return MIN(version, 0);
}

int kvm_create_vm(const struct kvm_sys *sys, int system_fd, int *fd, struct err *e)
{
    int ret;

    /* a signal that arrives while the kernel sets up the machine interrupts it */
    do {
        ret = kvm_try(sys, system_fd, KVM_CREATE_VM, NULL);
    } while (ret < 0 && errno == EINTR);
    if (ret < 0)
        return kvm_call_failed(KVM_CREATE_VM, "KVM_CREATE_VM", e);
    *fd = ret;
    return 0;
}

void kvm_hint_tsc(const struct kvm_sys *sys, int vcpu_fd)
{
    int khz = kvm_try(sys, vcpu_fd, KVM_GET_TSC_KHZ, NULL);

    if (khz > 0)
        tsc_hint_frequency_hz((uint64_t)khz * 1000);
}

void kvm_close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}
