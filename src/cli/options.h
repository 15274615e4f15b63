/*
 * options.h - the options of `doppel run`
 */
#ifndef DOPPEL_CLI_OPTIONS_H
#define DOPPEL_CLI_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/err.h"
#include "base/log.h"
#include "cli/disk.h"
#include "cli/net.h"
#include "cli/share.h"
#include "cli/port.h"
#include "vm/vm.h"

/* What to do; strings point into argv or are constants. */
struct options {
    bool wants_help;
    bool wants_version;
    bool wants_cpu_models; /* --cpu-model help */
    const char *engine;
    const char *engines;    /* NULL: the one of `engine` */
    const char *image_path; /* NULL: none; else disks[0] too */
    unsigned cpu_count;
    uint64_t memory_bytes;
    bool has_uuid;
    uint8_t uuid[UUID_SIZE];        /* given, or by the name; all zero: none */
    const char *firmware;           /* "auto" or as in vm_config; NULL: a kernel is started */
    const char *firmware_vars_path; /* NULL: variables are not kept */
    const char *kernel_path;
    const char *initrd_path;
    const char *cmdline;
    const char *serial;
    const char *console; /* NULL: none */
    struct port_option ports[VM_PORTS_MAX];
    unsigned port_count;
    const char *name;         /* NULL: none */
    const char *control_path; /* NULL: in the folder of running machines, if there is a name */
    const char *cpu_model;
    struct vm_disk disks[VM_DISKS_MAX];
    char disk_texts[VM_DISKS_MAX][DISK_TEXT_SIZE]; /* what `disks` points into */
    unsigned disk_count;
    bool is_ephemeral; /* which all disks are then */
    struct vm_net net;
    struct vm_balloon balloon;
    struct vm_vsock vsock;
    char net_text[NET_TEXT_SIZE]; /* what `net` points into */
    struct vm_share shares[VM_SHARES_MAX];
    char share_texts[VM_SHARES_MAX][SHARE_TEXT_SIZE]; /* what `shares` points into */
    unsigned share_count;
    bool has_net; /* --net was given */
    bool has_debug_exit;
    bool has_test_device; /* which implies a debug-exit port */
    bool wants_stats;
    enum log_level log_level;
    enum vm_on_reboot on_reboot;
    enum vm_irqchip kvm_irqchip;
    uint64_t code_cache_size;
    const char *perf_map_path;
    const char *dump_blocks_path;
    uint64_t switch_storm;
};

/* Fill *out from argv[0..argc), which starts behind "run". Returns 0 or -EINVAL. */
int options_parse(int argc, char *const *argv, struct options *out, struct err *e);

void options_print_help(FILE *out);

#endif
