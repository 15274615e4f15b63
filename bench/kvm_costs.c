/*
 * kvm_costs.c - what it costs to leave a guest of this host's KVM, and what is cheaper
 *
 * A guest in real mode does one thing many times: it writes to a port or to memory that is not
 * there. Each row says how long once takes, from the guest's instruction to its next one:
 * with the access served by the process, or by the kernel. Then what a process pays to raise an
 * interrupt, and to wake a thread. Decision 0018 draws on it.
 *
 *     gcc -O2 -static -pthread -o kvm-costs kvm_costs.c && ./kvm-costs
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define RAM_SIZE 0x10000u
#define CODE_ADDR 0x1000u
#define HOLE_ADDR 0xd0000u
#define PORT 0x40 /* the 8254's first counter */
#define END_PORT 0x80
#define GSI 5u
#define IDENTITY_MAP_ADDR UINT64_C(0xfeffc000)
#define TSS_ADDR 0xfeffd000ul

static unsigned times = 20000;

static void die(const char *what)
{
    fprintf(stderr, "kvm-costs: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int call(int fd, unsigned long request, void *arg, const char *what)
{
    int ret = ioctl(fd, request, arg);

    if (ret < 0)
        die(what);
    return ret;
}
#define CALL(fd, request, arg) call(fd, request, (void *)(uintptr_t)(arg), #request)

static uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void row(const char *what, uint64_t ns, unsigned count)
{
    printf("%-58s %8.0f ns\n", what, (double)ns / count);
    fflush(stdout);
}

/* ---- a machine ---- */

enum irqchip { IRQCHIP_NONE, IRQCHIP_SPLIT, IRQCHIP_FULL };

struct machine {
    int system, vm, vcpu;
    struct kvm_run *run;
    size_t run_size;
    uint8_t *ram;
};

static void machine_make(struct machine *m, enum irqchip irqchip)
{
    struct kvm_enable_cap cap = {.cap = KVM_CAP_SPLIT_IRQCHIP, .args[0] = 24};
    struct kvm_userspace_memory_region region = {.memory_size = RAM_SIZE};
    struct kvm_pit_config pit = {0};
    uint64_t identity_map = IDENTITY_MAP_ADDR;

    m->system = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (m->system < 0)
        die("open /dev/kvm");
    m->vm = CALL(m->system, KVM_CREATE_VM, 0);
    CALL(m->vm, KVM_SET_IDENTITY_MAP_ADDR, &identity_map);
    CALL(m->vm, KVM_SET_TSS_ADDR, TSS_ADDR);
    if (irqchip == IRQCHIP_SPLIT)
        CALL(m->vm, KVM_ENABLE_CAP, &cap);
    if (irqchip == IRQCHIP_FULL) {
        CALL(m->vm, KVM_CREATE_IRQCHIP, 0);
        CALL(m->vm, KVM_CREATE_PIT2, &pit);
    }
    m->ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (m->ram == MAP_FAILED)
        die("map memory");
    region.userspace_addr = (uintptr_t)m->ram;
    CALL(m->vm, KVM_SET_USER_MEMORY_REGION, &region);
    m->vcpu = CALL(m->vm, KVM_CREATE_VCPU, 0);
    m->run_size = (size_t)CALL(m->system, KVM_GET_VCPU_MMAP_SIZE, 0);
    m->run = mmap(NULL, m->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, m->vcpu, 0);
    if (m->run == MAP_FAILED)
        die("map the processor");
}

static void machine_end(struct machine *m)
{
    munmap(m->run, m->run_size);
    munmap(m->ram, RAM_SIZE);
    close(m->vcpu);
    close(m->vm);
    close(m->system);
}

/* `body` `times` over; what comes out is answered with nothing done. Returns how long it took. */
static uint64_t machine_run(struct machine *m, const uint8_t *body, size_t size)
{
    static const uint8_t head[] = {
        0x66, 0xb9, 0,    0,    0,    0, /* mov ecx, times */
        0xb8, 0x00, 0xd0, 0x8e, 0xd8,    /* mov ax, 0d000h; mov ds, ax */
    };
    const uint8_t tail[] = {0x66, 0x49,
                            0x75, (uint8_t) - (int)(size + 4), /* dec ecx; jnz body */
                            0xe6, END_PORT};                   /* out END_PORT, al */
    uint8_t *code = m->ram + CODE_ADDR;
    struct kvm_sregs sregs;
    struct kvm_regs regs = {.rip = CODE_ADDR, .rflags = 2};
    uint64_t start;

    memcpy(code, head, sizeof(head));
    memcpy(code + 2, &times, sizeof(times));
    memcpy(code + sizeof(head), body, size);
    memcpy(code + sizeof(head) + size, tail, sizeof(tail));
    CALL(m->vcpu, KVM_GET_SREGS, &sregs);
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    CALL(m->vcpu, KVM_SET_SREGS, &sregs);
    CALL(m->vcpu, KVM_SET_REGS, &regs);
    start = now_ns();
    for (;;) {
        CALL(m->vcpu, KVM_RUN, 0);
        if (m->run->exit_reason == KVM_EXIT_IO && m->run->io.port == END_PORT)
            return now_ns() - start;
        if (m->run->exit_reason != KVM_EXIT_IO && m->run->exit_reason != KVM_EXIT_MMIO) {
            fprintf(stderr, "kvm-costs: KVM_RUN: exit %u\n", m->run->exit_reason);
            exit(1);
        }
    }
}

static const uint8_t do_nothing[] = {0x90};           /* nop */
static const uint8_t do_port[] = {0xe4, PORT};        /* in al, PORT */
static const uint8_t do_write[] = {0xa3, 0x00, 0x00}; /* mov [0], ax */

static void exits(void)
{
    struct kvm_ioeventfd bell = {.addr = HOLE_ADDR, .len = 2, .fd = eventfd(0, EFD_NONBLOCK)};
    struct machine m;

    if (bell.fd < 0)
        die("eventfd");
    machine_make(&m, IRQCHIP_NONE);
    row("a turn of the loop", machine_run(&m, do_nothing, sizeof(do_nothing)), times);
    row("port, served by the process", machine_run(&m, do_port, sizeof(do_port)), times);
    row("write to memory that is not there, served by the process",
        machine_run(&m, do_write, sizeof(do_write)), times);
    CALL(m.vm, KVM_IOEVENTFD, &bell);
    row("the same, with an ioeventfd", machine_run(&m, do_write, sizeof(do_write)), times);
    bell.flags = KVM_IOEVENTFD_FLAG_DEASSIGN;
    CALL(m.vm, KVM_IOEVENTFD, &bell);
    machine_end(&m);
    machine_make(&m, IRQCHIP_FULL);
    row("port of the 8254 in the kernel", machine_run(&m, do_port, sizeof(do_port)), times);
    machine_end(&m);
    close(bell.fd);
}

/* ---- interrupts ---- */

static void interrupts(void)
{
    struct kvm_msi msi = {.address_lo = 0xfee00000, .data = 0x31};
    struct {
        struct kvm_irq_routing head;
        struct kvm_irq_routing_entry entry;
    } routes = {
        .head.nr = 1,
        .entry = {.gsi = GSI,
                  .type = KVM_IRQ_ROUTING_MSI,
                  .u.msi = {.address_lo = 0xfee00000, .data = 0x31}},
    };
    struct kvm_irqfd irqfd = {.gsi = GSI, .fd = (uint32_t)eventfd(0, EFD_NONBLOCK)};
    struct machine m;
    uint64_t one = 1, start, count;

    machine_make(&m, IRQCHIP_SPLIT);
    start = now_ns();
    for (unsigned i = 0; i < times; i++)
        CALL(m.vm, KVM_SIGNAL_MSI, &msi);
    row("raise an interrupt: KVM_SIGNAL_MSI", now_ns() - start, times);
    CALL(m.vm, KVM_SET_GSI_ROUTING, &routes);
    CALL(m.vm, KVM_IRQFD, &irqfd);
    start = now_ns();
    for (unsigned i = 0; i < times; i++)
        if (write((int)irqfd.fd, &one, sizeof(one)) != sizeof(one))
            die("write to an irqfd");
    row("raise an interrupt: an eventfd that is an irqfd", now_ns() - start, times);
    if (read((int)irqfd.fd, &count, sizeof(count)) == sizeof(count))
        puts("  (the kernel did not take what was written)");
    start = now_ns();
    for (unsigned i = 0; i < 20; i++)
        CALL(m.vm, KVM_SET_GSI_ROUTING, &routes);
    row("change a route: KVM_SET_GSI_ROUTING", now_ns() - start, 20);
    machine_end(&m);
    close((int)irqfd.fd);
}

/* ---- threads ---- */

struct partner {
    int ask, answer;
};

static void *answer_all(void *ctx)
{
    const struct partner *p = ctx;
    struct pollfd ask = {.fd = p->ask, .events = POLLIN};
    uint64_t count, one = 1;

    for (unsigned i = 0; i < times; i++) {
        while (read(p->ask, &count, sizeof(count)) < 0)
            poll(&ask, 1, -1);
        if (write(p->answer, &one, sizeof(one)) < 0)
            die("write to an eventfd");
    }
    return NULL;
}

/* There and back is two wakings. */
static void threads(void)
{
    struct partner p = {eventfd(0, EFD_NONBLOCK), eventfd(0, 0)};
    pthread_t thread;
    uint64_t count, one = 1, start = now_ns();

    for (unsigned i = 0; i < times; i++)
        if (write(p.ask, &one, sizeof(one)) < 0 || read(p.ask, &count, sizeof(count)) < 0)
            die("use an eventfd");
    row("write to and read from an eventfd", now_ns() - start, times);
    if (pthread_create(&thread, NULL, answer_all, &p) != 0)
        die("start a thread");
    start = now_ns();
    for (unsigned i = 0; i < times; i++)
        if (write(p.ask, &one, sizeof(one)) < 0 || read(p.answer, &count, sizeof(count)) < 0)
            die("use an eventfd");
    row("wake a thread that sleeps", (now_ns() - start) / 2, times);
    pthread_join(thread, NULL);
}

int main(int argc, char **argv)
{
    if (argc > 1)
        times = (unsigned)strtoul(argv[1], NULL, 10);
    if (times == 0) {
        fputs("usage: kvm-costs [TIMES]\n", stderr);
        return 1;
    }
    threads();
    exits();
    interrupts();
    return 0;
}
