/*
 * msr.c - model-specific registers, RDMSR and WRMSR
 *
 * What belongs to a device (APIC base, x2APIC, TSC deadline, paravirtual clock) goes to the
 * host table; MTRRs have a file of their own; the rest is state, a constant that the CPUID
 * model calls for, or #GP(0). Registers that operating systems touch without asking CPUID
 * read as a processor without the unit behind them.
 *
 * Specification: SDM vol. 4; AMD64 APM vol. 2, appendix A.
 */
#include <Zydis/Zydis.h>
#include <inttypes.h>

#include "cpu/msr.h"
#include "engine/soft/mmu.h"
#include "engine/soft/system.h"
#include "os/tsc.h"

/* MISC_ENABLE: what only reads (BTS and PEBS unavailable, performance monitoring available). */
#define MISC_ENABLE_READ_ONLY (BIT(7) | BIT(11) | BIT(12))
#define HWCR_TSC_FREQ_SEL BIT(24) /* the TSC runs at the P0 frequency */
#define VM_CR_LOCK BIT(3)
#define VM_CR_SVMDIS BIT(4)
#define DE_CFG_LFENCE_SERIALIZE BIT(1)

static bool msr_is_host(uint32_t index)
{
    switch (index) {
    case MSR_KVM_WALL_CLOCK_OLD:
    case MSR_KVM_SYSTEM_TIME_OLD:
    case MSR_APIC_BASE:
    case MSR_TSC_DEADLINE:
        return true;
    default:
        return (index >= MSR_X2APIC_FIRST && index <= MSR_X2APIC_LAST) ||
               (index >= MSR_KVM_FIRST && index <= MSR_KVM_LAST);
    }
}

/* The register exists only when the model has one of these features. */
static bool msr_is_offered(const struct soft_vcpu *v, uint32_t index)
{
    const struct cpu_model *m = v->model;

    switch (index) {
    case MSR_TSC_ADJUST:
        return cpu_model_has(m, CPU_FEATURE_TSC_ADJUST);
    case MSR_ARCH_CAPABILITIES:
        return cpu_model_has(m, CPU_FEATURE_ARCH_CAPABILITIES);
    case MSR_SYSENTER_CS:
    case MSR_SYSENTER_ESP:
    case MSR_SYSENTER_EIP:
        return cpu_model_has(m, CPU_FEATURE_SEP);
    case MSR_MCG_CAP:
    case MSR_MCG_STATUS:
        return cpu_model_has(m, CPU_FEATURE_MCA);
    case MSR_PAT:
        return cpu_model_has(m, CPU_FEATURE_PAT);
    case MSR_XSS:
        return cpu_model_has(m, CPU_FEATURE_XSAVES);
    case MSR_STAR:
        return cpu_model_has(m, CPU_FEATURE_SYSCALL);
    case MSR_EFER:
        return cpu_model_has(m, CPU_FEATURE_NX) || cpu_model_has(m, CPU_FEATURE_LM);
    case MSR_LSTAR:
    case MSR_CSTAR:
    case MSR_SFMASK:
    case MSR_FS_BASE:
    case MSR_GS_BASE:
    case MSR_KERNEL_GS_BASE:
        return cpu_model_has(m, CPU_FEATURE_LM);
    case MSR_TSC_AUX:
        return cpu_model_has(m, CPU_FEATURE_RDTSCP) || cpu_model_has(m, CPU_FEATURE_RDPID);
    default:
        return true;
    }
}

/* Bits of SPEC_CTRL that CPUID offers; none: the register does not exist. */
static uint64_t spec_ctrl_defined(const struct soft_vcpu *v)
{
    const struct cpu_model *m = v->model;
    uint64_t bits_defined = 0;

    if (cpu_model_has(m, CPU_FEATURE_SPEC_CTRL) || cpu_model_has(m, CPU_FEATURE_IBRS))
        bits_defined |= BIT(0);
    if (cpu_model_has(m, CPU_FEATURE_INTEL_STIBP) || cpu_model_has(m, CPU_FEATURE_STIBP))
        bits_defined |= BIT(1);
    if (cpu_model_has(m, CPU_FEATURE_SSBD) || cpu_model_has(m, CPU_FEATURE_AMD_SSBD))
        bits_defined |= BIT(2);
    return bits_defined;
}

static bool has_ibpb(const struct soft_vcpu *v)
{
    return cpu_model_has(v->model, CPU_FEATURE_SPEC_CTRL) ||
           cpu_model_has(v->model, CPU_FEATURE_IBPB);
}

