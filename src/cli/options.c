/*
 * options.c - the options of `doppel run`: one table for parsing and for --help
 *
 * Invariant: whatever is in the table is parsed, shown by --help, described in the manual page
 * and completed by the shell; a test compares them.
 */
#include "cli/options.h"

#include <errno.h>
#include <string.h>

#include "api/rundir.h"
#include "base/bits.h"
#include "base/parse.h"
#include "cli/image.h"
#include "cli/output.h"
#include "cli/props.h"
#include "cli/remote.h"
#include "cli/suggest.h"
#include "cli/switch.h"
#include "os/cpus.h"

#define DEFAULT_MEMORY (UINT64_C(512) << 20)
#define IMAGE_MEMORY (UINT64_C(1) << 30)
#define IMAGE_CPUS 2u

enum option_id {
    OPTION_ENGINE,
    OPTION_ENGINES,
    OPTION_KVM_IRQCHIP,
    OPTION_CPUS,
    OPTION_MEMORY,
    OPTION_CPU_MODEL,
    OPTION_UUID,
    OPTION_FIRMWARE,
    OPTION_FIRMWARE_VARS,
    OPTION_KERNEL,
    OPTION_INITRD,
    OPTION_CMDLINE,
    OPTION_DISK,
    OPTION_EPHEMERAL,
    OPTION_NET,
    OPTION_SHARE,
    OPTION_SERIAL,
    OPTION_CONSOLE,
    OPTION_PORT,
    OPTION_BALLOON,
    OPTION_VSOCK,
    OPTION_DEBUG_EXIT,
    OPTION_TEST_DEVICE,
    OPTION_ON_REBOOT,
    OPTION_NAME,
    OPTION_CONTROL,
    OPTION_STATS,
    OPTION_LOG,
    OPTION_CODE_CACHE,
    OPTION_PERF_MAP,
    OPTION_DUMP_BLOCKS,
    OPTION_SWITCH_STORM,
    OPTION_HELP,
    OPTION_VERSION,
    OPTION_COUNT,
};

