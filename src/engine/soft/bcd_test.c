/*
 * bcd_test.c - the decimal adjustments against the host CPU, for every AX and incoming CF and AF
 *
 * The host executes them in a 32-bit code segment (selector 23H under Linux), reached by a far
 * call to code below 4 GiB. Flags that the manuals leave undefined are compared on AMD's CPUs only.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <cpuid.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <Zydis/Zydis.h>

#include "engine/soft/ops.h"

#define PAGE 4096u
#define USER_CS32 0x23
#define USER_DS 0x2b

/* Offsets in the scratch page that 32-bit code reaches. */
#define AT_ENTRY 0u /* 64-bit: called from C with rdi = operands */
#define AT_CODE32 256u
#define AT_POINTER 512u
#define AT_OPERANDS 1024u /* eax, eflags: in and out */
#define AT_STACK_TOP 4000u

struct operands {
    uint32_t eax, eflags;
};

struct host_code {
    uint8_t *page;
    struct operands *io;
};

static sigjmp_buf no_compat;

static void on_signal(int sig)
{
    siglongjmp(no_compat, 1);
}

static uint8_t *put(uint8_t *p, const void *bytes, size_t n)
{
    memcpy(p, bytes, n);
    return p + n;
}

static uint8_t *put32(uint8_t *p, uint64_t value)
{
    uint32_t v = (uint32_t)value;

    return put(p, &v, 4);
}

static void host_code_make(struct host_code *h)
{
    uint8_t *p;
    uintptr_t page;

    h->page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    assert_true(h->page != MAP_FAILED);
    page = (uintptr_t)h->page;
    h->io = (struct operands *)(h->page + AT_OPERANDS);

    /* push rbx, rbp, r12-r15; mov eax, USER_DS; mov ds, eax; mov r12, rsp */
    p = put(h->page + AT_ENTRY, "\x53\x55\x41\x54\x41\x55\x41\x56\x41\x57\xb8", 11);
    p = put32(p, USER_DS);
    p = put(p, "\x8e\xd8\x49\x89\xe4\xbc", 6); /* ...; mov esp, stack */
    p = put32(p, page + AT_STACK_TOP);
    p = put(p, "\xff\x1c\x25", 3); /* call far [pointer] */
    p = put32(p, page + AT_POINTER);
    /* mov rsp, r12; pop r15-r12, rbp, rbx; ret */
    put(p, "\x4c\x89\xe4\x41\x5f\x41\x5e\x41\x5d\x41\x5c\x5d\x5b\xc3", 14);

    p = put32(h->page + AT_POINTER, page + AT_CODE32);
    put(p, &(uint16_t){USER_CS32}, 2);
}

static void host_code_set(struct host_code *h, const uint8_t *insn, size_t n)
{
    /* push [edi + 4]; popfd; mov eax, [edi]; insn; mov [edi], eax; pushfd; pop [edi + 4]; retf */
    uint8_t *p = put(h->page + AT_CODE32, "\xff\x77\x04\x9d\x8b\x07", 6);

    p = put(p, insn, n);
    put(p, "\x89\x07\x9c\x8f\x47\x04\xcb", 7);
}

static void host_code_run(struct host_code *h)
{
    void *io = h->io;

    __asm__ volatile("call *%1"
                     : "+D"(io)
                     : "r"(h->page + AT_ENTRY)
                     : "rax", "rcx", "rdx", "rsi", "r8", "r9", "r10", "r11", "memory", "cc");
}

/* False when the host's system has no 32-bit code segment. */
static bool host_code_works(struct host_code *h)
{
    struct sigaction sa = {.sa_handler = on_signal}, old[2];
    bool works = false;

    host_code_set(h, (const uint8_t[]){0x90}, 1);
    sigaction(SIGSEGV, &sa, &old[0]);
    sigaction(SIGBUS, &sa, &old[1]);
    if (sigsetjmp(no_compat, 1) == 0) {
        host_code_run(h);
        works = true;
    }
    sigaction(SIGSEGV, &old[0], NULL);
    sigaction(SIGBUS, &old[1], NULL);
    return works;
}

static soft_op_fn op_find(unsigned mnemonic)
{
    for (const struct soft_op *op = soft_ops_bcd; op->fn != NULL; op++)
        if (op->op == mnemonic)
            return op->fn;
    fail_msg("no function for mnemonic %u", mnemonic);
    return NULL;
}

static bool host_is_amd(void)
{
    uint32_t eax, ebx, ecx, edx;

    __cpuid(0, eax, ebx, ecx, edx);
    return ebx == signature_AMD_ebx;
}