static bool read_state(struct soft_vcpu *v, uint32_t index, uint64_t *value)
{
    const struct cpu_state *st = &v->st;

    if (!msr_is_offered(v, index))
        return false;
    switch (index) {
    case MSR_TSC:
        *value = tsc_read() + st->tsc_offset;
        return true;
    case MSR_TSC_ADJUST:
        *value = st->tsc_adjust;
        return true;
    case MSR_SPEC_CTRL:
        *value = st->spec_ctrl;
        return spec_ctrl_defined(v) != 0;
    case MSR_DEBUGCTL:
        *value = st->debugctl;
        return true;
    case MSR_SYSENTER_CS:
        *value = st->sysenter_cs;
        return true;
    case MSR_SYSENTER_ESP:
        *value = st->sysenter_esp;
        return true;
    case MSR_SYSENTER_EIP:
        *value = st->sysenter_eip;
        return true;
    case MSR_PAT:
        *value = st->pat;
        return true;
    case MSR_EFER:
        *value = st->efer;
        return true;
    case MSR_STAR:
        *value = st->star;
        return true;
    case MSR_LSTAR:
        *value = st->lstar;
        return true;
    case MSR_CSTAR:
        *value = st->cstar;
        return true;
    case MSR_SFMASK:
        *value = st->sfmask;
        return true;
    case MSR_FS_BASE:
        *value = st->seg[CPU_FS].base;
        return true;
    case MSR_GS_BASE:
        *value = st->seg[CPU_GS].base;
        return true;
    case MSR_KERNEL_GS_BASE:
        *value = st->kernel_gs_base;
        return true;
    case MSR_TSC_AUX:
        *value = st->tsc_aux;
        return true;
    default:
        return false;
    }
}

/* Registers that read as a constant on both vendors' processors. */
static bool read_common(struct soft_vcpu *v, uint32_t index, uint64_t *value)
{
    *value = 0;
    if (!msr_is_offered(v, index))
        return false;
    switch (index) {
    case MSR_P5_MC_ADDR:
    case MSR_P5_MC_TYPE:
    case MSR_MCG_CAP: /* no banks */
    case MSR_MCG_STATUS:
    case MSR_LAST_BRANCH_FROM ... MSR_LAST_INT_TO:
    case MSR_XSS:
        return true;
    case MSR_ARCH_CAPABILITIES:
        *value = v->model->arch_capabilities;
        return true;
    default:
        return false;
    }
}

static bool read_intel(struct soft_vcpu *v, uint32_t index, uint64_t *value)
{
    *value = 0;
    switch (index) {
    case MSR_PLATFORM_ID:
    case MSR_EBL_CR_POWERON:
    case MSR_EBC_FREQUENCY_ID:
    case MSR_SMI_COUNT:
    case MSR_PERFCTR0:
    case MSR_PERFCTR1:
    case MSR_PLATFORM_INFO:
    case MSR_EVNTSEL0:
    case MSR_EVNTSEL1:
        return true;
    case MSR_FEATURE_CONTROL:
        *value = BIT(0); /* locked, nothing enabled */
        return true;
    case MSR_BIOS_SIGN_ID:
        *value = BIT(32); /* microcode revision 1 */
        return true;
    case MSR_FSB_FREQ:
        *value = 3;
        return true;
    case MSR_BBL_CR_CTL3:
        *value = 0xbe702111; /* L2 cache present and enabled */
        return true;
    case MSR_PERF_STATUS:
        *value = 1000 | BIT(42);
        return true;
    case MSR_MISC_ENABLE:
        *value = v->st.misc_enable;
        return true;
    default:
        return false;
    }
}

static bool read_amd(struct soft_vcpu *v, uint32_t index, uint64_t *value)
{
    *value = 0;
    switch (index) {
    case MSR_K7_EVNTSEL0 ... MSR_K7_PERFCTR3:
    case MSR_SYSCFG:
    case MSR_TOP_MEM:
    case MSR_TOP_MEM2:
    case MSR_NB_CFG:
    case MSR_INT_PENDING:
    case MSR_MMIO_CONF_BASE:
    case MSR_SMM_ADDR:
    case MSR_SMM_MASK:
    case MSR_F15H_PERF_FIRST ... MSR_F15H_PERF_LAST:
    case MSR_LS_CFG ... MSR_DE_CFG - 1:
    case MSR_BU_CFG2:
        return true;
    case MSR_BIOS_SIGN_ID:
        *value = 0x01000065; /* microcode patch level */
        return true;
    case MSR_HWCR:
        *value = HWCR_TSC_FREQ_SEL;
        return true;
    case MSR_VM_CR:
        *value = VM_CR_LOCK | VM_CR_SVMDIS;
        return true;
    case MSR_OSVW_ID_LENGTH:
    case MSR_OSVW_STATUS:
        return cpu_model_has(v->model, CPU_FEATURE_OSVW);
    case MSR_DE_CFG:
        *value = DE_CFG_LFENCE_SERIALIZE;
        return true;
    default:
        return false;
    }
}

