/*
 * cli_test.c - options, the escape key, suggestions, the guardian
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/bits.h"
#include "cli/guardian.h"
#include "cli/keys.h"
#include "cli/options.h"
#include "cli/suggest.h"

static int parse(struct options *o, struct err *e, const char *const *args)
{
    char *argv[32];
    int argc = 0;
    for (; args[argc] != NULL; argc++)
        argv[argc] = (char *)(uintptr_t)args[argc];
    return options_parse(argc, argv, o, e);
}
#define PARSE(o, e, ...) parse(o, e, (const char *const[]){__VA_ARGS__, NULL})

static void test_defaults(void **state)
{
    struct options o;
    struct err e;
    assert_int_equal(PARSE(&o, &e, "--kernel", "k"), 0);
    assert_string_equal(o.kernel_path, "k");
    assert_string_equal(o.engine, "auto");
    assert_string_equal(o.serial, "stdio");
    assert_string_equal(o.cpu_model, "host");
    assert_int_equal(o.cpu_count, 1);
    assert_int_equal(o.memory_bytes, UINT64_C(512) << 20);
    assert_int_equal(o.log_level, LOG_WARN);
    assert_int_equal(o.on_reboot, VM_REBOOT_RESET);
    assert_int_equal(o.kvm_irqchip, VM_IRQCHIP_OFF);
    assert_int_equal(PARSE(&o, &e, "--kernel", "k", "--kvm-irqchip", "auto"), 0);
    assert_int_equal(o.kvm_irqchip, VM_IRQCHIP_AUTO);
    assert_null(o.initrd_path);
    assert_false(o.has_debug_exit);
    assert_false(o.has_test_device);
}

/* A disk image as an argument makes a larger machine with a network, unless options say otherwise.
 */
static void test_image(void **state)
{
    struct options o;
    struct err e;
    assert_int_equal(PARSE(&o, &e, "--disk", "data,ro", "debian,1.img"), 0);
    assert_string_equal(o.image_path, "debian,1.img");
    assert_int_equal(o.disk_count, 2);
    assert_string_equal(o.disks[0].path, "debian,1.img");
    assert_false(o.disks[0].is_read_only);
    assert_string_equal(o.disks[1].path, "data");
    assert_true(o.disks[1].is_read_only);
    assert_null(o.kernel_path);
    assert_string_equal(o.firmware, "auto");
    assert_in_range(o.cpu_count, 1, 2);
    assert_int_equal(o.memory_bytes, UINT64_C(1) << 30);
    assert_int_equal(o.net.kind, VM_NET_USER);
    assert_int_equal(PARSE(&o, &e, "i", "--cpus=5", "--memory=64M", "--net=none", "--firmware=f"),
                     0);
    assert_int_equal(o.cpu_count, 5);
    assert_int_equal(o.memory_bytes, 64 << 20);
    assert_int_equal(o.net.kind, VM_NET_NONE);
    assert_string_equal(o.firmware, "f");
    /* a disk as an option boots too, in the smaller machine */
    assert_int_equal(PARSE(&o, &e, "--disk", "d"), 0);
    assert_string_equal(o.firmware, "auto");
    assert_int_equal(o.memory_bytes, UINT64_C(512) << 20);
    assert_int_equal(o.net.kind, VM_NET_NONE);
    assert_int_equal(PARSE(&o, &e, "--firmware", "ovmf", "--firmware-vars", "v"), 0);
    assert_string_equal(o.firmware_vars_path, "v");
    assert_int_equal(o.disk_count, 0);
}

static void test_everything(void **state)
{
    struct options o;
    struct err e;
    assert_int_equal(PARSE(&o, &e, "--engine=interp", "--cpus", "4", "--memory=4G", "--kernel", "k",
                           "--initrd", "i", "--cmdline", "", "--serial", "file:x=y", "--cpu-model",
                           "host,-avx", "--debug-exit", "--test-device", "--stats", "--log",
                           "trace", "--on-reboot", "exit", "--code-cache", "32M", "--perf-map", "p",
                           "--dump-blocks", "d"),
                     0);
    assert_string_equal(o.engine, "interp");
    assert_int_equal(o.cpu_count, 4);
    assert_int_equal(o.memory_bytes, UINT64_C(4) << 30);
    assert_string_equal(o.initrd_path, "i");
    assert_string_equal(o.cmdline, "");
    assert_string_equal(o.serial, "file:x=y");
    assert_string_equal(o.cpu_model, "host,-avx");
    assert_true(o.has_debug_exit);
    assert_true(o.has_test_device);
    assert_true(o.wants_stats);
    assert_int_equal(o.log_level, LOG_TRACE);
    assert_int_equal(o.on_reboot, VM_REBOOT_EXIT);
    assert_int_equal(o.code_cache_size, 32 << 20);
    assert_string_equal(o.perf_map_path, "p");
    assert_string_equal(o.dump_blocks_path, "d");
}

