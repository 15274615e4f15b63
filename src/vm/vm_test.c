/*
 * vm_test.c - whole machines with guests of a few instructions, on each engine
 *
 * The guests are Multiboot kernels: 32-bit code at 100020H, below the header.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bits.h"
#include "os/loop.h"
#include "vm/vm.h"

#define GUEST(name, code)                                                                          \
    extern const uint8_t guest_##name[], guest_##name##_end[];                                     \
    __asm__(".pushsection .rodata\n"                                                               \
            "guest_" #name ":\n.code32\n" code "\n.code64\n"                                       \
            "guest_" #name "_end:\n.popsection\n")

GUEST(debug_exit, "mov $21, %al\n"
                  "out %al, $0xf4\n"
                  "1: jmp 1b");
GUEST(power_off, "mov $0x604, %dx\n"
                 "mov $0x3400, %ax\n" /* SLP_EN, type 5 */
                 "out %ax, %dx\n"
                 "1: jmp 1b");
GUEST(triple_fault, "mov $0x7000, %esp\n"
                    "mov $0x12345678, %esi\n"
                    "push $0\npush $0\n"
                    "lidt (%esp)\n"
                    "ud2");
/* memory keeps the mark over a reset, the kernel's own data do not */
GUEST(reset, "cmpl $0x600d, 0x8000\n"
             "je 1f\n"
             "movl $0x600d, 0x8000\n"
             "movb $0xee, 0x100020\n"
             "mov $0xfe, %al\n"
             "out %al, $0x64\n"
             "2: jmp 2b\n"
             "1: mov 0x100020, %al\n"
             "out %al, $0xf4\n"
             "3: jmp 3b");
GUEST(halt, "cli\nhlt");
/* the timer of the local APIC wakes it: vector 40H through a one-gate IDT at 9000H */
/* with a GDT of its own, flat: null, code, data */
GUEST(timer, "movl $0, 0x8800\nmovl $0, 0x8804\n"
             "movl $0x0000ffff, 0x8808\nmovl $0x00cf9b00, 0x880c\n"
             "movl $0x0000ffff, 0x8810\nmovl $0x00cf9300, 0x8814\n"
             "movw $23, 0x8f00\nmovl $0x8800, 0x8f02\nlgdt 0x8f00\n"
             "ljmp $8, $(0x100020 + 1f - guest_timer)\n"
             "1: mov $0x7000, %esp\n"
             "movw $0x10, %ax\n"
             "mov %ax, %ss\n"
             "mov $(0x100020 + 2f - guest_timer), %eax\n"
             "mov %ax, 0x9200\nmovw $8, 0x9202\nmovw $0x8e00, 0x9204\n"
             "shr $16, %eax\nmov %ax, 0x9206\n"
             "movw $0x7ff, 0x8f00\nmovl $0x9000, 0x8f02\nlidt 0x8f00\n"
             "movl $0x1ff, 0xfee000f0\n" /* software enable */
             "movl $0x40, 0xfee00320\n"  /* one shot, vector 40H */
             "movl $0xb, 0xfee003e0\n"   /* divide by 1 */
             "movl $1000000, 0xfee00380\n"
             "sti\n"
             "3: hlt\njmp 3b\n"
             "2: mov $5, %al\nout %al, $0xf4\n4: jmp 4b");
/* INIT and SIPI to APIC ID 1, which starts at 7000H in real mode */
GUEST(smp, "cld\n"
           "mov $(0x100020 + 2f - guest_smp), %esi\n"
           "mov $0x7000, %edi\n"
           "mov $(3f - 2f), %ecx\n"
           "rep movsb\n"
           "movl $0x1000000, 0xfee00310\n"
           "movl $0x4500, 0xfee00300\n"
           "movl $0x4607, 0xfee00300\n"
           "1: pause\njmp 1b\n"
           ".code16\n"
           "2: mov %cs, %ax\n"
           "shr $8, %ax\n" /* CS is 0700H */
           "out %al, $0xf4\n"
           "4: jmp 4b\n"
           "3:");

/* to FFFFFFF0H in a code segment of 16 bits, as a processor is after INIT */
GUEST(vector, "movl $0x0000ffff, 0x9008\nmovl $0xff009aff, 0x900c\n"
              "movw $0xf, 0x8f00\nmovl $0x9000, 0x8f02\nlgdt 0x8f00\n"
              "ljmp $8, $0xfff0");
/* INIT to APIC ID 0, which is itself */
GUEST(init, "movl $0, 0xfee00310\n"
            "movl $0x4500, 0xfee00300\n"
            "1: pause\njmp 1b");

static const char *const engines[] = {"interp", "bt"};

