/*
 * renewer.c - a machine that gets other devices all the time
 *
 * usage: renewer ENGINE KERNEL INITRD CMDLINE PERIOD-MS DISK...
 *
 * Runs a kernel with disks (a path, or vhost-user:SOCKET), network, entropy, balloon and sockets.
 * Every so many milliseconds the machine is paused, the state of all that is on its PCI bus is
 * taken, all of it is destroyed and made anew, and the state is put back. The guest's serial port
 * is standard output. Ends with status 0 when the guest has powered off.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "backend/char/chardev.h"
#include "os/loop.h"
#include "vm/board_internal.h"
#include "vm/board_state.h"
#include "vm/machine.h"

#define ARGUMENTS 6
#define MINUTE_NS (UINT64_C(60) * 1000000000)
#define BALLOON_BYTES (UINT64_C(64) << 20)

struct renewer {
    struct vm *vm;
    struct vm_config config;
    struct vm_disk disks[VM_DISKS_MAX];
    struct board_pci_state *state;
    char vsock[64];
    int timer_fd;
    unsigned count;
    bool is_busy;
};

static void check(int rc, const struct err *e)
{
    if (rc == 0)
        return;
    fprintf(stderr, "renewer: %s\n", e->msg);
    exit(1);
}

/* The loop has had a turn since the devices came to rest. */
static void renew(void *ctx)
{
    struct renewer *r = ctx;
    struct board *b = &r->vm->board;
    struct err e;

    check(board_get_pci_state(b, r->state, &e), &e);
    check(board_renew_pci(b, &e), &e);
    check(board_quiesce_pci(b, 0, &e), &e);
    check(board_set_pci_state(b, r->state, &e), &e);
    board_resume_pci(b);
    check(vm_resume(r->vm, &e), &e);
    r->count++;
    r->is_busy = false;
    /* something for the balloon to do, now and then */
    if (r->count % 8 == 0)
        check(vm_set_balloon(r->vm, r->count % 16 == 0 ? 0 : BALLOON_BYTES, &e), &e);
}

static void on_timer(void *ctx, unsigned events)
{
    struct renewer *r = ctx;
    uint64_t count;
    struct err e;

    if (read(r->timer_fd, &count, sizeof(count)) != sizeof(count) || r->is_busy)
        return;
    if (vm_pause(r->vm, &e) != 0)
        return; /* it has ended */
    check(board_quiesce_pci(&r->vm->board, MINUTE_NS, &e), &e);
    r->is_busy = true;
    loop_post(r->config.loop, renew, r);
}

static void start_timer(struct renewer *r, unsigned period_ms)
{
    struct timespec period = {.tv_sec = period_ms / 1000, .tv_nsec = period_ms % 1000 * 1000000L};
    struct itimerspec times = {.it_interval = period, .it_value = period};
    struct loop_fd *watch;
    struct err e;

    r->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (r->timer_fd < 0 || timerfd_settime(r->timer_fd, 0, &times, NULL) != 0) {
        perror("renewer: timerfd");
        exit(1);
    }
    check(loop_fd_add(r->config.loop, r->timer_fd, LOOP_READ, on_timer, r, &watch, &e), &e);
}

static void add_disk(struct renewer *r, const char *arg)
{
    static const char prefix[] = "vhost-user:";
    bool is_vhost_user = strncmp(arg, prefix, sizeof(prefix) - 1) == 0;

    r->disks[r->config.disk_count++] = (struct vm_disk){
        .path = is_vhost_user ? arg + sizeof(prefix) - 1 : arg, .is_vhost_user = is_vhost_user};
}

int main(int argc, char **argv)
{
    static struct renewer r;
    static struct vm_end end;
    struct chardev *serial;
    struct err e;

    if (argc < ARGUMENTS || argc > ARGUMENTS + VM_DISKS_MAX)
        return 2;
    snprintf(r.vsock, sizeof(r.vsock), "/tmp/doppel-renewer-%d", (int)getpid());
    r.config = (struct vm_config){
        .engine = argv[1],
        .cpu_count = 2,
        .memory_bytes = UINT64_C(512) << 20,
        .kernel_path = argv[2],
        .initrd_path = argv[3],
        .cmdline = argv[4],
        .disks = r.disks,
        .net = {.kind = VM_NET_USER, .mtu = 1500},
        .balloon = {.is_there = true, .deflates_on_oom = true, .reports_free_pages = true},
        .vsock = {.cid = 7, .path = r.vsock},
        .on_reboot = VM_REBOOT_EXIT,
    };
    for (int i = ARGUMENTS; i < argc; i++)
        add_disk(&r, argv[i]);
    r.state = malloc(sizeof(*r.state));
    check(loop_create(&r.config.loop, &e), &e);
    check(chardev_create_file(r.config.loop, "/dev/stdout", &serial, &e), &e);
    r.config.serial = serial;
    check(vm_create(&r.config, &r.vm, &e), &e);
    start_timer(&r, (unsigned)atoi(argv[5]));
    vm_run(r.vm, &end);
    vm_destroy(r.vm);
    chardev_drain(serial, 5000, &e);
    chardev_destroy(serial);
    loop_destroy(r.config.loop);
    free(r.state);
    fprintf(stderr, "renewer: %u times\n", r.count);
    if (end.cause == VM_END_ERROR)
        fprintf(stderr, "renewer: %s\n", end.error.msg);
    if (end.cause == VM_END_DIED)
        fputs(end.dump, stderr);
    return end.cause == VM_END_POWER_OFF ? 0 : 1;
}
