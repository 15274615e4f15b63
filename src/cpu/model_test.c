/*
 * model_test.c - CPU models on hosts of our own making, CPUID, reset and INIT
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <string.h>

#include "base/bits.h"
#include "cpu/model_build.h"
#include "cpu/state.h"

#define TSC_HZ UINT64_C(2000000000)

/* A host that has every bit doppel knows, but those in `lacks`. */
struct fake_host {
    bool is_amd;
    enum cpu_feature lacks[4];
    unsigned lack_count;
};

static struct cpuid_regs fake_features(const struct fake_host *f, uint32_t leaf, uint32_t subleaf)
{
    uint32_t r[4] = {0};

    for (unsigned i = 0; i < CPU_FEATURE_COUNT; i++) {
        const struct model_feature *m = &model_features[i];
        bool is_lacking = false;
        for (unsigned k = 0; k < f->lack_count; k++)
            is_lacking |= f->lacks[k] == i;
        if (m->leaf == leaf && m->subleaf == subleaf && !is_lacking)
            r[m->reg] |= UINT32_C(1) << m->bit;
    }
    return (struct cpuid_regs){r[0], r[1], r[2], r[3]};
}

static struct cpuid_regs fake_xsave(uint32_t subleaf)
{
    static const struct cpuid_regs layout[] = {
        [2] = {256, 576, 0, 0},   [5] = {64, 1088, 0, 0}, [6] = {512, 1152, 0, 0},
        [7] = {1024, 1664, 0, 0}, [9] = {8, 2688, 0, 0},  [11] = {16, 0, 1, 0},
    };

    return subleaf < ARRAY_SIZE(layout) ? layout[subleaf] : (struct cpuid_regs){0};
}

static struct cpuid_regs fake_cpuid(const void *ctx, uint32_t leaf, uint32_t subleaf)
{
    const struct fake_host *f = ctx;
    struct cpuid_regs r = fake_features(f, leaf, subleaf);

    switch (leaf) {
    case 0:
        return f->is_amd ? (struct cpuid_regs){0x10, 0x68747541, 0x444d4163, 0x69746e65}
                         : (struct cpuid_regs){0x20, 0x756e6547, 0x6c65746e, 0x49656e69};
    case 1:
        r.eax = 0x000906ea;
        r.ebx = 0x05100800;
        return r;
    case 4:
        /* two levels of 8-way caches, one shared by 16, then the end */
        return subleaf == 0   ? (struct cpuid_regs){0x1c004121, 0x01c0003f, 63, 0}
               : subleaf == 1 ? (struct cpuid_regs){0x1c03c163, 0x03c0003f, 4095, 0}
                              : (struct cpuid_regs){0};
    case 7:
        if (subleaf == 0)
            r.eax = 2;
        return r;
    case 0xd:
        if (subleaf != 1)
            return fake_xsave(subleaf);
        return r;
    case 0xa: /* performance monitoring, which no model may show */
        return (struct cpuid_regs){0x07300404, 0, 0, 0x603};
    case 0x80000000:
        return (struct cpuid_regs){f->is_amd ? 0x80000021u : 0x80000008u, 0, 0, 0};
    case 0x80000008:
        r.eax = 0x3027;
        return r;
    default:
        return r;
    }
}

static int make_on(const struct fake_host *fake, const char *spec, unsigned cpus,
                   struct cpu_model *m, struct err *e)
{
    const struct model_host host = {
        .cpuid = fake_cpuid, .ctx = fake, .xcr0 = 0x2e7, .mxcsr_mask = 0xffff};

    return model_create_on(&host, spec, cpus, TSC_HZ, m, e);
}

static struct cpu_model make(const struct fake_host *fake, const char *spec, unsigned cpus)
{
    struct cpu_model m;
    struct err e = {0};

    if (make_on(fake, spec, cpus, &m, &e) != 0)
        fail_msg("%s: %s", spec, e.msg);
    return m;
}

static void assert_refused(const struct fake_host *fake, const char *spec, const char *words)
{
    struct cpu_model m;
    struct err e = {0};

    assert_true(make_on(fake, spec, 1, &m, &e) < 0);
    if (strstr(e.msg, words) == NULL)
        fail_msg("'%s' does not say '%s'", e.msg, words);
}

static struct cpuid_regs query(const struct cpu_model *m, uint32_t leaf, uint32_t subleaf)
{
    static const struct cpu_state st = {.efer = EFER_LMA, .seg[CPU_CS].attr = SEG_L};