static void expect_error(const char *part, const char *const *args)
{
    struct options o;
    struct err e;
    assert_true(parse(&o, &e, args) < 0);
    if (strstr(e.msg, part) == NULL)
        fail_msg("'%s' does not contain '%s'", e.msg, part);
}
#define EXPECT_ERROR(part, ...) expect_error(part, (const char *const[]){__VA_ARGS__, NULL})

static void test_bad_usage(void **state)
{
    EXPECT_ERROR("--kernel", "--cpus", "2");
    EXPECT_ERROR("one of them", "--kernel", "k", "--firmware", "ovmf");
    EXPECT_ERROR("--firmware-vars", "--kernel", "k", "--firmware-vars", "v");
    EXPECT_ERROR("--initrd is for a kernel", "--disk", "d", "--initrd", "i");
    EXPECT_ERROR("--cmdline is for a kernel", "d", "--cmdline", "quiet");
    EXPECT_ERROR("--disk FILE", "image", "another");
    EXPECT_ERROR("--disk image", "image", "--kernel", "k");
    EXPECT_ERROR("empty", "");
    EXPECT_ERROR("did you mean '--memory'", "--memry", "1G");
    EXPECT_ERROR("did you mean '--memory'", "--memry=1G");
    EXPECT_ERROR("did you mean '--cpus'", "-cpus", "2");
    EXPECT_ERROR("'doppel run --help'", "--frobnicate");
    EXPECT_ERROR("needs a value", "--kernel");
    EXPECT_ERROR("takes no value", "--stats=1");
    EXPECT_ERROR("empty", "--kernel", "");
    EXPECT_ERROR("unexpected argument '--'", "--", "--kernel");
    EXPECT_ERROR("out of range (1 to 64)", "--cpus", "65");
    EXPECT_ERROR("out of range", "--memory", "512");
    EXPECT_ERROR("out of range", "--memory", "2T");
    EXPECT_ERROR("multiple of 1M", "--memory", "5000K");
    EXPECT_ERROR("did you mean 'interp'", "--engine", "inter");
    EXPECT_ERROR("choose from auto, kvm, bt, interp", "--engine", "qemux");
    EXPECT_ERROR("--log", "--log", "loud");
    EXPECT_ERROR("--on-reboot", "--on-reboot", "never");
    EXPECT_ERROR("--code-cache", "--code-cache", "0");
    char many[600];
    memset(many, '-', sizeof(many) - 1);
    many[sizeof(many) - 1] = '\0';
    EXPECT_ERROR("unknown option", many);
}

static void test_disks(void **state)
{
    struct options o;
    struct err e;
    assert_int_equal(PARSE(&o, &e, "--kernel", "k", "--disk", "a,,b.img", "--disk",
                           "c,ro,cache=none,aio=io_uring,serial=X,,1", "--ephemeral", "--disk",
                           "d,format=qcow2,bus=virtio"),
                     0);
    assert_int_equal(o.disk_count, 3);
    assert_true(o.disks[0].is_ephemeral && o.disks[2].is_ephemeral);
    assert_int_equal(o.disks[0].format, BLOCK_FORMAT_AUTO);
    assert_int_equal(o.disks[2].format, BLOCK_FORMAT_QCOW2);
    assert_string_equal(o.disks[0].path, "a,b.img");
    assert_false(o.disks[0].is_read_only);
    assert_int_equal(o.disks[0].cache, BLOCK_CACHE_WRITEBACK);
    assert_null(o.disks[0].serial);
    assert_string_equal(o.disks[1].path, "c");
    assert_true(o.disks[1].is_read_only);
    assert_int_equal(o.disks[1].cache, BLOCK_CACHE_NONE);
    assert_int_equal(o.disks[0].aio, BLOCK_AIO_AUTO);
    assert_int_equal(o.disks[1].aio, BLOCK_AIO_IO_URING);
    assert_string_equal(o.disks[1].serial, "X,1");
    static const struct {
        const char *value, *about;
    } bad[] = {{",ro", "empty"},
               {"a,cache=fast", "unknown cache"},
               {"a,aio=native", "unknown aio"},
               {"a,format=vmdk", "unknown format"},
               {"a,bus=ide", "unknown bus 'ide' (choose from virtio)"},
               {"a,seriel=x", "did you mean 'serial'"},
               {"a,b", "written twice"},
               {"a,serial=123456789012345678901", "longer than 20"}};
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        assert_int_equal(PARSE(&o, &e, "--kernel", "k", "--disk", bad[i].value), -EINVAL);
        assert_non_null(strstr(e.msg, bad[i].about));
    }
}

