/*
 * vm.h - a virtual machine, from its parts to its end
 *
 * Threads: the thread that calls vm_create owns the machine; vm_run runs `loop` on it (the main
 * loop, where timers, character devices and whatever the caller watches have their turn) and
 * starts one thread for each CPU. What the owner may call while vm_run runs it calls from within
 * the loop. vm_request_stop and vm_press_power_button may be called from any thread.
 */
#ifndef DOPPEL_VM_VM_H
#define DOPPEL_VM_VM_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "backend/block/block.h"
#include "backend/net/netdev.h"
#include "backend/share/share.h"
#include "base/err.h"
#include "base/uuid.h"

struct chardev;
struct loop;
struct stats_sink;
struct vm;

#define VM_CPUS_MAX 64

enum vm_on_reboot {
    VM_REBOOT_RESET,   /* load the kernel again and start over */
    VM_REBOOT_EXIT,    /* the machine ends: VM_END_RESET */
};

/* A virtio disk, kept in a file or on a block device of the host, or by another process. */
struct vm_disk {
    const char *path;
    bool is_vhost_user; /* `path` is the other process's socket, and the rest its business */
    enum block_format format; /* AUTO: found out; backend/block/image.h says how */
    bool is_read_only;
    bool is_ephemeral; /* the image is only read; what the guest writes is lost at the end */
    enum block_cache cache;
    enum block_aio aio;
    const char *serial; /* as the guest sees it, up to 20 characters; NULL: none */
};

#define VM_DISKS_MAX 16

/* A port of the virtio console. */
struct vm_port {
    struct chardev *chardev; /* on the main loop */
    bool is_console;         /* hvc0 and so on; else a port for programs */
    const char *name;        /* NULL: none */
};

#define VM_PORTS_MAX 16

/* The memory balloon. */
struct vm_balloon {
    bool is_there;
    bool deflates_on_oom;    /* the guest takes pages back before it kills processes */
    bool reports_free_pages; /* the guest tells which pages it does not use */
};

/* Sockets between guest and host (virtio_vsock.h says how). */
struct vm_vsock {
    uint32_t cid;     /* the guest's; 0: there are none */
    const char *path; /* of the host's socket */
};

#define VM_VSOCK_CID_MIN 3u
#define VM_VSOCK_CID_MAX 0xfffffffeu
#define VM_VSOCK_PATH_MAX 96u

/* Local APICs in the host's kernel. */
enum vm_irqchip {
    VM_IRQCHIP_OFF,
    VM_IRQCHIP_AUTO,   /* where KVM has them and runs kernel-mode code at hardware speed */
    VM_IRQCHIP_ON,     /* where KVM has them, or the machine cannot be made */
};

enum vm_net_kind { VM_NET_NONE, VM_NET_USER, VM_NET_SOCKET, VM_NET_VHOST_USER, VM_NET_TAP };

/* A virtio network interface. */
struct vm_net {
    enum vm_net_kind kind;
    bool has_mac;
    uint8_t mac[6]; /* has_mac: else one that is made up, the same for every start */
    unsigned mtu;   /* the largest IP packet, NETDEV_MTU_MIN..NETDEV_MTU_MAX; 0: the usual */
    struct netdev_user_config user;
    unsigned queues;  /* VM_NET_TAP: of the interface, 1..NETDEV_QUEUES_MAX; 0: one */
    const char *path; /* of the socket; VM_NET_TAP: the interface's name, NULL: a new one */
};

/* A folder of the host, which the guest mounts by its tag (virtio-fs). */
struct vm_share {
    const char *path;
    bool is_vhost_user; /* as for disks */
    const char *tag; /* 1 to VM_SHARE_TAG_MAX bytes */
    bool is_read_only;
    enum share_cache cache;
    bool has_locks; /* its locks and the host's exclude each other */
};

#define VM_SHARES_MAX 8
#define VM_SHARE_TAG_MAX 36

/* Strings and objects are the caller's and outlive the machine. */
struct vm_config {
    const char *engine;          /* "auto", "kvm", "bt" or "interp"; NULL is "auto" */
    const char *engines;         /* engines that it is to run on, as in "bt,interp"; NULL: `engine` */
    enum vm_irqchip kvm_irqchip; /* where the engine is kvm */
    unsigned cpu_count;          /* 1..VM_CPUS_MAX */
    uint8_t uuid[UUID_SIZE];     /* the machine's, as firmware tells it; all zero: none */
    uint64_t memory_bytes;       /* a multiple of 1 MiB, see VM_MEMORY_MIN */
    const char *kernel_path;     /* bzImage, ELF with a PVH note, or Multiboot 1; NULL: firmware */
    const char *firmware;        /* "auto", "seabios", "ovmf" or a file; NULL: kernel_path */
    const char *firmware_vars_path; /* where its variables are kept; NULL: nowhere */
    const char *initrd_path;     /* NULL: none; Multiboot: comma-separated list of modules */
    const char *cmdline;         /* NULL: empty */
    const char *cpu_model;       /* as for cpu_model_create; NULL is "host" */
    struct loop *loop;           /* the main loop, made by the caller */
    struct chardev *serial;      /* the other end of COM1, on `loop`; NULL: nothing connected */
    const struct vm_disk *disks;
    unsigned disk_count;         /* at most VM_DISKS_MAX */
    struct vm_net net;
    const struct vm_share *shares;
    unsigned share_count;        /* at most VM_SHARES_MAX */
    const struct vm_port *ports; /* consoles before others */
    unsigned port_count;         /* at most VM_PORTS_MAX */
    struct vm_balloon balloon;
    struct vm_vsock vsock;
    bool has_debug_exit;         /* a debug-exit port at 0xf4 */
    bool has_test_device;        /* QEMU's pc-testdev and firmware configuration */
    enum vm_on_reboot on_reboot;
    uint64_t code_cache_size;    /* bytes; 0: the engine's default */
    bool counts_hits;            /* for `--stats`: count in generated code; a little slower */
    const char *perf_map_path;   /* NULL: none */
    const char *dump_blocks_path; /* NULL: none */
    uint64_t switch_storm;       /* for tests: change engine every so many instructions; 0: don't */
};

