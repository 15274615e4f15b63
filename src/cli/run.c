/*
 * run.c - `doppel run`: one machine from its options to its exit status
 *
 * Invariants: the guardian is started before any thread and let go last. The signals that end
 * or suspend doppel are blocked in all threads and read by the main loop, so that they act
 * between two events, never within one. The terminal is raw only while the machine runs.
 */
#include "cli/run.h"

#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "api/api.h"
#include "api/rundir.h"
#include "backend/char/chardev.h"
#include "base/bits.h"
#include "base/log.h"
#include "cli/guardian.h"
#include "cli/keys.h"
#include "cli/options.h"
#include "os/loop.h"
#include "os/tty.h"
#include "vm/vm.h"

/* How long output may stand still before it is given up, when a signal ended the machine. */
#define RUN_DRAIN_MS 1000

struct run {
    const struct options *options;
    struct guardian guardian;
    const char *files[GUARDIAN_FILES_MAX]; /* that go away with us */
    unsigned file_count;
    struct tty tty;
    bool has_tty;    /* the serial port or the console is on a terminal */
    bool is_running; /* the terminal should be raw, when in the foreground */
    struct keys keys;
    struct loop *loop;
    struct chardev *serial;
    struct vm_port ports[VM_PORTS_MAX]; /* the console first, if there is one */
    unsigned port_count;
    struct vm *vm;
    struct rundir_claim claim; /* the name and the control socket */
    struct api *api;           /* NULL: no control socket */
    int signal_fd;
    struct loop_fd *signal_watch;
    int end_signal;     /* the signal that ended the machine, 0: none */
    bool has_left;      /* Ctrl-A X */
    struct err failure; /* code 0: none; else serial output could not be written */
};

static bool run_is_stdio(const char *device)
{
    return device != NULL && strcmp(device, "stdio") == 0;
}

/* ---- terminal ---- */

/* A job in the background leaves the terminal to the shell. -1: it does no job control for us. */
static bool run_owns_terminal(const struct run *run)
{
    pid_t foreground = tcgetpgrp(run->tty.fd);
    return foreground < 0 || foreground == getpgrp();
}

static void run_terminal_enter(struct run *run)
{
    struct err e;
    if (!run->has_tty || !run->is_running || !run_owns_terminal(run))
        return;
    if (tty_enter_raw(&run->tty, &e) != 0) {
        log_warn("%s", e.msg);
        return;
    }
    log_set_raw_terminal(isatty(STDERR_FILENO));
}

static void run_terminal_leave(struct run *run)
{
    if (!run->has_tty)
        return;
    if (run_owns_terminal(run))
        tty_leave_raw(&run->tty);
    log_set_raw_terminal(false);
}

static void run_print(const char *text)
{
    /* The terminal is raw here: "\r\n" ends the lines. */
    while (write(STDERR_FILENO, text, strlen(text)) < 0 && errno == EINTR)
        ;
}

static void run_suspend(void *ctx)
{
    struct run *run = ctx;
    run_terminal_leave(run);
    kill(getpid(), SIGSTOP);
    /* The stop takes effect before this returns or very soon after; SIGCONT does the rest. */
}

static void run_leave(void *ctx)
{
    struct run *run = ctx;
    run->has_left = true;
    vm_request_stop(run->vm);
}

static void run_show_help(void *ctx)
{
    run_print("\r\nCtrl-A X  leave doppel; the machine ends\r\n"
              "Ctrl-A P  press the power button: the guest shuts itself down\r\n"
              "Ctrl-A B  send a break (SysRq on Linux' serial console)\r\n"
              "Ctrl-A Z  suspend doppel ('fg' resumes it)\r\n"
              "Ctrl-A A  with Ctrl held: send Ctrl-A itself\r\n"
              "Ctrl-A H  this help\r\n");
}

static void run_send_break(void *ctx)
{
    struct run *run = ctx;
    chardev_send_break(run_is_stdio(run->options->console) ? run->ports[0].chardev : run->serial);
}