static void test_ports_and_more(void **state)
{
    static const char *const bad[][2] = {
        {"--port", "name=a"},
        {"--port", "socket=/x"},
        {"--port", "name=a,socket=/x,pty=/y"},
        {"--port", "name=a/b,socket=/x"},
        {"--port", "name=a,sockt=/x"},
        {"--port", "name=a,file="},
        {"--vsock", "3"},
        {"--vsock", "3,"},
        {"--vsock", "2,/x"},
        {"--vsock", ",/x"},
        {"--vsock", "4294967295,/x"},
        {"--vsock", "123456789012345678901234,/x"},
        {"--balloon", "off"},
        {"--balloon", "none,reporting"},
        {"--balloon", "on,report"},
    };
    struct options o;
    struct err e;
    assert_int_equal(PARSE(&o, &e, "--kernel", "k"), 0);
    assert_string_equal(o.serial, "stdio");
    assert_true(o.console == NULL && o.port_count == 0 && o.vsock.cid == 0 && !o.balloon.is_there);
    assert_int_equal(PARSE(&o, &e, "--kernel", "k", "--console", "stdio", "--port",
                           "name=a.b,socket=/x,,y", "--port", "pty=p,name=c", "--vsock",
                           "4294967294,/a,b", "--balloon", "on,deflate-on-oom"),
                     0);
    assert_string_equal(o.serial, "none");
    assert_int_equal(o.port_count, 2);
    assert_string_equal(o.ports[0].name, "a.b");
    assert_string_equal(o.ports[0].device, "unix:/x,y");
    assert_string_equal(o.ports[1].device, "pty:p");
    assert_true(o.vsock.cid == 0xfffffffe);
    assert_string_equal(o.vsock.path, "/a,b");
    assert_true(o.balloon.is_there && o.balloon.deflates_on_oom && !o.balloon.reports_free_pages);
    assert_int_equal(PARSE(&o, &e, "--kernel", "k", "--console", "stdio", "--serial", "stdio"),
                     -EINVAL);
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        assert_true(PARSE(&o, &e, "--kernel", "k", bad[i][0], bad[i][1]) < 0);
        assert_non_null(strstr(e.msg, bad[i][0]));
    }
}

static void test_identity(void **state)
{
    static const uint8_t given[UUID_SIZE] = {1, [15] = 0xff}, none[UUID_SIZE];
    uint8_t named[UUID_SIZE];
    struct options o;
    struct err e;

    assert_int_equal(PARSE(&o, &e, "--kernel", "k"), 0);
    assert_memory_equal(o.uuid, none, UUID_SIZE);
    assert_int_equal(PARSE(&o, &e, "--kernel", "k", "--name", "a"), 0);
    uuid_of_name("a", named);
    assert_memory_equal(o.uuid, named, UUID_SIZE);
    assert_int_equal(PARSE(&o, &e, "--kernel", "k", "--uuid",
                           "01000000-0000-0000-0000-0000000000ff", "--name", "a"),
                     0);
    assert_memory_equal(o.uuid, given, UUID_SIZE);
    assert_int_equal(PARSE(&o, &e, "--kernel", "k", "--uuid", "a"), -EINVAL);
    assert_non_null(strstr(e.msg, "--uuid: 'a'"));
}