/* A file with a Multiboot header, 32 bytes, and the guest's code; loaded at 1 MiB. */
static void write_kernel(const char *path, const uint8_t *code, size_t size)
{
    uint32_t header[8] = {0x1badb002, 0x10000, 0 - (0x1badb002u + 0x10000u), 0x100000, 0x100000, 0,
                          0,          0x100020};
    FILE *file = fopen(path, "wb");

    assert_non_null(file);
    fwrite(header, 1, sizeof(header), file);
    fwrite(code, 1, size, file);
    fclose(file);
}

struct run {
    const char *engine;
    const uint8_t *code, *code_end;
    unsigned cpu_count;
    enum vm_on_reboot on_reboot;
    bool must_stop; /* by another thread */
    enum vm_irqchip irqchip;
    const char *may_lack; /* the host may be without what an error that says this is about */
    struct vm_end end;
};

static void *stop_machine(void *vm)
{
    vm_request_stop(vm);
    return NULL;
}

/* False: the host lacks something, and that may be. */
static bool run_machine(struct run *r)
{
    char path[] = "/tmp/doppel-vm-XXXXXX";
    struct vm_config config = {
        .engine = r->engine,
        .cpu_count = r->cpu_count != 0 ? r->cpu_count : 1,
        .memory_bytes = UINT64_C(8) << 20,
        .kernel_path = path,
        .has_debug_exit = true,
        .on_reboot = r->on_reboot,
        .kvm_irqchip = r->irqchip,
    };
    struct err e = {0};
    struct vm *vm = NULL;
    pthread_t thread;
    FILE *null;
    int fd = mkstemp(path);

    assert_true(fd >= 0);
    close(fd);
    write_kernel(path, r->code, (size_t)(r->code_end - r->code));
    assert_int_equal(loop_create(&config.loop, &e), 0);
    if (vm_create(&config, &vm, &e) != 0) {
        if (r->may_lack == NULL || strstr(e.msg, r->may_lack) == NULL)
            fail_msg("%s", e.msg);
        print_message("skipped: %s\n", e.msg);
        unlink(path);
        loop_destroy(config.loop);
        return false;
    }
    unlink(path);
    if (r->must_stop)
        assert_int_equal(pthread_create(&thread, NULL, stop_machine, vm), 0);
    vm_run(vm, &r->end);
    if (r->must_stop)
        pthread_join(thread, NULL);
    null = fopen("/dev/null", "w");
    vm_print_stats(vm, null);
    fclose(null);
    vm_destroy(vm);
    loop_destroy(config.loop);
    return true;
}

#define RUN(guest, ...)                                                                            \
    (struct run)                                                                                   \
    {                                                                                              \
        .code = guest_##guest, .code_end = guest_##guest##_end, __VA_ARGS__                        \
    }

static void debug_exit_ends_with_status(void **state)
{
    for (unsigned i = 0; i < ARRAY_SIZE(engines); i++) {
        struct run r = RUN(debug_exit, .engine = engines[i]);
        run_machine(&r);
        assert_int_equal(r.end.cause, VM_END_DEBUG_EXIT);
        assert_int_equal(r.end.status, 43);
    }
}

static void power_off_ends(void **state)
{
    for (unsigned i = 0; i < ARRAY_SIZE(engines); i++) {
        struct run r = RUN(power_off, .engine = engines[i], .cpu_count = 2);
        run_machine(&r);
        assert_int_equal(r.end.cause, VM_END_POWER_OFF);
    }
}

static void triple_fault_tells_registers(void **state)
{
    for (unsigned i = 0; i < ARRAY_SIZE(engines); i++) {
        struct run r = RUN(triple_fault, .engine = engines[i]);
        run_machine(&r);
        assert_int_equal(r.end.cause, VM_END_DIED);
        assert_int_equal(r.end.cpu, 0);
        assert_non_null(strstr(r.end.dump, "rsi 0000000012345678"));
        assert_non_null(strstr(r.end.dump, "first exception: vector 6 #UD\n"));
        assert_non_null(strstr(r.end.dump, "code at rip: 0f 0b"));
    }
}

static void reset_loads_the_kernel_again(void **state)
{
    for (unsigned i = 0; i < ARRAY_SIZE(engines); i++) {
        struct run r = RUN(reset, .engine = engines[i], .cpu_count = 2);
        run_machine(&r);
        assert_int_equal(r.end.cause, VM_END_DEBUG_EXIT);
        assert_int_equal(r.end.status, (guest_reset[0] << 1 | 1) & 0xff);
    }
}

static void reset_can_end(void **state)
{
    struct run r = RUN(reset, .engine = "interp", .on_reboot = VM_REBOOT_EXIT);

    run_machine(&r);
    assert_int_equal(r.end.cause, VM_END_RESET);
}