/* clang-format off */
static const struct option_spec {
    const char *name;
    const char *arg;    /* NULL: takes none */
    const char *title;  /* heading above it in --help, NULL: none */
    const char *help;
} option_specs[OPTION_COUNT] = {
    [OPTION_ENGINE] = {"engine", "auto|kvm|bt|interp", "Machine",
        "What executes the guest: the host's KVM (kvm), the\n"
        "translator (bt), its slow step-by-step twin (interp), or\n"
        "the best there is (auto, the default)"},
    [OPTION_ENGINES] = {"engines", "LIST", NULL,
        "Engines that the guest may be moved to while it runs, as in\n"
        "kvm,bt: it sees a CPU that all of them can offer (default:\n"
        "what the engine it starts on can offer)"},
    [OPTION_KVM_IRQCHIP] = {"kvm-irqchip", "auto|on|off", NULL,
        "Under kvm, local APICs in the host's kernel: never (off, the\n"
        "default), always, or where they are there and good (auto)"},
    [OPTION_CPUS] = {"cpus", "N", NULL,
        "Number of CPUs, 1 to 64 (default 1; with IMAGE 2, if the host\n"
        "has them)"},
    [OPTION_MEMORY] = {"memory", "SIZE", NULL,
        "Memory, as in 512M or 4G (default 512M; with IMAGE 1G)"},
    [OPTION_CPU_MODEL] = {"cpu-model", "MODEL[,+F,-F]", NULL,
        "CPU that the guest sees: host (the default) or a named\n"
        "model, with features F added or taken away; 'help' lists\n"
        "the names"},
    [OPTION_UUID] = {"uuid", "UUID", NULL,
        "Identity that firmware tells the guest (default: made from\n"
        "the machine's --name, and none without a name)"},
    [OPTION_FIRMWARE] = {"firmware", "auto|seabios|ovmf|FILE", "Boot",
        "Without a kernel: what boots from the first disk, a BIOS\n"
        "(seabios), a UEFI (ovmf), a ROM file, or what the disk looks\n"
        "made for (auto, the default)"},
    [OPTION_FIRMWARE_VARS] = {"firmware-vars", "FILE", NULL,
        "Keep UEFI's variables in FILE, which is made when it is not\n"
        "there (default: they are forgotten with the machine)"},
    [OPTION_KERNEL] = {"kernel", "FILE", NULL,
        "Kernel: Linux bzImage, ELF with a PVH note, or Multiboot"},
    [OPTION_INITRD] = {"initrd", "FILE", NULL,
        "Initial RAM disk; for Multiboot a list FILE,FILE of modules"},
    [OPTION_CMDLINE] = {"cmdline", "STRING", NULL,
        "Kernel command line"},
    [OPTION_DISK] = {"disk", "FILE[,PROPERTY...]", "Devices",
        "A virtio disk in a raw or qcow2 file or on a block device,\n"
        "up to 16 times. Properties: ro (read-only), format=raw or\n"
        "qcow2 (else found out), serial=TEXT, bus=virtio (there is\n"
        "no other), cache=writeback (the default), none (past the\n"
        "page cache) or unsafe (the guest's flushes are ignored),\n"
        "aio=auto (the default), io_uring or threads. For FILE also\n"
        "nbd://HOST/EXPORT or nbd+unix:///EXPORT?socket=PATH, which\n"
        "an NBD server has, or vhost-user:PATH, a disk that another\n"
        "process serves"},
    [OPTION_EPHEMERAL] = {"ephemeral", NULL, NULL,
        "What the guest writes to its disks is kept in a temporary\n"
        "file and lost at the end; the images are only read"},
    [OPTION_NET] = {"net", "NETWORK[,PROPERTY...]", NULL,
        "Network interface: none (the default); user (that with\n"
        "IMAGE), a network of the guest's own that needs no rights;\n"
        "tap, an interface of the host's; socket:PATH, one with other\n"
        "machines, by 'doppel switch PATH'; or vhost-user:PATH, served\n"
        "by another process. Properties: ifname=NAME of a tap\n"
        "interface that root made for you (else a new one, which\n"
        "takes rights), queues=N of it, each with a thread;\n"
        "mac=ADDRESS (default: by the machine's name), mtu=BYTES;\n"
        "for user: restrict (no way out) and\n"
        "hostfwd=tcp|udp:[ADDR]:PORT-[ADDR]:PORT (a port of the host\n"
        "leads to the guest)"},
    [OPTION_SHARE] = {"share", "PATH,tag=NAME[,ro][,cache=..][,locks=on]", NULL,
        "Share a folder of the host with the guest, up to 8 times;\n"
        "in a Linux guest: mount -t virtiofs NAME /where. With ro\n"
        "it can only be read. What the guest keeps of it in memory:\n"
        "cache=auto (names for a second, data until it was changed),\n"
        "always (nobody else writes there), never. With locks=on\n"
        "locks of its files are the host's, so that programs here\n"
        "and other guests heed them. With\n"
        "vhost-user:PATH for PATH, another process (virtiofsd)\n"
        "serves it"},
    [OPTION_SERIAL] = {"serial", "DEVICE", NULL,
        "First serial port: stdio (the default), file:PATH,\n"
        "unix:PATH (a listening socket), pty:PATH (a link to a\n"
        "pseudo-terminal) or none"},
    [OPTION_CONSOLE] = {"console", "DEVICE", NULL,
        "A virtio console (hvc0 in Linux), whose other end is as for\n"
        "--serial; with stdio, --serial becomes none"},
    [OPTION_PORT] = {"port", "name=NAME,PROPERTY", NULL,
        "A port for programs (/dev/virtio-ports/NAME in Linux), up\n"
        "to 15 times. Its other end: socket=PATH, file=PATH or\n"
        "pty=PATH"},
    [OPTION_BALLOON] = {"balloon", "none|on[,PROPERTY...]", NULL,
        "A memory balloon, for 'doppel balloon': none (the default)\n"
        "or on. Properties: reporting (the guest also gives back\n"
        "what it does not use), deflate-on-oom (it takes memory back\n"
        "before it kills processes)"},
    [OPTION_VSOCK] = {"vsock", "CID,PATH", NULL,
        "Sockets between guest and host (AF_VSOCK): who connects to\n"
        "PATH and sends 'CONNECT port' gets that port of the guest,\n"
        "whose address is CID; its own connections go to PATH_port"},
    [OPTION_DEBUG_EXIT] = {"debug-exit", NULL, NULL,
        "Add a port at 0xf4: writing V there ends doppel with\n"
        "status (V<<1)|1"},
    [OPTION_TEST_DEVICE] = {"test-device", NULL, NULL,
        "Add what bare-metal test suites for QEMU expect:\n"
        "pc-testdev, fw_cfg and the port of --debug-exit"},
    [OPTION_ON_REBOOT] = {"on-reboot", "reset|exit", NULL,
        "When the guest reboots: start it over (the default), or\n"
        "end with status 3"},
    [OPTION_NAME] = {"name", "NAME", "Control",
        "Name under which 'doppel stop NAME' and the like find it"},
    [OPTION_CONTROL] = {"control", "PATH", NULL,
        "Make the control socket at PATH, instead of under the name"},
    [OPTION_STATS] = {"stats", NULL, "Watching",
        "Print a table of what happened and what it cost, at the end"},
    [OPTION_LOG] = {"log", "LEVEL", NULL,
        "Messages on standard error: error, warn (the default),\n"
        "info, debug or trace"},
    [OPTION_CODE_CACHE] = {"code-cache", "SIZE", NULL,
        "Size of the translator's code cache, as in 64M"},
    [OPTION_PERF_MAP] = {"perf-map", "FILE", NULL,
        "Write a symbol map of translated code for perf(1)"},
    [OPTION_DUMP_BLOCKS] = {"dump-blocks", "FILE", NULL,
        "Write every translated block, guest and host code side by\n"
        "side"},
    [OPTION_SWITCH_STORM] = {"switch-storm", "N", NULL,
        "For tests: go to the next engine of --engines after about\n"
        "every N instructions"},
    [OPTION_HELP] = {"help", NULL, "Help",
        "Print this text"},
    [OPTION_VERSION] = {"version", NULL, NULL,
        "Print the version"},
};
/* clang-format on */

