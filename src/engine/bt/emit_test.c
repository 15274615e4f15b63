/*
 * emit_test.c - what the emitters write, read back by the decoder
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <cmocka.h>

#include <Zydis/Zydis.h>

#include "engine/bt/emit.h"

static struct emit begin(uint8_t *buf, size_t size)
{
    return (struct emit){.start = buf, .p = buf, .end = buf + size};
}

/* The text of the only instruction that was emitted. */
static void assert_text(const struct emit *e, const char *text)
{
    ZydisDisassembledInstruction dis;
    size_t size = (size_t)(e->p - e->start);

    assert_false(e->is_full);
    assert_true(
        ZYAN_SUCCESS(ZydisDisassembleIntel(ZYDIS_MACHINE_MODE_LONG_64, 0, e->start, size, &dis)));
    assert_int_equal(dis.info.length, size);
    assert_string_equal(dis.text, text);
}

/* Every base and index, with the forms that need SIB or a displacement. */
static void test_addresses(void **state)
{
    static const char *const names[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                          "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
    static const struct {
        int32_t disp;
        const char *text;
    } disps[] = {{0, ""}, {8, "+0x08"}, {-8, "-0x08"}, {0x1234, "+0x1234"}};
    uint8_t buf[32];
    char want[64];

    for (unsigned base = 0; base < 16; base++) {
        for (unsigned d = 0; d < 4; d++) {
            struct emit e = begin(buf, sizeof(buf));
            emit_op_mem(&e, true, 0x8b, H_RDX, base, H_NONE, 1, disps[d].disp);
            snprintf(want, sizeof(want), "mov rdx, [%s%s]", names[base], disps[d].text);
            assert_text(&e, want);
            for (unsigned index = 0; index < 16; index++) {
                if (index == H_RSP)
                    continue;
                e = begin(buf, sizeof(buf));
                emit_lea(&e, true, H_R15, base, index, 4, disps[d].disp);
                snprintf(want, sizeof(want), "lea r15, [%s+%s*4%s]", names[base], names[index],
                         disps[d].text);
                assert_text(&e, want);
            }
        }
    }
}

static void test_without_flags(void **state)
{
    uint8_t buf[32];
    struct emit e = begin(buf, sizeof(buf));
    emit_rorx(&e, H_R10, H_RDX, 32);
    assert_text(&e, "rorx r10, rdx, 0x20");
    e = begin(buf, sizeof(buf));
    emit_shift(&e, EMIT_SHLX, H_R10, H_RDX, H_RCX);
    assert_text(&e, "shlx r10, rdx, rcx");
    e = begin(buf, sizeof(buf));
    emit_shift(&e, EMIT_SARX, H_RCX, H_R10, H_R15);
    assert_text(&e, "sarx rcx, r10, r15");
    e = begin(buf, sizeof(buf));
    emit_shift(&e, EMIT_SHRX, H_RCX, H_RCX, H_R15);
    assert_text(&e, "shrx rcx, rcx, r15");
    e = begin(buf, sizeof(buf));
    emit_not(&e, H_R15);
    assert_text(&e, "not r15");
    e = begin(buf, sizeof(buf));
    emit_op_reg(&e, true, 0x63, H_RCX, H_R11);
    assert_text(&e, "movsxd rcx, r11d");
}

static void test_vcpu_block(void **state)
{
    uint8_t buf[32];
    struct emit e = begin(buf, sizeof(buf));
    emit_gs_load(&e, true, H_R10, 0x128);
    assert_text(&e, "mov r10, gs:[0x0000000000000128]");
    e = begin(buf, sizeof(buf));
    emit_gs_store(&e, false, H_RAX, 0x128);
    assert_text(&e, "mov gs:[0x0000000000000128], eax");
    e = begin(buf, sizeof(buf));
    emit_gs_store_imm(&e, 0x80, -1);
    assert_text(&e, "mov qword ptr gs:[0x0000000000000080], 0xFFFFFFFFFFFFFFFF");
    e = begin(buf, sizeof(buf));
    emit_op_gs(&e, true, 0x8b, H_RCX, H_R15, 0x400);
    assert_text(&e, "mov rcx, gs:[r15*8+0x400]");
    e = begin(buf, sizeof(buf));
    emit_pext_gs(&e, H_R15, H_R10, 0x200);
    assert_text(&e, "pext r15, r10, gs:[0x0000000000000200]");
    e = begin(buf, sizeof(buf));
    emit_pext_gs(&e, H_RCX, H_RCX, 0x208);
    assert_text(&e, "pext rcx, rcx, gs:[0x0000000000000208]");
}

/* The shortest form that keeps the value. */
static void test_immediates(void **state)
{
    uint8_t buf[32];
    struct emit e = begin(buf, sizeof(buf));
    emit_mov_imm(&e, H_R10, 0xffffffff);
    assert_int_equal(e.p - e.start, 6);
    assert_text(&e, "mov r10d, 0xFFFFFFFF");
    e = begin(buf, sizeof(buf));
    emit_mov_imm(&e, H_RCX, 0xffffffff80000000);
    assert_text(&e, "mov rcx, 0xFFFFFFFF80000000");
    e = begin(buf, sizeof(buf));
    emit_mov_imm(&e, H_R15, 0x123456789abcdef0);
    assert_text(&e, "mov r15, 0x123456789ABCDEF0");
}

static void test_jumps(void **state)
{
    uint8_t buf[64];
    struct emit e = begin(buf, sizeof(buf));
    uint8_t *near = emit_jrcxz(&e), *far = emit_jmp(&e);
    emit_patch8(&e, near, e.p);
    emit_patch32(&e, far, e.start);
    assert_int_equal(buf[0], 0xe3);
    assert_int_equal((int8_t)buf[1], 5);
    int32_t rel;
    memcpy(&rel, far, 4);
    assert_int_equal(rel, -7);
}

/* NOPs of any length are whole instructions. */
static void test_nops(void **state)
{
    uint8_t buf[64];
    for (unsigned n = 1; n < 40; n++) {
        struct emit e = begin(buf, sizeof(buf));
        emit_nops(&e, n);
        assert_int_equal(e.p - e.start, n);
        for (size_t at = 0; at < n;) {
            ZydisDisassembledInstruction dis;
            assert_true(ZYAN_SUCCESS(
                ZydisDisassembleIntel(ZYDIS_MACHINE_MODE_LONG_64, 0, buf + at, n - at, &dis)));
            assert_true(dis.info.mnemonic == ZYDIS_MNEMONIC_NOP ||
                        dis.info.mnemonic == ZYDIS_MNEMONIC_XCHG);
            at += dis.info.length;
        }
    }
}

static void test_full_buffer(void **state)
{
    uint8_t buf[8] = {0};
    struct emit e = begin(buf, 4);
    emit64(&e, ~UINT64_C(0));
    assert_true(e.is_full);
    assert_ptr_equal(e.p, e.start);
    for (unsigned i = 0; i < sizeof(buf); i++)
        assert_int_equal(buf[i], 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_addresses),   cmocka_unit_test(test_without_flags),
        cmocka_unit_test(test_vcpu_block),  cmocka_unit_test(test_immediates),
        cmocka_unit_test(test_jumps),       cmocka_unit_test(test_nops),
        cmocka_unit_test(test_full_buffer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
