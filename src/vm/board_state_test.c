/*
 * board_state_test.c - a running machine gets other devices, and its guest does not notice
 *
 * The guest writes blocks of its disk and reads them back, two requests at a time. Every so often
 * the machine is paused, the state of all that is on the PCI bus is taken, all of it is destroyed
 * and made anew, and the state is put back.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "backend/char/chardev.h"
#include "base/bits.h"
#include "dev/virtio/virtio_rng.h"
#include "os/loop.h"
#include "vm/board_internal.h"
#include "vm/board_state.h"
#include "vm/machine.h"
#include "vm/testing.h"

#define COUNTER 0x8000
#define BLOCKS 256u
#define BLOCK_WORDS 1024u
#define STEP 0x01000193u /* from word to word of a block */
#define TURNS 25u
#define MINUTE_NS (UINT64_C(60) * 1000000000)

/*
 * Block n modulo 256 holds n, n + STEP, ...; block 0 does at first. The counter at 8000H is that
 * of the last block that was read back. Requests are at 13000H, 13020H, ring and buffers above.
 */
TEST_GUEST(disk,
           /* BAR 4 and the command register of slot 3 */
           "mov $0xcf8, %edx\nmov $0x80001820, %eax\nout %eax, %dx\n"
           "mov $0xcfc, %edx\nmov $0xe0000000, %eax\nout %eax, %dx\n"
           "mov $0xcf8, %edx\nmov $0x80001824, %eax\nout %eax, %dx\n"
           "mov $0xcfc, %edx\nxor %eax, %eax\nout %eax, %dx\n"
           "mov $0xcf8, %edx\nmov $0x80001804, %eax\nout %eax, %dx\n"
           "mov $0xcfc, %edx\nmov $6, %eax\nout %eax, %dx\n"
           "cld\nmov $0xe0000000, %ebx\n"
           "movb $0, 20(%ebx)\n1: cmpb $0, 20(%ebx)\njne 1b\n"
           "movb $3, 20(%ebx)\n"
           "movl $1, 8(%ebx)\nmovl $1, 12(%ebx)\n"     /* VERSION_1 */
           "movl $0, 8(%ebx)\nmovl $0x200, 12(%ebx)\n" /* FLUSH */
           "movb $11, 20(%ebx)\n"
           "movw $0, 22(%ebx)\nmovw $8, 24(%ebx)\n"
           "movl $0x10000, 32(%ebx)\nmovl $0, 36(%ebx)\n"
           "movl $0x11000, 40(%ebx)\nmovl $0, 44(%ebx)\n"
           "movl $0x12000, 48(%ebx)\nmovl $0, 52(%ebx)\n"
           "movw $1, 28(%ebx)\nmovb $15, 20(%ebx)\n"
           /* descriptors: header, data, status of a write, and of a read */
           "movl $0x13000, 0x10000\nmovl $16, 0x10008\nmovl $0x10001, 0x1000c\n"
           "movl $0x20000, 0x10010\nmovl $4096, 0x10018\nmovl $0x20001, 0x1001c\n"
           "movl $0x13010, 0x10020\nmovl $1, 0x10028\nmovl $2, 0x1002c\n"
           "movl $0x13020, 0x10030\nmovl $16, 0x10038\nmovl $0x40001, 0x1003c\n"
           "movl $0x30000, 0x10040\nmovl $4096, 0x10048\nmovl $0x50003, 0x1004c\n"
           "movl $0x13030, 0x10050\nmovl $1, 0x10058\nmovl $2, 0x1005c\n"
           "movl $1, 0x13000\nmovl $0, 0x13020\n"
           "xor %ebp, %ebp\n"
           /* block ebp + 1 is written, block ebp is read */
           "2: lea 1(%ebp), %eax\nmov $0x20000, %edi\nmov $1024, %ecx\n"
           "3: stosl\nadd $0x01000193, %eax\nloop 3b\n"
           "lea 1(%ebp), %eax\nand $255, %eax\nshl $3, %eax\nmov %eax, 0x13008\n"
           "mov %ebp, %eax\nand $255, %eax\nshl $3, %eax\nmov %eax, 0x13028\n"
           "movb $0xff, 0x13010\nmovb $0xff, 0x13030\n"
           "movzwl 0x11002, %eax\nmov %eax, %ecx\nand $7, %ecx\n"
           "movw $0, 0x11004(,%ecx,2)\n"
           "inc %ecx\nand $7, %ecx\nmovw $3, 0x11004(,%ecx,2)\n"
           "add $2, %eax\nmov %ax, 0x11002\n"
           "movw $0, 0x3000(%ebx)\n"
           "4: pause\ncmp %ax, 0x12002\njne 4b\n"
           "cmpb $0, 0x13010\njne 9f\ncmpb $0, 0x13030\njne 9f\n"
           "mov %ebp, %eax\nmov $0x30000, %edi\nmov $1024, %ecx\n"
           "5: scasl\njne 9f\nadd $0x01000193, %eax\nloop 5b\n"
           "mov %ebp, 0x8000\n"
           "inc %ebp\njmp 2b\n"
           "9: mov $0x33, %al\nout %al, $0xf4\n1: jmp 1b");