    return cpu_model_cpuid(m, &st, 1, leaf, subleaf);
}

static const struct fake_host intel = {0};
static const struct fake_host amd = {.is_amd = true};

static void test_host_offers_what_doppel_implements(void **state)
{
    static const enum cpu_feature never[] = {
        CPU_FEATURE_VMX,   CPU_FEATURE_SVM,      CPU_FEATURE_MONITOR, CPU_FEATURE_PKU,
        CPU_FEATURE_SHSTK, CPU_FEATURE_AMX_TILE, CPU_FEATURE_RTM,     CPU_FEATURE_SGX,
        CPU_FEATURE_LA57,  CPU_FEATURE_MWAITX,   CPU_FEATURE_HWP,     CPU_FEATURE_ENQCMD,
        CPU_FEATURE_MPX,   CPU_FEATURE_XFD,      CPU_FEATURE_LAM,     CPU_FEATURE_PDCM,
    };
    const struct cpu_model mi = make(&intel, "host", 1), ma = make(&amd, "host", 1);

    for (unsigned i = 0; i < ARRAY_SIZE(never); i++) {
        assert_false(cpu_model_has(&mi, never[i]));
        assert_false(cpu_model_has(&ma, never[i]));
    }
    assert_true(cpu_model_has(&mi, CPU_FEATURE_AVX512F) && cpu_model_has(&mi, CPU_FEATURE_SMAP));
    assert_true(cpu_model_has(&mi, CPU_FEATURE_ARCH_CAPABILITIES));
    assert_false(cpu_model_has(&ma, CPU_FEATURE_ARCH_CAPABILITIES));
    assert_true(cpu_model_has(&ma, CPU_FEATURE_SRSO_NO));
    assert_false(cpu_model_has(&mi, CPU_FEATURE_SRSO_NO));
    assert_false(mi.is_amd);
    assert_true(ma.is_amd);
}

/* A bit that CPUID shows comes from the feature words, and the other way round. */
static void test_leaves_show_the_features(void **state)
{
    const struct cpu_model m = make(&intel, "host,-avx512f", 4);

    for (unsigned i = 0; i < CPU_FEATURE_COUNT; i++) {
        const struct model_feature *f = &model_features[i];
        struct cpuid_regs r = query(&m, f->leaf, f->subleaf);
        if (f->leaf <= 0x80000008)
            assert_int_equal(cpuid_reg_of(&r, f->reg) >> f->bit & 1, cpu_model_has(&m, i));
    }
    assert_int_equal(query(&m, 0xa, 0).eax, 0);
    assert_int_equal(query(&m, 5, 0).ebx, 0);
}

static void test_emulated_features_need_no_host(void **state)
{
    const struct fake_host old = {
        .lacks = {CPU_FEATURE_SMAP, CPU_FEATURE_PCID, CPU_FEATURE_X2APIC, CPU_FEATURE_UMIP},
        .lack_count = 4};
    const struct cpu_model m = make(&old, "host", 1);

    assert_true(cpu_model_has(&m, CPU_FEATURE_SMAP));
    assert_true(cpu_model_has(&m, CPU_FEATURE_PCID));
    assert_true(cpu_model_has(&m, CPU_FEATURE_X2APIC));
}

static void test_removal_takes_dependents(void **state)
{
    struct cpu_model m = make(&intel, "host,-avx", 1);

    assert_false(cpu_model_has(&m, CPU_FEATURE_AVX2));
    assert_false(cpu_model_has(&m, CPU_FEATURE_FMA));
    assert_false(cpu_model_has(&m, CPU_FEATURE_AVX512_VBMI2));
    assert_false(cpu_model_has(&m, CPU_FEATURE_VAES));
    assert_true(cpu_model_has(&m, CPU_FEATURE_AES));
    assert_true(cpu_model_has(&m, CPU_FEATURE_BMI2));
    assert_int_equal(m.xcr0_valid, 3);
    assert_int_equal(m.xsave_size, 576);

    m = make(&intel, "host,-xsave", 1);
    assert_false(cpu_model_has(&m, CPU_FEATURE_AVX));
    assert_false(cpu_model_has(&m, CPU_FEATURE_XSAVES));
    assert_int_equal(m.xcr0_valid, 0);
    assert_int_equal(query(&m, 0xd, 0).ecx, 0);
}