/* Without firmware there is nothing else to do there. */
static void the_reset_vector_resets_the_machine(void **state)
{
    for (unsigned i = 0; i < ARRAY_SIZE(engines); i++) {
        struct run r = RUN(vector, .engine = engines[i], .on_reboot = VM_REBOOT_EXIT);
        run_machine(&r);
        assert_int_equal(r.end.cause, VM_END_RESET);
        r = RUN(init, .engine = engines[i], .on_reboot = VM_REBOOT_EXIT);
        run_machine(&r);
        assert_int_equal(r.end.cause, VM_END_RESET);
    }
}

/* There KVM takes the INIT by itself, and the processor is at the reset vector. */
static void init_resets_the_machine_with_lent_apics(void **state)
{
    struct run r = RUN(init, .engine = "kvm", .irqchip = VM_IRQCHIP_ON, .on_reboot = VM_REBOOT_EXIT,
                       .may_lack = "KVM");

    if (!run_machine(&r))
        skip();
    assert_int_equal(r.end.cause, VM_END_RESET);
}

static void a_halted_machine_can_be_stopped(void **state)
{
    for (unsigned i = 0; i < ARRAY_SIZE(engines); i++) {
        struct run r = RUN(halt, .engine = engines[i], .cpu_count = 3, .must_stop = true);
        run_machine(&r);
        assert_int_equal(r.end.cause, VM_END_STOPPED);
    }
}

static void a_timer_wakes_a_halted_cpu(void **state)
{
    for (unsigned i = 0; i < ARRAY_SIZE(engines); i++) {
        struct run r = RUN(timer, .engine = engines[i]);
        run_machine(&r);
        assert_int_equal(r.end.cause, VM_END_DEBUG_EXIT);
        assert_int_equal(r.end.status, 11);
    }
}

static void a_second_cpu_starts(void **state)
{
    for (unsigned i = 0; i < ARRAY_SIZE(engines); i++) {
        struct run r = RUN(smp, .engine = engines[i], .cpu_count = 2);
        run_machine(&r);
        assert_int_equal(r.end.cause, VM_END_DEBUG_EXIT);
        assert_int_equal(r.end.status, 7 << 1 | 1);
    }
}

static void bad_configurations_are_refused(void **state)
{
    static const struct {
        struct vm_config config;
        const char *message;
    } cases[] = {
        {{.cpu_count = 0, .memory_bytes = 8 << 20, .kernel_path = "/dev/null"}, "CPUs"},
        {{.cpu_count = 65, .memory_bytes = 8 << 20, .kernel_path = "/dev/null"}, "CPUs"},
        {{.cpu_count = 1, .memory_bytes = 1 << 20, .kernel_path = "/dev/null"}, "memory"},
        {{.cpu_count = 1, .memory_bytes = (8 << 20) + 4096, .kernel_path = "/dev/null"}, "memory"},
        {{.cpu_count = 1, .memory_bytes = 8 << 20}, "either a kernel or firmware"},
        {{.cpu_count = 1, .memory_bytes = 8 << 20, .firmware = "/nonexistent/fw"},
         "/nonexistent/fw"},
        {{.cpu_count = 1, .memory_bytes = 8 << 20, .firmware = "/dev/null"}, "regular file"},
        {{.cpu_count = 1, .memory_bytes = 8 << 20, .kernel_path = "/nonexistent/k"},
         "/nonexistent/k"},
        {{.cpu_count = 1, .memory_bytes = 8 << 20, .kernel_path = "/dev/null"}, "regular file"},
        {{.cpu_count = 1, .memory_bytes = 8 << 20, .kernel_path = "/dev/null", .engine = "qemu"},
         "qemu"},
    };

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        struct vm_config config = cases[i].config;
        struct err e = {0};
        struct vm *vm = NULL;
        assert_int_equal(loop_create(&config.loop, &e), 0);
        assert_int_not_equal(vm_create(&config, &vm, &e), 0);
        assert_null(vm);
        if (strstr(e.msg, cases[i].message) == NULL)
            fail_msg("message '%s' does not contain '%s'", e.msg, cases[i].message);
        loop_destroy(config.loop);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_configurations_are_refused),
        cmocka_unit_test(debug_exit_ends_with_status),
        cmocka_unit_test(power_off_ends),
        cmocka_unit_test(triple_fault_tells_registers),
        cmocka_unit_test(reset_loads_the_kernel_again),
        cmocka_unit_test(reset_can_end),
        cmocka_unit_test(the_reset_vector_resets_the_machine),
        cmocka_unit_test(init_resets_the_machine_with_lent_apics),
        cmocka_unit_test(a_halted_machine_can_be_stopped),
        cmocka_unit_test(a_timer_wakes_a_halted_cpu),
        cmocka_unit_test(a_second_cpu_starts),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