#define VM_MEMORY_MIN (UINT64_C(2) << 20)
#define VM_MEMORY_MAX (UINT64_C(1) << 40)

enum vm_end_cause {
    VM_END_POWER_OFF,    /* ACPI S5 or the like */
    VM_END_RESET,        /* the guest asked for a reset, and VM_REBOOT_EXIT says to end */
    VM_END_DIED,         /* triple fault: `cpu`, `dump` */
    VM_END_DEBUG_EXIT,   /* written to the debug-exit port: `status` */
    VM_END_STOPPED,      /* vm_request_stop */
    VM_END_ERROR,        /* doppel cannot go on: `error` */
};

#define VM_DUMP_SIZE 4096

struct vm_end {
    enum vm_end_cause cause;
    unsigned status;           /* VM_END_DEBUG_EXIT: (value written << 1) | 1, modulo 256 */
    unsigned cpu;              /* VM_END_DIED: which CPU */
    char dump[VM_DUMP_SIZE];   /* VM_END_DIED: its registers, lines ending in "\n" */
    struct err error;          /* VM_END_ERROR */
};

/*
 * Make a machine, load the kernel into it and leave it ready to run. On failure nothing is
 * left behind and *e says which option or file is at fault.
 */
int vm_create(const struct vm_config *config, struct vm **out, struct err *e);

/*
 * Run until the machine ends or somebody stops it; every CPU's thread has ended on return.
 * Once only. Always fills *end.
 */
void vm_run(struct vm *vm, struct vm_end *end);

/* Make vm_run return with VM_END_STOPPED, also when it has not been called yet. Any thread. */
void vm_request_stop(struct vm *vm);

/* Push the power button (ACPI fixed feature), so that the guest shuts itself down. Any thread. */
void vm_press_power_button(struct vm *vm);

/*
 * Stop every CPU between two instructions, and guest time with them: when the machine goes on, its
 * TSC, kvmclock and timers go on where they stood, and kvmclock tells the guest's watchdogs that
 * it was stopped. The real-time clock keeps to the host's time, as one with a battery does. What
 * comes from outside meanwhile (serial input, the power button) waits.
 *
 * Owner's thread, before vm_run too. No harm if the machine is paused, or runs, already; an error
 * if it has ended.
 */
int vm_pause(struct vm *vm, struct err *e);
int vm_resume(struct vm *vm, struct err *e);
bool vm_is_paused(const struct vm *vm);

/* What executes the guest now: "kvm", "bt" or "interp". Owner's thread. */
const char *vm_engine_name(const struct vm *vm);

struct vm_switch {
    const char *from, *to;
    uint64_t prepare_ns;         /* opening the new engine, while the guest ran */
    uint64_t stopped_ns;         /* how long the guest stood still */
};

/*
 * Let the guest go on on another engine; paused, it stays paused. Guest time does not stop. When
 * that is not possible the machine goes on as before and *e says why: the engine is not there, or
 * does not offer the CPU model that the machine was made with (vm_config.engines). *done may be
 * NULL. Owner's thread.
 */
int vm_switch_engine(struct vm *vm, const char *engine, struct vm_switch *done, struct err *e);

struct vm_balloon_status {
    bool has_driver;
    uint64_t target_bytes, actual_bytes;
};

/* False when the machine has no balloon. Any thread. */
bool vm_get_balloon(struct vm *vm, struct vm_balloon_status *out);

/* Ask the guest to give back so much of its memory, in a balloon of that size. Any thread. */
int vm_set_balloon(struct vm *vm, uint64_t bytes, struct err *e);

/* Plug the network's cable in, or out. Any thread. */
int vm_set_link(struct vm *vm, bool is_up, struct err *e);

/*
 * Give a disk, named by its number from 0 on, its path or its serial number, *bytes, or with 0 the
 * size that its file has by now; the guest is told. A disk only grows here. *bytes becomes the new
 * size. Owner's thread.
 */
int vm_resize_disk(struct vm *vm, const char *disk, uint64_t *bytes, struct err *e);

/* The size of the terminal behind the first of `ports`, in characters. Any thread. */
void vm_set_console_size(struct vm *vm, unsigned columns, unsigned rows);

/* Strings are the machine's. */
struct vm_status {
    const char *engine;        /* "kvm", "bt" or "interp" */
    bool is_paused;
    unsigned cpu_count;
    uint64_t memory_bytes;
    const char *cpu_model, *cmdline;
    const char *firmware;      /* as chosen, "auto" is none; NULL: it started a kernel */
    const char *kernel_path;   /* NULL: it started with firmware */
    const char *initrd_path;   /* NULL: none */
    uint64_t guest_ns;         /* guest time since the machine was made */
};

/* Owner's thread. */
void vm_get_status(struct vm *vm, struct vm_status *out);

/*
 * What was counted: time of each CPU, then the engine's counters. The CPUs are held meanwhile.
 * Owner's thread.
 */
void vm_report_stats(struct vm *vm, struct stats_sink *sink);
/* The same as text, for `--stats`. */
void vm_print_stats(struct vm *vm, FILE *out);

/* NULL is allowed. Not while vm_run runs. `loop` and `serial` are left to the caller. */
void vm_destroy(struct vm *vm);

#endif