static void test_addition_brings_what_is_needed(void **state)
{
    const struct cpu_model m = make(&intel, "base,+avx512_vbmi2", 1);

    assert_true(cpu_model_has(&m, CPU_FEATURE_AVX512BW));
    assert_true(cpu_model_has(&m, CPU_FEATURE_AVX512F));
    assert_true(cpu_model_has(&m, CPU_FEATURE_XSAVE));
    assert_true(cpu_model_has(&m, CPU_FEATURE_SSE4_2));
    assert_false(cpu_model_has(&m, CPU_FEATURE_AVX512DQ));
    assert_int_equal(m.xcr0_valid, 0xe7);
    assert_int_equal(m.xsave_size, 2688);
}

static void test_errors_name_what_is_wrong(void **state)
{
    const struct fake_host no_avx2 = {.lacks = {CPU_FEATURE_AVX2}, .lack_count = 1};

    assert_refused(&intel, "pentium", "host, base, x86-64-v2");
    assert_refused(&intel, "", "not known");
    assert_refused(&intel, "host,avx", "begin with + or -");
    assert_refused(&intel, "host,", "begin with + or -");
    assert_refused(&intel, "host,+", "begin with + or -");
    assert_refused(&intel, "host,+warp", "'warp' is not known");
    assert_refused(&intel, "host,+vmx", "does not implement CPU feature 'vmx'");
    assert_refused(&intel, "host,-ht", "number of CPUs");
    assert_refused(&no_avx2, "x86-64-v3", "up to 'x86-64-v2'");
    assert_refused(&no_avx2, "x86-64-v3", "'avx2'");
    assert_refused(&no_avx2, "host,+avx512f", "'avx2'");
}

static void test_names(void **state)
{
    const struct cpu_model m = make(&intel, "x86-64-v4,-sse4.2,-tsc-deadline-timer,+lzcnt", 1);

    assert_false(cpu_model_has(&m, CPU_FEATURE_SSE4_2));
    assert_false(cpu_model_has(&m, CPU_FEATURE_AVX));
    assert_false(cpu_model_has(&m, CPU_FEATURE_TSC_DEADLINE));
    assert_true(cpu_model_has(&m, CPU_FEATURE_ABM));
    assert_string_equal(m.name, "x86-64-v4,-sse4.2,-tsc-deadline-timer,+lzcnt");
}

/* Later changes win, in the order given. */
static void test_order_of_changes(void **state)
{
    struct cpu_model m = make(&intel, "host,-avx,+avx2", 1);

    assert_true(cpu_model_has(&m, CPU_FEATURE_AVX2));
    assert_false(cpu_model_has(&m, CPU_FEATURE_FMA));
    m = make(&intel, "host,+avx2,-avx", 1);
    assert_false(cpu_model_has(&m, CPU_FEATURE_AVX2));
}

/* What the host's system does not save cannot be offered, whatever CPUID says. */
static void test_state_must_be_enabled(void **state)
{
    const struct model_host host = {.cpuid = fake_cpuid, .ctx = &intel, .xcr0 = 7};
    struct cpu_model m;
    struct err e;

    assert_int_equal(model_create_on(&host, "host", 1, TSC_HZ, &m, &e), 0);
    assert_true(cpu_model_has(&m, CPU_FEATURE_AVX2));
    assert_false(cpu_model_has(&m, CPU_FEATURE_AVX512F));
    assert_false(cpu_model_has(&m, CPU_FEATURE_AVX512VL));
    assert_int_equal(m.xcr0_valid, 7);
}

static void test_topology(void **state)
{
    struct cpu_model m = make(&intel, "host", 6);

    assert_int_equal(query(&m, 1, 0).ebx, 0x01080800); /* 8 IDs, APIC ID 1 */
    assert_true(query(&m, 1, 0).edx >> 28 & 1);
    assert_int_equal(query(&m, 0xb, 0).ebx, 1);
    assert_int_equal(query(&m, 0xb, 1).eax, 3);
    assert_int_equal(query(&m, 0xb, 1).ebx, 6);
    assert_int_equal(query(&m, 0xb, 1).edx, 1);
    assert_int_equal(query(&m, 0xb, 2).ecx, 2);
    assert_int_equal(query(&m, 0xb, 2).edx, 1);
    assert_int_equal(query(&m, 4, 0).eax, 0x1c000121);
    assert_int_equal(query(&m, 4, 1).eax, 0x1c01c163);
    assert_int_equal(query(&m, 4, 2).eax, 0);

    m = make(&amd, "host", 6);
    assert_int_equal(query(&m, 1, 0).ebx, 0x01060800);
    assert_int_equal(query(&m, 0x80000008, 0).ecx, 0x3005);
    assert_true(query(&m, 0x80000001, 0).ecx & 2); /* CMP_LEGACY */
    assert_int_equal(query(&m, 0x8000001e, 0).eax, 1);

    m = make(&amd, "host", 1);
    assert_false(query(&m, 1, 0).edx >> 28 & 1);
    assert_int_equal(query(&m, 1, 0).ebx, 0x01000800);
}