void options_print_help(FILE *out)
{
    fputs("Usage: doppel run [options] IMAGE\n"
          "       doppel run [options] --kernel FILE\n"
          "       doppel COMMAND [options] [MACHINE]\n"
          "       doppel image COMMAND [options] FILE...\n"
          "       doppel help | --help | --version\n"
          "\n"
          "Runs a virtual machine, with no need for /dev/kvm or special rights. It boots\n"
          "from a disk IMAGE by firmware, or starts a kernel.\n"
          "The guest's serial output goes to standard output, doppel's own messages to\n"
          "standard error. On a terminal: Ctrl-A H for help, Ctrl-A X to leave.\n",
          out);
    for (unsigned i = 0; i < OPTION_COUNT; i++) {
        if (option_specs[i].title != NULL)
            fprintf(out, "\n%s:\n", option_specs[i].title);
        output_option(out, option_specs[i].name, option_specs[i].arg, option_specs[i].help);
    }
    fputs(
        "\nCommands on machines that run, and between them ('doppel COMMAND --help' says more):\n",
        out);
    remote_print_list(out);
    switch_print_line(out);
    fputs("\nDisk images ('doppel image --help' says more):\n", out);
    image_print_list(out);
    fputs("\n"
          "Exit status:\n"
          "  0      the guest powered off, or somebody left with Ctrl-A X\n"
          "         or stopped the machine with 'doppel stop'\n"
          "  1      usage or host error; the message says what to do\n"
          "  2      the guest died (triple fault); its registers are printed\n"
          "  3      the guest rebooted, and --on-reboot exit was given\n"
          "  128+N  ended by signal N (130: SIGINT, 143: SIGTERM)\n"
          "  other  (V<<1)|1 of a write of V to the port of --debug-exit\n"
          "\n"
          "The manual page doppel(1) says more.\n",
          out);
}

/* ---- parsing ---- */