static const struct bcd_case {
    const char *name;
    uint16_t op;
    uint8_t bytes[2];
    uint8_t len;
    uint32_t defined; /* by the manuals */
} cases[] = {
    {"aaa", ZYDIS_MNEMONIC_AAA, {0x37}, 1, RFLAGS_CF | RFLAGS_AF},
    {"aas", ZYDIS_MNEMONIC_AAS, {0x3f}, 1, RFLAGS_CF | RFLAGS_AF},
    {"daa", ZYDIS_MNEMONIC_DAA, {0x27}, 1, RFLAGS_STATUS & ~RFLAGS_OF},
    {"das", ZYDIS_MNEMONIC_DAS, {0x2f}, 1, RFLAGS_STATUS & ~RFLAGS_OF},
    {"aam 10", ZYDIS_MNEMONIC_AAM, {0xd4, 10}, 2, RFLAGS_SF | RFLAGS_ZF | RFLAGS_PF},
    {"aam 255", ZYDIS_MNEMONIC_AAM, {0xd4, 255}, 2, RFLAGS_SF | RFLAGS_ZF | RFLAGS_PF},
    {"aam 1", ZYDIS_MNEMONIC_AAM, {0xd4, 1}, 2, RFLAGS_SF | RFLAGS_ZF | RFLAGS_PF},
    {"aad 10", ZYDIS_MNEMONIC_AAD, {0xd5, 10}, 2, RFLAGS_SF | RFLAGS_ZF | RFLAGS_PF},
    {"aad 0", ZYDIS_MNEMONIC_AAD, {0xd5, 0}, 2, RFLAGS_SF | RFLAGS_ZF | RFLAGS_PF},
    {"aad 173", ZYDIS_MNEMONIC_AAD, {0xd5, 173}, 2, RFLAGS_SF | RFLAGS_ZF | RFLAGS_PF},
    {"salc", ZYDIS_MNEMONIC_SALC, {0xd6}, 1, RFLAGS_STATUS},
};

/* Flags that go in: nothing, CF, AF, both, all. */
static const uint32_t flags_in[] = {2, 3, 0x12, 0x13, 2 | RFLAGS_STATUS};

static void compare(struct host_code *h, struct soft_vcpu *v, const struct bcd_case *c,
                    uint32_t compared)
{
    struct insn in = {.op = c->op, .len = c->len, .imm_off = 1, .imm = c->bytes[1]};
    soft_op_fn fn = op_find(c->op);

    memcpy(in.bytes, c->bytes, sizeof(c->bytes));
    host_code_set(h, c->bytes, c->len);
    for (unsigned f = 0; f < ARRAY_SIZE(flags_in); f++)
        for (uint32_t ax = 0; ax < 0x10000; ax++) {
            h->io->eax = 0x5a5a0000 | ax;
            h->io->eflags = flags_in[f];
            host_code_run(h);
            v->st.gpr[CPU_RAX] = 0x5a5a0000 | ax;
            v->st.rflags = flags_in[f];
            assert_int_equal(fn(v, &in), 0);
            if (v->st.gpr[CPU_RAX] != h->io->eax ||
                ((v->st.rflags ^ h->io->eflags) & compared) != 0)
                fail_msg("%s ax %04x flags %03x: eax %08lx flags %03lx, CPU eax %08x flags %03x",
                         c->name, ax, flags_in[f], v->st.gpr[CPU_RAX], v->st.rflags & RFLAGS_STATUS,
                         h->io->eax, (unsigned)(h->io->eflags & RFLAGS_STATUS));
        }
}

static void test_against_host(void **state)
{
    struct soft_vcpu *v = aligned_alloc(64, align_up(sizeof(*v), 64));
    struct host_code h;

    assert_non_null(v);
    memset(v, 0, sizeof(*v));
    host_code_make(&h);
    if (!host_code_works(&h)) {
        munmap(h.page, PAGE);
        free(v);
        skip();
    }
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++)
        compare(&h, v, &cases[i], host_is_amd() ? RFLAGS_STATUS : cases[i].defined);
    munmap(h.page, PAGE);
    free(v);
}

static void test_aam_by_zero(void **state)
{
    struct soft_vcpu *v = aligned_alloc(64, align_up(sizeof(*v), 64));
    struct insn in = {.op = ZYDIS_MNEMONIC_AAM, .len = 2, .imm_off = 1, .bytes = {0xd4, 0}};

    assert_non_null(v);
    memset(v, 0, sizeof(*v));
    v->st.gpr[CPU_RAX] = 0x1234;
    assert_int_equal(op_find(in.op)(v, &in), SOFT_FAULT);
    assert_int_equal(v->fault.vector, VEC_DE);
    assert_int_equal(v->st.gpr[CPU_RAX], 0x1234);
    free(v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_host),
        cmocka_unit_test(test_aam_by_zero),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