static void test_xsave_sizes_follow_xcr0(void **state)
{
    const struct cpu_model m = make(&intel, "host", 1);
    struct cpu_state st = {.xcr0 = 1};

    assert_int_equal(cpu_model_cpuid(&m, &st, 0, 0xd, 0).ebx, 576);
    assert_int_equal(cpu_model_cpuid(&m, &st, 0, 0xd, 0).ecx, 2688);
    st.xcr0 = 0xe3;
    assert_int_equal(cpu_model_cpuid(&m, &st, 0, 0xd, 0).ebx, 2688);
    assert_int_equal(cpu_model_cpuid(&m, &st, 0, 0xd, 1).ebx, 576 + 64 + 512 + 1024);
    assert_int_equal(cpu_model_cpuid(&m, &st, 0, 0xd, 2).ebx, 576);
    assert_int_equal(cpu_model_cpuid(&m, &st, 0, 0xd, 9).eax, 0);
    assert_int_equal(cpu_model_cpuid(&m, &st, 0, 0xd, 11).eax, 0);
}

static void test_dynamic_bits(void **state)
{
    const struct cpu_model mi = make(&intel, "host", 1), ma = make(&amd, "host", 1);
    struct cpu_state st = {0};

    assert_false(cpu_model_cpuid(&mi, &st, 0, 1, 0).ecx >> 27 & 1);
    st.cr4 = CR4_OSXSAVE;
    assert_true(cpu_model_cpuid(&mi, &st, 0, 1, 0).ecx >> 27 & 1);
    assert_int_equal(cpu_model_cpuid(&mi, &st, 0x2a, 1, 0).ebx >> 24, 0x2a);
    assert_false(cpu_model_cpuid(&mi, &st, 0, 0x80000001, 0).edx >> 11 & 1);
    assert_true(cpu_model_cpuid(&ma, &st, 0, 0x80000001, 0).edx >> 11 & 1);
}

static void test_out_of_range(void **state)
{
    const struct cpu_model mi = make(&intel, "host", 1), ma = make(&amd, "host", 1);
    struct cpuid_regs last = query(&mi, 0x16, 0);

    assert_int_equal(last.eax, 2000);
    assert_int_equal(query(&mi, 0x17, 0).eax, last.eax);
    assert_int_equal(query(&mi, 0x80000009, 0).eax, last.eax);
    assert_int_equal(query(&mi, 0x40000011, 0).eax, 0);
    assert_int_equal(query(&ma, 0xe, 0).eax, 0);
    assert_int_equal(query(&ma, 0x90000000, 0).eax, 0);
    assert_int_equal(query(&ma, 0xffffffff, 0xffffffff).edx, 0);
}

static void test_hypervisor_and_frequencies(void **state)
{
    const uint32_t clocks = BIT(0) | BIT(1) | BIT(3) | BIT(24);
    const uint32_t paravirtual = BIT(5) | BIT(6) | BIT(7) | BIT(11) | BIT(12) | BIT(13);
    struct cpu_model m = make(&intel, "host", 1);

    assert_int_equal(query(&m, 0x40000000, 0).eax, 0x40000010);
    assert_memory_equal(&(uint32_t){query(&m, 0x40000000, 0).ebx}, "KVMK", 4);
    assert_int_equal(query(&m, 0x40000001, 0).eax, clocks | paravirtual);
    assert_int_equal(query(&m, 0x40000010, 0).eax, 2000000);
    assert_int_equal(query(&m, 0x40000010, 0).ebx, 1000000);
    /* 1 GHz * 2 / 1 */
    assert_int_equal(query(&m, 0x15, 0).eax, 1);
    assert_int_equal(query(&m, 0x15, 0).ebx, 2);
    assert_int_equal(query(&m, 0x15, 0).ecx, 1000000000);

    m = make(&intel, "host,-kvm-pv-eoi,-kvm_pv_unhalt", 1);
    assert_int_equal(query(&m, 0x40000001, 0).eax, clocks | (paravirtual & ~(BIT(6) | BIT(7))));
    m = make(&intel, "base", 1);
    assert_int_equal(query(&m, 0x40000001, 0).eax, clocks | paravirtual);
    m = make(&intel, "base,-apic", 1);
    assert_int_equal(query(&m, 0x40000001, 0).eax, clocks | BIT(5) | BIT(12));
    m = make(&intel, "host,-hypervisor", 1);
    assert_int_equal(query(&m, 0x40000000, 0).eax, 0);
    assert_false(query(&m, 1, 0).ecx >> 31 & 1);
}