static void test_networks(void **state)
{
    static const uint8_t mac[6] = {0x52, 0x54, 0, 0xab, 0xcd, 0xef}, any[4],
                         local[4] = {127, 0, 0, 1};
    struct options o;
    struct err e;
    assert_int_equal(PARSE(&o, &e, "--kernel", "k"), 0);
    assert_int_equal(o.net.kind, VM_NET_NONE);
    assert_int_equal(PARSE(&o, &e, "--kernel", "k", "--net",
                           "user,hostfwd=tcp:127.0.0.1:2222-:22,restrict,mac=52:54:00:ab:CD:ef,"
                           "hostfwd=udp::53-10.0.2.16:5353"),
                     0);
    assert_int_equal(o.net.kind, VM_NET_USER);
    assert_true(o.net.user.is_restricted && o.net.has_mac);
    assert_memory_equal(o.net.mac, mac, 6);
    assert_int_equal(o.net.user.forward_count, 2);
    const struct netdev_forward *f = o.net.user.forwards;
    assert_true(!f[0].is_udp && f[0].host_port == 2222 && f[0].guest_port == 22);
    assert_memory_equal(f[0].host_addr, local, 4);
    assert_memory_equal(f[0].guest_addr, any, 4);
    assert_true(f[1].is_udp && f[1].host_port == 53 && f[1].guest_port == 5353);
    assert_memory_equal(f[1].host_addr, any, 4);
    assert_int_equal(PARSE(&o, &e, "--kernel", "k", "--name", "a", "--net", "socket:/run/x,,y"), 0);
    assert_int_equal(o.net.kind, VM_NET_SOCKET);
    assert_string_equal(o.net.path, "/run/x,y");
    /* of the name: the same at every start, another for another */
    struct vm_net first = o.net;
    assert_true(first.has_mac && first.mac[0] == 0x52);
    assert_int_equal(PARSE(&o, &e, "--kernel", "k", "--net", "user", "--name", "a"), 0);
    assert_memory_equal(o.net.mac, first.mac, 6);
    assert_int_equal(PARSE(&o, &e, "--kernel", "k", "--net", "user", "--name", "b"), 0);
    assert_memory_not_equal(o.net.mac, first.mac, 6);
    assert_int_equal(PARSE(&o, &e, "--kernel", "k", "--net", "socket:x"), 0);
    assert_true(o.net.has_mac);
    assert_memory_not_equal(o.net.mac, first.mac, 6);
    assert_int_equal(PARSE(&o, &e, "--kernel", "k", "--net", "tap,ifname=tap0,mtu=9000,queues=8"),
                     0);
    assert_int_equal(o.net.queues, 8);
    assert_int_equal(o.net.kind, VM_NET_TAP);
    assert_string_equal(o.net.path, "tap0");
    assert_int_equal(o.net.mtu, 9000);
    static const char *const bad[] = {"bridge",
                                      "socket",
                                      "socket:",
                                      "socket:x,restrict",
                                      "tap,restrict",
                                      "tap,queues=0",
                                      "tap,queues=9",
                                      "user,queues=2",
                                      "tap0",
                                      "socket:x,hostfwd=tcp::1-:22",
                                      "none,restrict",
                                      "user,hostfwd=tcp:1.2.3:1-:1",
                                      "user,hostfwd=1-2",
                                      "user,hostfwd=tcp::0-:22",
                                      "user,hostfwd=tcp::1-:70000",
                                      "user,hostfwd=sctp::1-:1",
                                      "user,mac=1:2:3",
                                      "user,mac=01:00:00:00:00:01",
                                      "user,mac=52:54:00:ab:cd:ef:00",
                                      "user,restrct"};
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        assert_int_equal(PARSE(&o, &e, "--kernel", "k", "--net", bad[i]), -EINVAL);
        assert_non_null(strstr(e.msg, "--net"));
    }
}