static int options_unknown(const char *arg, size_t name_len, struct err *e)
{
    const char *names[OPTION_COUNT];
    for (unsigned i = 0; i < OPTION_COUNT; i++)
        names[i] = option_specs[i].name;
    char typed[64];
    snprintf(typed, sizeof(typed), "%.*s", (int)name_len, arg + strspn(arg, "-"));
    const char *near = suggest_nearest(typed, names, OPTION_COUNT);
    if (near != NULL)
        return err_set(e, 0, "unknown option '%.*s'; did you mean '--%s'?",
                       (int)(name_len + strspn(arg, "-")), arg, near);
    return err_set(e, 0, "unknown option '%s'; 'doppel run --help' lists them all", arg);
}

static int options_find(const char *arg, enum option_id *id, const char **value, struct err *e)
{
    if (strcmp(arg, "-h") == 0)
        arg = "--help";
    const char *name = arg + strspn(arg, "-");
    size_t len = strcspn(name, "=");
    *value = name[len] == '=' ? name + len + 1 : NULL;
    if (name == arg + 2)
        for (unsigned i = 0; i < OPTION_COUNT; i++)
            if (strlen(option_specs[i].name) == len &&
                memcmp(option_specs[i].name, name, len) == 0) {
                *id = (enum option_id)i;
                return 0;
            }
    return options_unknown(arg, len, e);
}

static int options_take_memory(const char *value, uint64_t *out, struct err *e)
{
    int rc = parse_size(value, "--memory", out, e);
    if (rc != 0)
        return rc;
    char min[PARSE_SIZE_TEXT], max[PARSE_SIZE_TEXT];
    if (*out < VM_MEMORY_MIN || *out > VM_MEMORY_MAX)
        return err_set(e, 0,
                       "--memory: %s is out of range (%s to %s); bytes are meant unless a "
                       "suffix such as M or G follows",
                       value, parse_format_size(VM_MEMORY_MIN, min),
                       parse_format_size(VM_MEMORY_MAX, max));
    if (*out % (UINT64_C(1) << 20) != 0)
        return err_set(e, 0, "--memory: %s is not a multiple of 1M", value);
    return 0;
}

static int options_take_vsock(const char *value, struct vm_vsock *out, struct err *e)
{
    const char *comma = strchr(value, ',');
    char text[16] = "";
    uint64_t cid;
    if (comma == NULL || comma[1] == '\0' || comma == value ||
        (size_t)(comma - value) >= sizeof(text))
        return err_set(e, 0, "--vsock: '%s' has not the form CID,PATH, as in 3,/tmp/guest.vsock",
                       value);
    memcpy(text, value, (size_t)(comma - value));
    int rc = parse_u64(text, "--vsock: the CID", VM_VSOCK_CID_MIN, VM_VSOCK_CID_MAX, &cid, e);
    if (rc == 0 && strlen(comma + 1) > VM_VSOCK_PATH_MAX)
        rc = err_set(e, ENAMETOOLONG, "--vsock: '%s' (at most %u bytes)", comma + 1,
                     VM_VSOCK_PATH_MAX);
    *out = (struct vm_vsock){.cid = rc == 0 ? (uint32_t)cid : 0, .path = comma + 1};
    return rc;
}

static int options_take_balloon_property(const char *part, void *ctx, struct err *e)
{
    static const char *const names[] = {"reporting", "deflate-on-oom"};
    struct vm_balloon *out = ctx;
    if (strcmp(part, names[0]) == 0)
        out->reports_free_pages = true;
    else if (strcmp(part, names[1]) == 0)
        out->deflates_on_oom = true;
    else
        return props_unknown("--balloon", part, names, ARRAY_SIZE(names),
                             "there are reporting and deflate-on-oom", e);
    return 0;
}

static int options_take_balloon(const char *value, struct vm_balloon *out, struct err *e)
{
    static const char *const kinds[] = {"none", "on"};
    char text[64];
    char *to = text;
    unsigned kind = 0;
    if (strlen(value) >= sizeof(text))
        return err_set(e, 0, "--balloon: the value is longer than %zu characters",
                       sizeof(text) - 1);
    const char *rest = props_take(value, &to);
    int rc = props_choose("--balloon", "value", text, kinds, ARRAY_SIZE(kinds), &kind, e);
    *out = (struct vm_balloon){.is_there = kind == 1};
    if (rc == 0 && kind == 0 && rest != NULL)
        return err_set(e, 0, "--balloon: none has no properties");
    if (rc == 0)
        rc = props_each(rest, &to, options_take_balloon_property, out, e);
    return rc;
}