bool soft_msr_read(struct soft_vcpu *v, uint32_t index, uint64_t *value)
{
    bool is_mine, is_ok;

    if (msr_is_host(index))
        return soft_host_msr_read(v, index, value);
    is_ok = soft_mtrr_read(v, index, value, &is_mine);
    if (is_mine)
        return is_ok;
    return read_state(v, index, value) || read_common(v, index, value) ||
           (soft_is_amd(v) ? read_amd(v, index, value) : read_intel(v, index, value));
}

static bool write_efer(struct soft_vcpu *v, uint64_t value)
{
    const struct cpu_model *m = v->model;
    struct cpu_state *st = &v->st;
    uint64_t defined = EFER_LMA;

    if (cpu_model_has(m, CPU_FEATURE_SYSCALL))
        defined |= EFER_SCE;
    if (cpu_model_has(m, CPU_FEATURE_LM))
        defined |= EFER_LME;
    if (cpu_model_has(m, CPU_FEATURE_NX))
        defined |= EFER_NXE;
    if (cpu_model_has(m, CPU_FEATURE_FXSR_OPT))
        defined |= EFER_FFXSR;
    if (value & ~defined)
        return false;
    if (((value ^ st->efer) & EFER_LME) && (st->cr0 & CR0_PG))
        return false;
    /* LMA only reads: on AMD another value faults (APM vol. 2, 3.1.7), on Intel it is ignored */
    if (((value ^ st->efer) & EFER_LMA) && soft_is_amd(v))
        return false;
    value = (value & ~EFER_LMA) | (st->efer & EFER_LMA);
    if ((value ^ st->efer) & EFER_NXE)
        soft_tlb_flush_all(v);
    st->efer = value;
    v->is_mode_stale = 1;
    return true;
}

/* Memory types 0, 1, 4 to 7 in each byte (SDM vol. 3, table 11-10). */
static bool pat_is_valid(uint64_t value)
{
    for (unsigned i = 0; i < 8; i++) {
        unsigned type = (unsigned)(value >> (8 * i)) & 0xff;
        if (type > 7 || type == 2 || type == 3)
            return false;
    }
    return true;
}

static void write_tsc_adjust(struct soft_vcpu *v, uint64_t value)
{
    v->st.tsc_offset += value - v->st.tsc_adjust;
    v->st.tsc_adjust = value;
    soft_host_tsc_changed(v);
}

static bool write_canonical(const struct soft_vcpu *v, uint64_t *field, uint64_t value)
{
    if (!soft_is_canonical_max(v, value))
        return false;
    *field = value;
    return true;
}

static bool write_base(struct soft_vcpu *v, unsigned seg, uint64_t value)
{
    v->is_mode_stale = 1;
    return write_canonical(v, &v->st.seg[seg].base, value);
}

/* *is_mine: the register is one of these; the result then says whether the value was taken. */
static bool write_state(struct soft_vcpu *v, uint32_t index, uint64_t value, bool *is_mine)
{
    struct cpu_state *st = &v->st;

    *is_mine = msr_is_offered(v, index);
    if (!*is_mine)
        return false;
    switch (index) {
    case MSR_TSC:
        write_tsc_adjust(v, st->tsc_adjust + (value - (tsc_read() + st->tsc_offset)));
        return true;
    case MSR_TSC_ADJUST:
        write_tsc_adjust(v, value);
        return true;
    case MSR_SPEC_CTRL:
        if ((value & ~spec_ctrl_defined(v)) || spec_ctrl_defined(v) == 0)
            return false;
        st->spec_ctrl = value;
        return true;
    case MSR_PRED_CMD:
        return has_ibpb(v) && (value & ~UINT64_C(1)) == 0;
    case MSR_FLUSH_CMD:
        return cpu_model_has(v->model, CPU_FEATURE_FLUSH_L1D) && (value & ~UINT64_C(1)) == 0;
    case MSR_DEBUGCTL:
        if (value & ~(DEBUGCTL_LBR | DEBUGCTL_BTF))
            return false;
        st->debugctl = value;
        return true;
    case MSR_SYSENTER_CS:
        st->sysenter_cs = (uint32_t)value;
        return true;
    case MSR_SYSENTER_ESP:
        return write_canonical(v, &st->sysenter_esp, value);
    case MSR_SYSENTER_EIP:
        return write_canonical(v, &st->sysenter_eip, value);
    case MSR_PAT:
        if (!pat_is_valid(value))
            return false;
        st->pat = value;
        return true;
    case MSR_EFER:
        return write_efer(v, value);
    case MSR_STAR:
        st->star = value;
        return true;
    case MSR_LSTAR:
        return write_canonical(v, &st->lstar, value);
    case MSR_CSTAR:
        return write_canonical(v, &st->cstar, value);
    case MSR_SFMASK:
        st->sfmask = (uint32_t)value;
        return true;
    case MSR_FS_BASE:
        return write_base(v, CPU_FS, value);
    case MSR_GS_BASE:
        return write_base(v, CPU_GS, value);
    case MSR_KERNEL_GS_BASE:
        return write_canonical(v, &st->kernel_gs_base, value);
    case MSR_TSC_AUX:
        if (value >> 32 != 0)
            return false;
        st->tsc_aux = value;
        return true;
    default:
        *is_mine = false;
        return false;
    }
}