static void test_share(void **state)
{
    struct options o;
    struct err e;
    assert_int_equal(PARSE(&o, &e, "--kernel", "k", "--share", "/a,,b,tag=x", "--share",
                           "c,ro,tag=y,cache=never"),
                     0);
    assert_int_equal(o.share_count, 2);
    assert_string_equal(o.shares[0].path, "/a,b");
    assert_string_equal(o.shares[0].tag, "x");
    assert_false(o.shares[0].is_read_only);
    assert_string_equal(o.shares[1].path, "c");
    assert_true(o.shares[1].is_read_only);
    assert_int_equal(o.shares[0].cache, SHARE_CACHE_AUTO);
    assert_int_equal(o.shares[1].cache, SHARE_CACHE_NEVER);
    assert_int_equal(PARSE(&o, &e, "--kernel", "k", "--share", "c,tag=x,cache=always"), 0);
    assert_int_equal(o.shares[0].cache, SHARE_CACHE_ALWAYS);
    assert_false(o.shares[0].has_locks);
    assert_int_equal(PARSE(&o, &e, "--kernel", "k", "--share", "c,tag=x,locks=on"), 0);
    assert_true(o.shares[0].has_locks);
    assert_int_equal(PARSE(&o, &e, "--kernel", "k", "--share", "c,locks=off,tag=x"), 0);
    assert_false(o.shares[0].has_locks);
    static const char *const bad[][2] = {
        {"c", "tag=NAME"},
        {",tag=x", "empty"},
        {"c,tag=", "1 to 36"},
        {"c,tag=0123456789012345678901234567890123456", "1 to 36"},
        {"c,tga=x", "did you mean 'tag'"},
        {"c,tag=x,rw", "ro"},
        {"c,tag=x,cache=none", "auto, always, never"},
        {"c,tag=x,locks=posix", "on or off"},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        assert_int_equal(PARSE(&o, &e, "--kernel", "k", "--share", bad[i][0]), -EINVAL);
        assert_non_null(strstr(e.msg, bad[i][1]));
    }
    assert_int_equal(PARSE(&o, &e, "--kernel", "k", "--share", "a,tag=x", "--share", "b,tag=x"),
                     -EINVAL);
    assert_non_null(strstr(e.msg, "two folders"));
}

static void test_vhost_user(void **state)
{
    struct options o;
    struct err e;
    assert_int_equal(PARSE(&o, &e, "--kernel", "k", "--disk", "vhost-user:/a,,b", "--net",
                           "vhost-user:/n,mtu=1500,mac=52:54:00:01:02:03", "--share",
                           "vhost-user:/s,tag=x"),
                     0);
    assert_true(o.disks[0].is_vhost_user && o.shares[0].is_vhost_user);
    assert_string_equal(o.disks[0].path, "/a,b");
    assert_string_equal(o.shares[0].path, "/s");
    assert_int_equal(o.net.kind, VM_NET_VHOST_USER);
    assert_string_equal(o.net.path, "/n");
    assert_int_equal(PARSE(&o, &e, "--kernel", "k", "--disk", "./vhost-user:/a"), 0);
    assert_false(o.disks[0].is_vhost_user);
    static const char *const bad[][2] = {
        {"--disk", "vhost-user:"},
        {"--disk", "vhost-user:/a,ro"},
        {"--net", "vhost-user:"},
        {"--net", "vhost-user:/n,restrict"},
        {"--net", "vhost-user:/n,mtu=1"},
        {"--share", "vhost-user:/s"},
        {"--share", "vhost-user:,tag=x"},
        {"--share", "vhost-user:/s,tag=x,ro"},
        {"--share", "vhost-user:/s,tag=x,cache=always"},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        assert_int_equal(PARSE(&o, &e, "--kernel", "k", bad[i][0], bad[i][1]), -EINVAL);
        assert_non_null(strstr(e.msg, bad[i][0]));
    }
}

static void test_help_needs_no_kernel(void **state)
{
    struct options o;
    struct err e;
    assert_int_equal(PARSE(&o, &e, "-h"), 0);
    assert_true(o.wants_help);
    assert_int_equal(PARSE(&o, &e, "--cpu-model", "help"), 0);
    assert_true(o.wants_cpu_models);
    assert_int_equal(PARSE(&o, &e, "--version"), 0);
    assert_true(o.wants_version);
}

static void test_suggest(void **state)
{
    static const char *const words[] = {"kernel", "memory", "cpus", "cpu-model"};
    assert_string_equal(suggest_nearest("kenrel", words, 4), "kernel");
    assert_string_equal(suggest_nearest("MEMORY", words, 4), "memory");
    assert_string_equal(suggest_nearest("mem", words, 4), "memory");
    assert_string_equal(suggest_nearest("cpu", words, 4), "cpus");
    assert_null(suggest_nearest("xyzzy", words, 4));
    assert_null(suggest_nearest("", words, 4));
    assert_null(suggest_nearest("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", words, 4));
}