static int options_take_words(enum option_id id, const char *value, struct options *out,
                              struct err *e)
{
    static const char *const engines[] = {"auto", "kvm", "bt", "interp"};
    static const char *const reboots[] = {[VM_REBOOT_RESET] = "reset", [VM_REBOOT_EXIT] = "exit"};
    static const char *const irqchips[] = {
        [VM_IRQCHIP_AUTO] = "auto", [VM_IRQCHIP_ON] = "on", [VM_IRQCHIP_OFF] = "off"};
    static const char *const levels[] = {[LOG_ERROR] = "error",
                                         [LOG_WARN] = "warn",
                                         [LOG_INFO] = "info",
                                         [LOG_DEBUG] = "debug",
                                         [LOG_TRACE] = "trace"};
    unsigned i = 0;
    int rc;
    switch (id) {
    case OPTION_ENGINE:
        rc = props_choose("--engine", "value", value, engines, ARRAY_SIZE(engines), &i, e);
        out->engine = engines[i];
        return rc;
    case OPTION_KVM_IRQCHIP:
        rc = props_choose("--kvm-irqchip", "value", value, irqchips, ARRAY_SIZE(irqchips), &i, e);
        out->kvm_irqchip = (enum vm_irqchip)i;
        return rc;
    case OPTION_ON_REBOOT:
        rc = props_choose("--on-reboot", "value", value, reboots, ARRAY_SIZE(reboots), &i, e);
        out->on_reboot = (enum vm_on_reboot)i;
        return rc;
    default:
        rc = props_choose("--log", "value", value, levels, ARRAY_SIZE(levels), &i, e);
        out->log_level = (enum log_level)i;
        return rc;
    }
}

static int options_take_share(const char *value, struct options *out, struct err *e)
{
    struct vm_share *share = &out->shares[out->share_count];

    if (out->share_count == VM_SHARES_MAX)
        return err_set(e, 0, "--share: there can be %u shared folders", VM_SHARES_MAX);
    int rc = share_parse(value, out->share_texts[out->share_count], share, e);
    for (unsigned i = 0; rc == 0 && i < out->share_count; i++)
        if (strcmp(out->shares[i].tag, share->tag) == 0)
            rc = err_set(e, 0, "--share: two folders have the tag '%s'", share->tag);
    out->share_count++;
    return rc;
}