static bool write_common(struct soft_vcpu *v, uint32_t index, uint64_t value)
{
    if (!msr_is_offered(v, index))
        return false;
    switch (index) {
    case MSR_P5_MC_ADDR:
    case MSR_P5_MC_TYPE:
    case MSR_MCG_STATUS:
    case MSR_XSS: /* no supervisor state component is offered */
        return value == 0;
    case MSR_UCODE_WRITE:
        return true; /* the revision stays, which is how a refusal looks */
    default:
        return false;
    }
}

static bool write_intel(struct soft_vcpu *v, uint32_t index, uint64_t value)
{
    switch (index) {
    case MSR_BIOS_SIGN_ID: /* 0, before CPUID, to read the revision */
    case MSR_EBL_CR_POWERON:
    case MSR_PLATFORM_INFO:
        return true;
    case MSR_PERFCTR0:
    case MSR_PERFCTR1:
    case MSR_EVNTSEL0:
    case MSR_EVNTSEL1:
        return value == 0;
    case MSR_MISC_ENABLE:
        v->st.misc_enable =
            (value & ~MISC_ENABLE_READ_ONLY) | (v->st.misc_enable & MISC_ENABLE_READ_ONLY);
        return true;
    default:
        return false;
    }
}

static bool write_amd(struct soft_vcpu *v, uint32_t index, uint64_t value)
{
    switch (index) {
    case MSR_K7_EVNTSEL0 ... MSR_K7_PERFCTR3:
    case MSR_SYSCFG:
    case MSR_HWCR:
    case MSR_NB_CFG:
    case MSR_PATCH_LOADER:
    case MSR_INT_PENDING:
    case MSR_MMIO_CONF_BASE:
    case MSR_VM_CR:
    case MSR_F15H_PERF_FIRST ... MSR_F15H_PERF_LAST:
    case MSR_LS_CFG ... MSR_BU_CFG2:
        return true; /* taken and without effect */
    default:
        return false;
    }
}

bool soft_msr_write(struct soft_vcpu *v, uint32_t index, uint64_t value)
{
    bool is_mine, is_ok;

    if (msr_is_host(index))
        return soft_host_msr_write(v, index, value);
    is_ok = soft_mtrr_write(v, index, value, &is_mine);
    if (is_mine)
        return is_ok;
    is_ok = write_state(v, index, value, &is_mine);
    if (is_mine)
        return is_ok;
    return write_common(v, index, value) ||
           (soft_is_amd(v) ? write_amd(v, index, value) : write_intel(v, index, value));
}

static int op_rdmsr(struct soft_vcpu *v, const struct insn *in)
{
    uint32_t index = (uint32_t)v->st.gpr[CPU_RCX];
    uint64_t value = 0;

    if (soft_require_cpl0(v))
        return SOFT_FAULT;
    if (!soft_msr_read(v, index, &value)) {
        soft_host_log(v, "guest read unknown MSR 0x%" PRIx64 " at 0x%" PRIx64, index, v->st.rip);
        return soft_raise_error(v, VEC_GP, 0);
    }
    v->st.gpr[CPU_RAX] = (uint32_t)value;
    v->st.gpr[CPU_RDX] = value >> 32;
    return 0;
}

static int op_wrmsr(struct soft_vcpu *v, const struct insn *in)
{
    uint32_t index = (uint32_t)v->st.gpr[CPU_RCX];
    uint64_t value = (uint32_t)v->st.gpr[CPU_RAX] | v->st.gpr[CPU_RDX] << 32;

    if (soft_require_cpl0(v))
        return SOFT_FAULT;
    if (!soft_msr_write(v, index, value)) {
        soft_host_log(v, "guest wrote MSR 0x%" PRIx64 ", refused: 0x%" PRIx64, index, value);
        return soft_raise_error(v, VEC_GP, 0);
    }
    return 0;
}

const struct soft_op soft_ops_msr[] = {
    {ZYDIS_MNEMONIC_RDMSR, op_rdmsr},
    {ZYDIS_MNEMONIC_WRMSR, op_wrmsr},
    {0, NULL},
};