static void run_press_power(void *ctx)
{
    vm_press_power_button(((struct run *)ctx)->vm);
}

static const struct keys_ops run_keys_ops = {
    .leave = run_leave,
    .show_help = run_show_help,
    .send_break = run_send_break,
    .press_power = run_press_power,
    .suspend = run_suspend,
};

/* ---- signals ---- */

static void run_signal_set(sigset_t *set)
{
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP, SIGCONT, SIGWINCH};
    sigemptyset(set);
    for (size_t i = 0; i < ARRAY_SIZE(signals); i++)
        sigaddset(set, signals[i]);
}

/* A virtio console knows how large its terminal is. */
static void run_tell_size(struct run *run)
{
    unsigned rows, columns;
    if (run->has_tty && run_is_stdio(run->options->console) &&
        tty_size(run->tty.fd, &rows, &columns))
        vm_set_console_size(run->vm, columns, rows);
}

static void run_on_signal(void *ctx, unsigned events)
{
    struct run *run = ctx;
    struct signalfd_siginfo info;
    while (read(run->signal_fd, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
        switch (info.ssi_signo) {
        case SIGTSTP:
            run_suspend(run);
            break;
        case SIGCONT:
            run_terminal_enter(run);
            run_tell_size(run);
            break;
        case SIGWINCH:
            run_tell_size(run);
            break;
        default:
            run->end_signal = (int)info.ssi_signo;
            vm_request_stop(run->vm);
            break;
        }
    }
}

static int run_open_signals(struct run *run, struct err *e)
{
    sigset_t set;
    run_signal_set(&set);
    run->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (run->signal_fd < 0)
        return err_set(e, errno, "create a signal descriptor");
    return loop_fd_add(run->loop, run->signal_fd, LOOP_READ, run_on_signal, run, &run->signal_watch,
                       e);
}

/* ---- the machine ---- */

static void run_on_serial_failed(void *ctx, const struct err *why)
{
    struct run *run = ctx;
    run->failure = *why;
    vm_request_stop(run->vm);
}

/* The file that a character device makes and removes; NULL: none. */
static const char *run_file_of(const char *device)
{
    if (device != NULL && strncmp(device, "unix:", 5) == 0)
        return device + 5;
    return device != NULL && strncmp(device, "pty:", 4) == 0 ? device + 4 : NULL;
}

static void run_list_file(struct run *run, const char *file)
{
    if (file != NULL)
        run->files[run->file_count++] = file;
}

static void run_list_files(struct run *run)
{
    const struct options *o = run->options;
    run_list_file(run, run_file_of(o->serial));
    run_list_file(run, run_file_of(o->console));
    for (unsigned i = 0; i < o->port_count; i++)
        run_list_file(run, run_file_of(o->ports[i].device));
    run_list_file(run, o->vsock.cid != 0 ? o->vsock.path : NULL);
}

static int run_open_device(struct run *run, const char *device, struct chardev **out, struct err *e)
{
    struct chardev_stdio_config stdio = {.in_fd = STDIN_FILENO, .out_fd = STDOUT_FILENO};
    if (run->has_tty) {
        run->keys = (struct keys){.ops = &run_keys_ops, .ctx = run};
        stdio.filter = keys_filter;
        stdio.filter_ctx = &run->keys;
    }
    int rc = chardev_create(run->loop, device, &stdio, out, e);
    if (rc == 0 && run_file_of(device) != NULL)
        guardian_note_file(&run->guardian, run_file_of(device));
    return rc;
}

static int run_open_serial(struct run *run, struct err *e)
{
    if (run_open_device(run, run->options->serial, &run->serial, e) != 0)
        return err_prefix(e, "--serial");
    chardev_set_failed(run->serial, run_on_serial_failed, run);
    return 0;
}

/* A port whose other end fails is the loss of one program; a console's is the machine's. */
static void run_on_port_failed(void *ctx, const struct err *why)
{
    log_warn("port '%s': %s; what the guest sends there is lost from now on", (const char *)ctx,
             why->msg);
}

static int run_open_ports(struct run *run, struct err *e)
{
    const struct options *o = run->options;
    if (o->console != NULL) {
        struct vm_port *port = &run->ports[run->port_count];
        if (run_open_device(run, o->console, &port->chardev, e) != 0)
            return err_prefix(e, "--console");
        port->is_console = true;
        run->port_count++;
        chardev_set_failed(port->chardev, run_on_serial_failed, run);
    }
    for (unsigned i = 0; i < o->port_count; i++) {
        struct vm_port *port = &run->ports[run->port_count];
        if (run_open_device(run, o->ports[i].device, &port->chardev, e) != 0)
            return err_prefix(e, "--port name=%s", o->ports[i].name);
        port->name = o->ports[i].name;
        run->port_count++;
        chardev_set_failed(port->chardev, run_on_port_failed, (void *)(uintptr_t)port->name);
    }
    return 0;
}

static int run_open_api(struct run *run, struct err *e)
{
    int rc = rundir_listen(&run->claim, e);
    if (rc != 0)
        return rc;
    struct api_config config = {
        .loop = run->loop,
        .vm = run->vm,
        .name = run->options->name,
        .socket = run->claim.socket,
        .listen_fd = run->claim.listen_fd,
    };
    return api_create(&config, &run->api, e);
}

/* Everything that can fail before the machine runs; run_close undoes any part of it. */
static int run_open(struct run *run, struct err *e)
{
    const struct options *o = run->options;
    bool is_stdio = run_is_stdio(o->serial) || run_is_stdio(o->console);
    if (is_stdio && isatty(STDIN_FILENO)) {
        if (tty_open(&run->tty, STDIN_FILENO, e) != 0)
            return -e->code;
        run->has_tty = true;
    }
    int rc = 0;
    run_list_files(run);
    if (run->has_tty || run->file_count != 0)
        rc = guardian_start(&run->guardian, run->has_tty ? &run->tty : NULL, run->files,
                            run->file_count, e);
    /* After the guardian, whose signals are its own; before the first thread. */
    sigset_t set;
    run_signal_set(&set);
    sigprocmask(SIG_BLOCK, &set, NULL);
    if (rc == 0)
        rc = loop_create(&run->loop, e);
    if (rc == 0)
        rc = run_open_signals(run, e);
    if (rc == 0 && (o->name != NULL || o->control_path != NULL))
        rc = rundir_claim(o->name, o->control_path, &run->claim, e);
    if (rc == 0)
        rc = run_open_serial(run, e);
    if (rc == 0)
        rc = run_open_ports(run, e);
    if (rc != 0)
        return rc;
    struct vm_config config = {
        .engine = o->engine,
        .engines = o->engines,
        .cpu_count = o->cpu_count,
        .memory_bytes = o->memory_bytes,
        .firmware = o->firmware,
        .firmware_vars_path = o->firmware_vars_path,
        .kernel_path = o->kernel_path,
        .initrd_path = o->initrd_path,
        .cmdline = o->cmdline,
        .cpu_model = o->cpu_model,
        .loop = run->loop,
        .serial = run->serial,
        .disks = o->disks,
        .disk_count = o->disk_count,
        .net = o->net,
        .shares = o->shares,
        .share_count = o->share_count,
        .balloon = o->balloon,
        .vsock = o->vsock,
        .ports = run->ports,
        .port_count = run->port_count,
        .has_debug_exit = o->has_debug_exit || o->has_test_device,
        .has_test_device = o->has_test_device,
        .on_reboot = o->on_reboot,
        .kvm_irqchip = o->kvm_irqchip,
        .code_cache_size = o->code_cache_size,
        .counts_hits = o->wants_stats,
        .perf_map_path = o->perf_map_path,
        .dump_blocks_path = o->dump_blocks_path,
        .switch_storm = o->switch_storm,
    };
    memcpy(config.uuid, o->uuid, UUID_SIZE);
    rc = vm_create(&config, &run->vm, e);
    if (rc == 0 && o->vsock.cid != 0)
        guardian_note_file(&run->guardian, o->vsock.path);
    if (rc == 0)
        run_tell_size(run);
    if (rc == 0 && run->claim.socket[0] != '\0')
        rc = run_open_api(run, e);
    return rc;
}

static void run_close(struct run *run)
{
    api_destroy(run->api);
    rundir_release(&run->claim);
    vm_destroy(run->vm);
    chardev_destroy(run->serial);
    for (unsigned i = 0; i < run->port_count; i++)
        chardev_destroy(run->ports[i].chardev);
    loop_fd_remove(run->signal_watch);
    if (run->signal_fd >= 0)
        close(run->signal_fd);
    loop_destroy(run->loop);
    guardian_finish(&run->guardian);
}

/* From here on the usual actions: a user who waits for slow output can press Ctrl-C. */
static void run_unblock_signals(void)
{
    sigset_t set;
    run_signal_set(&set);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
}

static int run_report(struct run *run, const struct vm_end *end)
{
    if (run->failure.code != 0) {
        log_error("%s; the machine was stopped", run->failure.msg);
        return EXIT_STATUS_ERROR;
    }
    switch (end->cause) {
    case VM_END_POWER_OFF:
        return EXIT_STATUS_OK;
    case VM_END_RESET:
        return EXIT_STATUS_REBOOT;
    case VM_END_DIED:
        log_error("the guest died: triple fault on CPU %u\n%s", end->cpu, end->dump);
        return EXIT_STATUS_GUEST_DIED;
    case VM_END_DEBUG_EXIT:
        return (int)end->status;
    case VM_END_STOPPED:
        /* With no signal it was the control socket. */
        if (run->has_left || run->end_signal == 0)
            return EXIT_STATUS_OK;
        log_info("ended by signal %d (%s)", run->end_signal, strsignal(run->end_signal));
        return EXIT_STATUS_SIGNAL + run->end_signal;
    case VM_END_ERROR:
        break;
    }
    log_error("%s", end->error.msg);
    return EXIT_STATUS_ERROR;
}

/* Let output reach the host; `is_bounded`: it is given up when nobody reads it. */
static void run_drain(struct run *run, struct chardev *cd, bool is_bounded)
{
    struct err e;
    if (chardev_drain(cd, is_bounded ? RUN_DRAIN_MS : -1, &e) != 0 && run->failure.code == 0 &&
        !is_bounded)
        run->failure = e;
}

/* vm_end holds a register dump: too large to copy about, and needed once. */
static int run_until_end(struct run *run)
{
    struct vm_end end = {.cause = VM_END_ERROR};
    run->is_running = true;
    run_terminal_enter(run);
    if (run->has_tty && isatty(STDERR_FILENO))
        run_print("doppel: Ctrl-A H for help, Ctrl-A X to leave\r\n");
    vm_run(run->vm, &end);
    if (run->api != NULL) {
        api_finish(run->api, &end);
        rundir_close_socket(&run->claim);
    }
    run->is_running = false;
    run_terminal_leave(run);
    run_unblock_signals();

    bool was_ended = end.cause == VM_END_STOPPED;
    run_drain(run, run->serial, was_ended);
    for (unsigned i = 0; i < run->port_count; i++)
        run_drain(run, run->ports[i].chardev, was_ended || !run->ports[i].is_console);
    if (run->has_left)
        run_print("\ndoppel: left\n");
    int status = run_report(run, &end);
    if (run->options->wants_stats)
        vm_print_stats(run->vm, stderr);
    return status;
}

int run_machine(const struct options *options)
{
    struct run run = {.options = options, .signal_fd = -1, .claim = RUNDIR_CLAIM_NONE};
    struct err e = {0};
    int status;
    if (run_open(&run, &e) == 0) {
        status = run_until_end(&run);
    } else {
        log_error("%s", e.msg);
        status = EXIT_STATUS_ERROR;
    }
    run_close(&run);
    return status;
}