/* ---- keys ---- */

struct pressed {
    char log[32];
    size_t len;
};

#define DEFINE_KEY(name, c)                                                                        \
    static void key_##name(void *ctx)                                                              \
    {                                                                                              \
        struct pressed *p = ctx;                                                                   \
        p->log[p->len++] = c;                                                                      \
    }
DEFINE_KEY(leave, 'x')
DEFINE_KEY(help, 'h')
DEFINE_KEY(send_break, 'b')
DEFINE_KEY(power, 'p')
DEFINE_KEY(suspend, 'z')

static const struct keys_ops keys_ops = {.leave = key_leave,
                                         .show_help = key_help,
                                         .send_break = key_send_break,
                                         .press_power = key_power,
                                         .suspend = key_suspend};

static void test_keys(void **state)
{
    struct pressed p = {0};
    struct keys keys = {.ops = &keys_ops, .ctx = &p};
    uint8_t buf[] = "ls\001\001\001h\001x\001X\001\030\001b\001p\001z\001qend\001";
    size_t n = keys_filter(&keys, buf, sizeof(buf) - 1);
    assert_int_equal(n, 6);
    assert_memory_equal(buf, "ls\001end", 6);
    assert_string_equal(p.log, "hxxxbpzh");
    /* The prefix counts across pieces. */
    uint8_t more[] = "xa";
    assert_int_equal(keys_filter(&keys, more, 2), 1);
    assert_int_equal(more[0], 'a');
    assert_string_equal(p.log, "hxxxbpzhx");
}

/* ---- guardian ---- */

struct pty {
    int master, slave;
};

static struct pty open_pty(void)
{
    struct pty pty = {.master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC)};
    assert_true(pty.master >= 0);
    assert_int_equal(grantpt(pty.master), 0);
    assert_int_equal(unlockpt(pty.master), 0);
    pty.slave = open(ptsname(pty.master), O_RDWR | O_NOCTTY | O_CLOEXEC);
    assert_true(pty.slave >= 0);
    return pty;
}

static bool is_canonical(int fd)
{
    struct termios t;
    assert_int_equal(tcgetattr(fd, &t), 0);
    return (t.c_lflag & ICANON) && (t.c_lflag & ECHO);
}

/*
 * A process with a guardian makes the terminal raw and a file, and is killed. `report` is a
 * pipe: the process and its guardian hold it open at first, and only they.
 */
enum kill_when {
    KILL_AT_WORK,
    KILL_REPLACED, /* another file has taken the place of the one it made */
    KILL_DONE,     /* the guardian was let go */
};

static void kill_with_guardian(struct pty *pty, const char *path, enum kill_when when)
{
    bool is_done = when == KILL_DONE;
    int ready[2];
    assert_int_equal(pipe2(ready, O_CLOEXEC), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct tty tty;
        struct guardian guardian;
        struct err e;
        const char *const files[] = {"/nonexistent/never-there", path};
        if (tty_open(&tty, pty->slave, &e) != 0 ||
            guardian_start(&guardian, &tty, files, 2, &e) != 0 || tty_enter_raw(&tty, &e) != 0)
            _exit(1);
        close(open(path, O_CREAT | O_WRONLY, 0600));
        guardian_note_file(&guardian, path);
        if (is_done)
            guardian_finish(&guardian);
        if (write(ready[1], is_done ? "d" : "r", 1) != 1)
            _exit(1);
        for (;;)
            pause();
    }
    close(ready[1]);
    char c;
    assert_int_equal(read(ready[0], &c, 1), 1);
    assert_false(is_canonical(pty->slave));
    if (when == KILL_REPLACED) {
        char other[80];
        snprintf(other, sizeof(other), "%s.other", path);
        close(open(other, O_CREAT | O_WRONLY, 0600));
        assert_int_equal(rename(other, path), 0);
    }
    kill(pid, SIGKILL);
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    /* The guardian closed this pipe, so its end shows that the process is gone. */
    assert_int_equal(read(ready[0], &c, 1), 0);
    close(ready[0]);
}

/* It takes a moment; 20 s is for hosts with much else to do. */
static bool is_cleaned_up(const struct pty *pty, const char *path)
{
    for (int i = 0; i < 2000; i++) {
        if (is_canonical(pty->slave) && access(path, F_OK) != 0)
            return true;
        usleep(10000);
    }
    return false;
}