struct fixture {
    struct vm *vm;
    struct loop *loop;
    struct chardev *chardev;
    struct vm_disk disk;
    struct vm_share share;
    struct vm_port port;
    char image[40], vsock[48];
    uint32_t seen;
    unsigned turns; /* left */
    struct board_pci_state *state;
};

static uint32_t counter(const struct vm *vm)
{
    return __atomic_load_n((const uint32_t *)(const void *)(vm->board.ram.host + COUNTER),
                           __ATOMIC_RELAXED);
}

static void fill_block(uint32_t words[BLOCK_WORDS], uint32_t n)
{
    for (unsigned i = 0; i < BLOCK_WORDS; i++)
        words[i] = n + i * STEP;
}

static void make_image(struct fixture *f)
{
    static uint32_t words[BLOCKS][BLOCK_WORDS];

    strcpy(f->image, "/tmp/doppel-image-XXXXXX");
    int fd = mkstemp(f->image);
    assert_true(fd >= 0);
    fill_block(words[0], 0);
    assert_int_equal(write(fd, words, sizeof(words)), sizeof(words));
    close(fd);
}

/* The block behind the counter's may or may not have been written when the machine stopped. */
static void check_image(const struct fixture *f)
{
    uint32_t words[BLOCK_WORDS], wanted[BLOCK_WORDS], last = counter(f->vm);
    FILE *file = fopen(f->image, "rb");

    assert_non_null(file);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        uint32_t n = last - i;
        if (i > last || ((last + 2) & 255) == (n & 255) || ((last + 1) & 255) == (n & 255))
            break;
        assert_int_equal(fseek(file, (long)(n & 255) * 4096, SEEK_SET), 0);
        assert_int_equal(fread(words, 1, sizeof(words), file), sizeof(words));
        fill_block(wanted, n);
        assert_memory_equal(words, wanted, sizeof(words));
    }
    fclose(file);
}

/* ---- other devices ---- */

static void turn(void *ctx);

static void check(int rc, const struct err *e)
{
    if (rc != 0)
        fail_msg("%s", e->msg);
}

/* What the devices had posted to the loop has run. */
static void replace(void *ctx)
{
    struct fixture *f = ctx;
    struct board *b = &f->vm->board;
    struct board_pci_state *again = malloc(sizeof(*again));
    struct err e;

    check(board_get_pci_state(b, f->state, &e), &e);
    check(board_renew_pci(b, &e), &e);
    check(board_quiesce_pci(b, 0, &e), &e);
    check(board_set_pci_state(b, f->state, &e), &e);
    check(board_get_pci_state(b, again, &e), &e);
    assert_memory_equal(f->state, again, sizeof(*again));
    free(again);
    board_resume_pci(b);
    assert_int_equal(counter(f->vm), f->seen);
    check(vm_resume(f->vm, &e), &e);
    loop_post(f->loop, turn, f);
}

static void turn(void *ctx)
{
    struct fixture *f = ctx;
    struct err e;

    if (counter(f->vm) == f->seen || counter(f->vm) < 3) {
        loop_post(f->loop, turn, f);
        return;
    }
    if (f->turns-- == 0) {
        vm_request_stop(f->vm);
        return;
    }
    check(vm_pause(f->vm, &e), &e);
    check(board_quiesce_pci(&f->vm->board, MINUTE_NS, &e), &e);
    f->seen = counter(f->vm);
    loop_post(f->loop, replace, f);
}