static int options_take(enum option_id id, const char *value, struct options *out, struct err *e)
{
    uint64_t number;
    int rc = 0;
    switch (id) {
    case OPTION_ENGINE:
    case OPTION_KVM_IRQCHIP:
    case OPTION_ON_REBOOT:
    case OPTION_LOG:
        return options_take_words(id, value, out, e);
    case OPTION_CPUS:
        rc = parse_u64(value, "--cpus", 1, VM_CPUS_MAX, &number, e);
        if (rc == 0)
            out->cpu_count = (unsigned)number;
        return rc;
    case OPTION_MEMORY:
        return options_take_memory(value, &out->memory_bytes, e);
    case OPTION_CODE_CACHE:
        rc = parse_size(value, "--code-cache", &out->code_cache_size, e);
        if (rc == 0 && out->code_cache_size == 0)
            rc = err_set(e, 0, "--code-cache: 0 is too small");
        return rc;
    case OPTION_SWITCH_STORM:
        return parse_u64(value, "--switch-storm", 1, INT64_MAX, &out->switch_storm, e);
    case OPTION_ENGINES:
        out->engines = value;
        return 0;
    case OPTION_CPU_MODEL:
        out->cpu_model = value;
        out->wants_cpu_models = strcmp(value, "help") == 0;
        return 0;
    case OPTION_UUID:
        out->has_uuid = true;
        return uuid_parse(value, "--uuid", out->uuid, e);
    case OPTION_FIRMWARE:
        out->firmware = value;
        return 0;
    case OPTION_FIRMWARE_VARS:
        out->firmware_vars_path = value;
        return 0;
    case OPTION_KERNEL:
        out->kernel_path = value;
        return 0;
    case OPTION_INITRD:
        out->initrd_path = value;
        return 0;
    case OPTION_CMDLINE:
        out->cmdline = value;
        return 0;
    case OPTION_DISK:
        if (out->disk_count == VM_DISKS_MAX)
            return err_set(e, 0, "--disk: there can be %u disks", VM_DISKS_MAX);
        rc = disk_parse(value, out->disk_texts[out->disk_count], &out->disks[out->disk_count], e);
        out->disk_count++;
        return rc;
    case OPTION_NET:
        out->has_net = true;
        return net_parse(value, out->net_text, &out->net, e);
    case OPTION_SHARE:
        return options_take_share(value, out, e);
    case OPTION_SERIAL:
        out->serial = value;
        return 0;
    case OPTION_CONSOLE:
        out->console = value;
        return 0;
    case OPTION_PORT:
        if (out->port_count == VM_PORTS_MAX - 1)
            return err_set(e, 0, "--port: there can be %u ports", VM_PORTS_MAX - 1);
        return port_parse(value, &out->ports[out->port_count++], e);
    case OPTION_BALLOON:
        return options_take_balloon(value, &out->balloon, e);
    case OPTION_VSOCK:
        return options_take_vsock(value, &out->vsock, e);
    case OPTION_NAME:
        out->name = value;
        if (rundir_check_name(value, e) != 0)
            return err_prefix(e, "--name");
        return 0;
    case OPTION_CONTROL:
        out->control_path = value;
        return 0;
    case OPTION_PERF_MAP:
        out->perf_map_path = value;
        return 0;
    case OPTION_DUMP_BLOCKS:
        out->dump_blocks_path = value;
        return 0;
    case OPTION_DEBUG_EXIT:
        out->has_debug_exit = true;
        return 0;
    case OPTION_TEST_DEVICE:
        out->has_test_device = true;
        return 0;
    case OPTION_STATS:
        out->wants_stats = true;
        return 0;
    case OPTION_EPHEMERAL:
        out->is_ephemeral = true;
        return 0;
    case OPTION_HELP:
        out->wants_help = true;
        return 0;
    case OPTION_VERSION:
        out->wants_version = true;
        return 0;
    case OPTION_COUNT:
        break;
    }
    return err_set(e, 0, "unknown option");
}

/* ---- what follows from what was given ---- */

/* IMAGE is the first disk; whoever gives no more gets a machine that is good for most systems. */
static int options_add_image(struct options *out, struct err *e)
{
    if (out->kernel_path != NULL)
        return err_set(e, 0, "IMAGE '%s' boots by itself; with --kernel, give it as --disk %s",
                       out->image_path, out->image_path);
    if (out->disk_count == VM_DISKS_MAX)
        return err_set(e, 0, "there can be %u disks, '%s' among them", VM_DISKS_MAX,
                       out->image_path);
    memmove(&out->disks[1], &out->disks[0], out->disk_count * sizeof(out->disks[0]));
    out->disks[0] = (struct vm_disk){.path = out->image_path};
    out->disk_count++;
    if (out->cpu_count == 0)
        out->cpu_count = MIN(host_cpu_count(), IMAGE_CPUS);
    if (out->memory_bytes == 0)
        out->memory_bytes = IMAGE_MEMORY;
    if (!out->has_net)
        out->net.kind = VM_NET_USER;
    return 0;
}

static int options_check_boot(const struct options *o, struct err *e)
{
    if (o->kernel_path != NULL && o->firmware != NULL)
        return err_set(e, 0, "--kernel and --firmware: a machine starts with one of them");
    if (o->kernel_path != NULL && o->firmware_vars_path != NULL)
        return err_set(e, 0, "--firmware-vars is for firmware, not for --kernel");
    if (o->kernel_path == NULL && o->firmware == NULL && o->disk_count == 0)
        return err_set(e, 0, "nothing to boot: name a disk image, or a kernel with --kernel FILE");
    if (o->kernel_path == NULL && o->initrd_path != NULL)
        return err_set(e, 0, "--initrd is for a kernel: say which with --kernel FILE");
    if (o->kernel_path == NULL && o->cmdline != NULL)
        return err_set(e, 0, "--cmdline is for a kernel: say which with --kernel FILE");
    return 0;
}