/* The guardian of a process that was killed has ended; it was left to us. */
static void wait_for_guardian(void)
{
    int status;

    assert_true(waitpid(-1, &status, 0) > 0);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* A machine that starts again at once may find its old name taken, and take it itself. */
static void test_guardian_leaves_others_files_alone(void **state)
{
    char dir[] = "/tmp/doppel-test-XXXXXX";
    assert_non_null(mkdtemp(dir));
    char path[64];
    snprintf(path, sizeof(path), "%s/s", dir);
    struct pty pty = open_pty();
    assert_int_equal(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
    kill_with_guardian(&pty, path, KILL_REPLACED);
    wait_for_guardian();
    assert_int_equal(access(path, F_OK), 0);
    unlink(path);
    kill_with_guardian(&pty, path, KILL_AT_WORK);
    wait_for_guardian();
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(prctl(PR_SET_CHILD_SUBREAPER, 0), 0);
    rmdir(dir);
    close(pty.master);
    close(pty.slave);
}

static void test_guardian_cleans_up_after_kill(void **state)
{
    char dir[] = "/tmp/doppel-test-XXXXXX";
    assert_non_null(mkdtemp(dir));
    char path[64];
    snprintf(path, sizeof(path), "%s/s", dir);
    struct pty pty = open_pty();
    kill_with_guardian(&pty, path, KILL_AT_WORK);
    assert_true(is_cleaned_up(&pty, path));

    /* Let go before the end, it leaves everything alone. */
    kill_with_guardian(&pty, path, KILL_DONE);
    assert_false(is_canonical(pty.slave));
    assert_int_equal(access(path, F_OK), 0);
    unlink(path);
    rmdir(dir);
    close(pty.master);
    close(pty.slave);
}

/* The foreground job of a terminal, killed as soon as it has a guardian. */
static void die_in_terminal(struct pty *pty, const char *path)
{
    struct tty tty;
    struct guardian guardian;
    struct err e;

    if (setsid() < 0 || ioctl(pty->slave, TIOCSCTTY, 0) != 0 ||
        tty_open(&tty, pty->slave, &e) != 0 || tty_enter_raw(&tty, &e) != 0)
        _exit(1);
    close(open(path, O_CREAT | O_WRONLY, 0600));
    if (guardian_start(&guardian, &tty, &path, 1, &e) != 0)
        _exit(1);
    guardian_note_file(&guardian, path);
    raise(SIGKILL);
}

/*
 * When the first process of a session ends, the kernel sends SIGHUP to the terminal's foreground
 * job. The guardian belongs to that until it has run for the first time, which on one CPU is after
 * the other's end.
 */
static void test_guardian_survives_its_terminals_end(void **state)
{
    cpu_set_t all, one;
    CPU_ZERO(&one);
    assert_int_equal(sched_getaffinity(0, sizeof(all), &all), 0);
    CPU_SET(sched_getcpu(), &one);
    char dir[] = "/tmp/doppel-test-XXXXXX";
    assert_non_null(mkdtemp(dir));
    char path[64];
    snprintf(path, sizeof(path), "%s/s", dir);
    for (int i = 0; i < 10; i++) {
        struct pty pty = open_pty();
        int status;
        assert_int_equal(sched_setaffinity(0, sizeof(one), &one), 0);
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0)
            die_in_terminal(&pty, path);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_int_equal(sched_setaffinity(0, sizeof(all), &all), 0);
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        assert_true(is_cleaned_up(&pty, path));
        close(pty.master);
        close(pty.slave);
    }
    rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_image),
        cmocka_unit_test(test_everything),
        cmocka_unit_test(test_bad_usage),
        cmocka_unit_test(test_disks),
        cmocka_unit_test(test_identity),
        cmocka_unit_test(test_networks),
        cmocka_unit_test(test_ports_and_more),
        cmocka_unit_test(test_share),
        cmocka_unit_test(test_vhost_user),
        cmocka_unit_test(test_help_needs_no_kernel),
        cmocka_unit_test(test_suggest),
        cmocka_unit_test(test_keys),
        cmocka_unit_test(test_guardian_cleans_up_after_kill),
        cmocka_unit_test(test_guardian_leaves_others_files_alone),
        cmocka_unit_test(test_guardian_survives_its_terminals_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