static void setup(struct fixture *f, const char *engine)
{
    struct err e;

    make_image(f);
    snprintf(f->vsock, sizeof(f->vsock), "%s.sock", f->image);
    f->state = malloc(sizeof(*f->state));
    check(loop_create(&f->loop, &e), &e);
    check(chardev_create_none(f->loop, &f->chardev, &e), &e);
    f->disk = (struct vm_disk){.path = f->image};
    f->share = (struct vm_share){.path = "/tmp", .tag = "t", .is_read_only = true};
    f->port = (struct vm_port){.chardev = f->chardev, .is_console = true};
    f->vm = TEST_VM((&(struct vm_config){
                        .engine = engine,
                        .loop = f->loop,
                        .disks = &f->disk,
                        .disk_count = 1,
                        .shares = &f->share,
                        .share_count = 1,
                        .net = {.kind = VM_NET_USER, .mtu = 1500},
                        .balloon = {.is_there = true, .reports_free_pages = true},
                        .vsock = {.cid = 5, .path = f->vsock},
                        .ports = &f->port,
                        .port_count = 1,
                    }),
                    disk, &f->loop);
}

static void teardown(struct fixture *f)
{
    vm_destroy(f->vm);
    chardev_destroy(f->chardev);
    loop_destroy(f->loop);
    unlink(f->image);
    free(f->state);
}

static bool is_there(const char *engine)
{
    struct cpu_model_limit limit;
    struct err e;

    cpu_model_limit_init(&limit);
    if (strcmp(engine, "kvm") != 0 || engine_kvm.limit_model(ENGINE_IRQCHIP_OFF, &limit, &e) == 0)
        return true;
    print_message("without kvm: %s\n", e.msg);
    return false;
}

static void a_guest_does_not_notice(void **state)
{
    static const char *const engines[] = {"interp", "bt", "kvm"};

    for (unsigned i = 0; i < ARRAY_SIZE(engines); i++) {
        struct fixture f = {.turns = TURNS};
        if (!is_there(engines[i]))
            continue;
        struct vm_end *end = calloc(1, sizeof(*end));
        setup(&f, engines[i]);
        loop_post(f.loop, turn, &f);
        vm_run(f.vm, end);
        assert_int_equal(end->cause, VM_END_STOPPED); /* else the guest found something wrong */
        assert_true(counter(f.vm) > TURNS);
        check_image(&f);
        free(end);
        teardown(&f);
    }
}

/* The state of one machine is not that of another. */
static void another_machine_is_refused(void **state)
{
    struct fixture f = {0}, plain = {0};
    struct err e;

    setup(&f, "interp");
    plain.vm = TEST_VM((&(struct vm_config){.engine = "interp"}), disk, &plain.loop);
    check(board_quiesce_pci(&f.vm->board, 0, &e), &e);
    check(board_quiesce_pci(&plain.vm->board, 0, &e), &e);
    check(board_get_pci_state(&f.vm->board, f.state, &e), &e);
    assert_int_not_equal(board_set_pci_state(&plain.vm->board, f.state, &e), 0);
    assert_non_null(strstr(e.msg, "function_count"));
    f.state->slots[1]++;
    assert_int_not_equal(board_set_pci_state(&f.vm->board, f.state, &e), 0);
    assert_non_null(strstr(e.msg, "slots[1]"));
    f.state->slots[1]--;
    f.state->has_vars = 1;
    assert_int_not_equal(board_set_pci_state(&f.vm->board, f.state, &e), 0);
    assert_non_null(strstr(e.msg, "has_vars"));
    f.state->has_vars = 0;
    f.state->functions[1].device.features = BIT(63);
    f.state->functions[1].device.status = 11;
    assert_int_not_equal(board_set_pci_state(&f.vm->board, f.state, &e), 0);
    assert_non_null(strstr(e.msg, f.image));
    assert_non_null(strstr(e.msg, "features"));
    test_vm_destroy(plain.vm, plain.loop);
    teardown(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_guest_does_not_notice),
        cmocka_unit_test(another_machine_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