static void list_line(void *ctx, const char *line)
{
    unsigned *count = ctx;

    assert_true(strlen(line) > 0);
    *count += strcmp(line, "  x86-64-v3") == 0 || strstr(line, "vmx (not implemented)") != NULL;
}

/* The real host: its own model must always be possible. */
static void test_this_host(void **state)
{
    struct cpu_model m;
    struct err e = {0};
    unsigned count = 0;

    if (cpu_model_create("host", 64, TSC_HZ, &m, &e) != 0)
        fail_msg("%s", e.msg);
    assert_true(m.leaf_count < CPU_MODEL_LEAVES_MAX);
    assert_true(m.xsave_size <= CPU_XSAVE_SIZE);
    assert_true(m.phys_bits >= 36 && m.phys_bits <= 52);
    assert_int_equal(cpu_model_create("base", 1, TSC_HZ, &m, &e), 0);
    cpu_model_list(list_line, &count);
    assert_int_equal(count, 2);
}

static void test_reset_init_sipi(void **state)
{
    struct cpu_state st;

    memset(&st, 0xa5, sizeof(st));
    cpu_state_reset(&st, 0x906ea);
    assert_int_equal(st.seg[CPU_CS].base + st.rip, 0xfffffff0);
    assert_int_equal(st.cr0, CR0_CD | CR0_NW | CR0_ET);
    assert_int_equal(st.rflags, 2);
    assert_int_equal(st.gpr[CPU_RDX], 0x906ea);
    assert_int_equal(st.xcr0, 1);
    assert_int_equal(st.dr6, DR6_FIXED);
    assert_int_equal(cpu_cpl(&st), 0);
    assert_true(cpu_is_real(&st));

    st.cr0 = CR0_PE | CR0_PG | CR0_ET | CR0_CD;
    st.cr4 = CR4_PAE;
    st.lstar = 0x1234;
    st.tsc_offset = 77;
    st.xsave[40] = 9;
    st.shadow = SHADOW_STI;
    cpu_state_init(&st, 0x906ea);
    assert_int_equal(st.cr0, CR0_ET | CR0_CD);
    assert_int_equal(st.cr4, 0);
    assert_int_equal(st.lstar, 0x1234);
    assert_int_equal(st.tsc_offset, 77);
    assert_int_equal(st.xsave[40], 9);
    assert_int_equal(st.shadow, 0);

    st.run_state = CPU_WAIT_SIPI;
    cpu_state_sipi(&st, 0x9a);
    assert_int_equal(st.seg[CPU_CS].selector, 0x9a00);
    assert_int_equal(st.seg[CPU_CS].base + st.rip, 0x9a000);
    assert_int_equal(st.run_state, CPU_RUNNING);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_host_offers_what_doppel_implements),
        cmocka_unit_test(test_leaves_show_the_features),
        cmocka_unit_test(test_emulated_features_need_no_host),
        cmocka_unit_test(test_removal_takes_dependents),
        cmocka_unit_test(test_addition_brings_what_is_needed),
        cmocka_unit_test(test_errors_name_what_is_wrong),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_order_of_changes),
        cmocka_unit_test(test_state_must_be_enabled),
        cmocka_unit_test(test_topology),
        cmocka_unit_test(test_xsave_sizes_follow_xcr0),
        cmocka_unit_test(test_dynamic_bits),
        cmocka_unit_test(test_out_of_range),
        cmocka_unit_test(test_hypervisor_and_frequencies),
        cmocka_unit_test(test_this_host),
        cmocka_unit_test(test_reset_init_sipi),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