/* Standard input and output are one device's: the console's rather than the serial port's. */
static int options_check_stdio(struct options *out, struct err *e)
{
    bool is_console = out->console != NULL && strcmp(out->console, "stdio") == 0;

    if (out->serial == NULL)
        out->serial = is_console ? "none" : "stdio";
    else if (is_console && strcmp(out->serial, "stdio") == 0)
        return err_set(e, 0, "--serial and --console cannot both be stdio");
    return 0;
}

static int options_complete(struct options *out, struct err *e)
{
    int rc = 0;

    if (out->wants_help || out->wants_version || out->wants_cpu_models)
        return 0;
    if (out->image_path != NULL)
        rc = options_add_image(out, e);
    if (rc == 0)
        rc = options_check_boot(out, e);
    if (rc != 0)
        return rc;
    if (out->cpu_count == 0)
        out->cpu_count = 1;
    if (out->memory_bytes == 0)
        out->memory_bytes = DEFAULT_MEMORY;
    if (out->kernel_path == NULL && out->firmware == NULL)
        out->firmware = "auto";
    for (unsigned i = 0; i < out->disk_count; i++) {
        if (out->is_ephemeral && out->disks[i].is_vhost_user)
            return err_set(e, 0,
                           "--ephemeral: what is written to 'vhost-user:%s' is the business "
                           "of who serves it",
                           out->disks[i].path);
        out->disks[i].is_ephemeral = out->is_ephemeral;
    }
    net_choose_mac(out->name, &out->net);
    if (!out->has_uuid && out->name != NULL)
        uuid_of_name(out->name, out->uuid);
    rc = options_check_stdio(out, e);
    if (rc != 0)
        return rc;
    if (out->switch_storm != 0 && out->engines == NULL)
        return err_set(e, 0, "--switch-storm needs to know between which --engines to change");
    return 0;
}

static int options_take_image(const char *arg, struct options *out, struct err *e)
{
    if (arg[0] == '\0')
        return err_set(e, 0, "the disk image's name is empty");
    if (strcmp(arg, "--") == 0 || strcmp(arg, "-") == 0)
        return err_set(e, 0, "unexpected argument '%s'", arg);
    if (out->image_path != NULL)
        return err_set(e, 0,
                       "unexpected argument '%s': the disk image is '%s', more disks are given as "
                       "--disk FILE",
                       arg, out->image_path);
    out->image_path = arg;
    return 0;
}

int options_parse(int argc, char *const *argv, struct options *out, struct err *e)
{
    *out = (struct options){
        .engine = "auto",
        .cpu_model = "host",
        .log_level = LOG_WARN,
        .on_reboot = VM_REBOOT_RESET,
        .kvm_irqchip = VM_IRQCHIP_OFF,
    };
    for (int i = 0; i < argc; i++) {
        enum option_id id = OPTION_COUNT;
        const char *value = NULL;
        int rc;
        if (argv[i][0] != '-' || argv[i][1] == '\0' || strcmp(argv[i], "--") == 0) {
            rc = options_take_image(argv[i], out, e);
            if (rc != 0)
                return rc;
            continue;
        }
        rc = options_find(argv[i], &id, &value, e);
        if (rc != 0)
            return rc;
        const struct option_spec *spec = &option_specs[id];
        if (spec->arg == NULL && value != NULL)
            return err_set(e, 0, "--%s takes no value", spec->name);
        if (spec->arg != NULL && value == NULL) {
            if (i + 1 == argc)
                return err_set(e, 0, "--%s needs a value: --%s %s", spec->name, spec->name,
                               spec->arg);
            value = argv[++i];
        }
        /* An empty command line is one; an empty file name or number is a shell variable unset. */
        if (value != NULL && value[0] == '\0' && id != OPTION_CMDLINE)
            return err_set(e, 0, "--%s: the value is empty", spec->name);
        rc = options_take(id, value, out, e);
        if (rc != 0)
            return rc;
    }
    return options_complete(out, e);
}
