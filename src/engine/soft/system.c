/*
 * system.c - interrupt flag, HLT, CPUID, time-stamp counter, TLB and cache control, hypercalls,
 * (the tables of other system instructions are in their files)
 *
 * Specification: SDM vol. 2 at each instruction; vol. 3, 21.3 and 21.4 (VME and PVI).
 */
#include <Zydis/Zydis.h>

#include "cpu/msr.h"
#include "engine/soft/mmu.h"
#include "engine/soft/system.h"
#include "os/tsc.h"

/* May the current privilege change IF (true), or only VIF; SOFT_FAULT when neither. */
static int interrupt_flag_check(struct soft_vcpu *v, bool *is_virtual)
{
    const struct cpu_state *st = &v->st;
    unsigned iopl = (unsigned)(st->rflags & RFLAGS_IOPL) >> RFLAGS_IOPL_SHIFT;

    *is_virtual = false;
    if (cpu_is_real(st) || cpu_cpl(st) <= iopl)
        return 0;
    *is_virtual = true;
    if (cpu_is_v86(st) ? st->cr4 & CR4_VME : (st->cr4 & CR4_PVI) && cpu_cpl(st) == 3)
        return 0;
    return soft_raise_error(v, VEC_GP, 0);
}

static int op_cli(struct soft_vcpu *v, const struct insn *in)
{
    bool is_virtual;

    if (interrupt_flag_check(v, &is_virtual))
        return SOFT_FAULT;
    v->st.rflags &= is_virtual ? ~RFLAGS_VIF : ~RFLAGS_IF;
    return 0;
}

static int op_sti(struct soft_vcpu *v, const struct insn *in)
{
    struct cpu_state *st = &v->st;
    bool is_virtual;

    if (interrupt_flag_check(v, &is_virtual))
        return SOFT_FAULT;
    if (is_virtual) {
        if (st->rflags & RFLAGS_VIP)
            return soft_raise_error(v, VEC_GP, 0);
        st->rflags |= RFLAGS_VIF;
        return 0;
    }
    /* one instruction more without interrupts, when they were off (SDM vol. 2, STI) */
    if (!(st->rflags & RFLAGS_IF))
        st->shadow |= SHADOW_STI;
    st->rflags |= RFLAGS_IF;
    return 0;
}

static int op_hlt(struct soft_vcpu *v, const struct insn *in)
{
    if (soft_require_cpl0(v))
        return SOFT_FAULT;
    v->st.run_state = CPU_HALTED;
    v->stats.halts++;
    return 0;
}

#define APIC_BASE_EN BIT(11)
#define CPUID_1_EDX_APIC (1u << 9)

static int op_cpuid(struct soft_vcpu *v, const struct insn *in)
{
    struct cpu_state *st = &v->st;
    struct cpuid_regs regs = cpu_model_cpuid(v->model, st, v->index, (uint32_t)st->gpr[CPU_RAX],
                                             (uint32_t)st->gpr[CPU_RCX]);
    uint64_t apic_base;

    /* the APIC feature flag follows IA32_APIC_BASE.EN (SDM vol. 3, "Enabling or Disabling") */
    if ((uint32_t)st->gpr[CPU_RAX] == 1 && soft_host_msr_read(v, MSR_APIC_BASE, &apic_base) &&
        !(apic_base & APIC_BASE_EN))
        regs.edx &= ~CPUID_1_EDX_APIC;
    st->gpr[CPU_RAX] = regs.eax;
    st->gpr[CPU_RBX] = regs.ebx;
    st->gpr[CPU_RCX] = regs.ecx;
    st->gpr[CPU_RDX] = regs.edx;
    return 0;
}

static int tsc_check(struct soft_vcpu *v)
{
    if ((v->st.cr4 & CR4_TSD) && cpu_cpl(&v->st) != 0)
        return soft_raise_error(v, VEC_GP, 0);
    return 0;
}

static int op_rdtsc(struct soft_vcpu *v, const struct insn *in)
{
    uint64_t tsc;

    if (tsc_check(v))
        return SOFT_FAULT;
    tsc = tsc_read() + v->st.tsc_offset;
    v->st.gpr[CPU_RAX] = (uint32_t)tsc;
    v->st.gpr[CPU_RDX] = tsc >> 32;
    return 0;
}

static int op_rdtscp(struct soft_vcpu *v, const struct insn *in)
{
    if (op_rdtsc(v, in))
        return SOFT_FAULT;
    v->st.gpr[CPU_RCX] = (uint32_t)v->st.tsc_aux;
    return 0;
}

static int op_rdpid(struct soft_vcpu *v, const struct insn *in)
{
    return soft_write_rm(v, in, in->mode == 8 ? 8 : 4, (uint32_t)v->st.tsc_aux);
}

/* No performance counters: every index is out of range. */
static int op_rdpmc(struct soft_vcpu *v, const struct insn *in)
{
    return soft_raise_error(v, VEC_GP, 0);
}

/* The address is not checked against the segment, nor for being mapped (SDM vol. 2, INVLPG). */
static int op_invlpg(struct soft_vcpu *v, const struct insn *in)
{
    const struct cpu_state *st = &v->st;
    gva_t addr = soft_effective_address(v, in);

    if (soft_require_cpl0(v))
        return SOFT_FAULT;
    if (!cpu_is_64bit(st))
        addr = (uint32_t)(addr + st->seg[in->seg].base);
    else if (in->seg == CPU_FS || in->seg == CPU_GS)
        addr += st->seg[in->seg].base;
    if (soft_is_canonical(v, addr))
        soft_tlb_flush_page(v, addr);
    return 0;
}

static int op_invpcid(struct soft_vcpu *v, const struct insn *in)
{
    unsigned rex = in->has_rex ? in->bytes[in->rex_off] : 0;
    uint64_t type = v->st.gpr[(in->modrm >> 3 & 7) | (rex & 4) << 1];
    uint64_t pcid, addr;
    gva_t descriptor;

    if (soft_require_cpl0(v))
        return SOFT_FAULT;
    if (in->mode != 8)
        type = (uint32_t)type;
    if (soft_operand_address(v, in, 16, SOFT_READ, &descriptor) ||
        soft_load(v, descriptor, 8, SOFT_AS_CPL, &pcid) ||
        soft_load(v, descriptor + 8, 8, SOFT_AS_CPL, &addr))
        return SOFT_FAULT;
    if (type > 3 || pcid > 0xfff)
        return soft_raise_error(v, VEC_GP, 0);
    if (type < 2 && pcid != 0 && !(v->st.cr4 & CR4_PCIDE))
        return soft_raise_error(v, VEC_GP, 0);
    if (type == 0 && !soft_is_canonical(v, addr))
        return soft_raise_error(v, VEC_GP, 0);
    switch (type) {
    case 0:
        soft_tlb_flush_page_pcid(v, (unsigned)pcid, addr);
        break;
    case 1:
        soft_tlb_flush_pcid(v, (unsigned)pcid);
        break;
    case 2:
        soft_tlb_flush_all(v);
        break;
    default:
        soft_tlb_flush_pcids(v);
        break;
    }
    return 0;
}

/* Memory is always coherent here: nothing to write back or invalidate. */
static int op_cache_control(struct soft_vcpu *v, const struct insn *in)
{
    return soft_require_cpl0(v);
}

static int op_stac_clac(struct soft_vcpu *v, const struct insn *in)
{
    if (cpu_cpl(&v->st) != 0)
        return soft_raise(v, VEC_UD);
    if (in->op == ZYDIS_MNEMONIC_STAC)
        v->st.rflags |= RFLAGS_AC;
    else
        v->st.rflags &= ~RFLAGS_AC;
    v->is_mode_stale = 1;
    return 0;
}

/* The monitored address must be readable; no extension or hint is defined (ECX). */
static int op_monitor(struct soft_vcpu *v, const struct insn *in)
{
    const struct cpu_state *st = &v->st;
    uint64_t offset = st->gpr[CPU_RAX] & mask_bytes(in->addr_size);
    uint64_t value;
    gva_t addr;

    if (cpu_cpl(st) != 0)
        return soft_raise(v, VEC_UD);
    if ((uint32_t)st->gpr[CPU_RCX] != 0)
        return soft_raise_error(v, VEC_GP, 0);
    if (soft_linear(v, in->has_seg_override ? in->seg : CPU_DS, offset, 1, SOFT_READ, &addr))
        return SOFT_FAULT;
    return soft_load(v, addr, 1, SOFT_AS_CPL, &value);
}

/* A processor may leave MWAIT at any time (SDM vol. 2, MWAIT): at once, here. */
static int op_mwait(struct soft_vcpu *v, const struct insn *in)
{
    if (cpu_cpl(&v->st) != 0)
        return soft_raise(v, VEC_UD);
    if ((uint32_t)v->st.gpr[CPU_RCX] > 1)
        return soft_raise_error(v, VEC_GP, 0);
    return 0;
}

/*
 * KVM's leaves are offered, so its hypercalls exist, by either vendor's instruction; user programs
 * may not make any (Linux Documentation/virt/kvm/x86/hypercalls.rst).
 */
static int op_hypercall(struct soft_vcpu *v, const struct insn *in)
{
    struct cpu_state *st = &v->st;
    bool is_64bit = cpu_is_64bit(st);
    uint64_t mask = is_64bit ? UINT64_MAX : UINT32_MAX;
    const struct cpu_hypercall call = {
        .number = st->gpr[CPU_RAX] & mask,
        .arg = {st->gpr[CPU_RBX] & mask, st->gpr[CPU_RCX] & mask, st->gpr[CPU_RDX] & mask,
                st->gpr[CPU_RSI] & mask},
        .is_64bit = is_64bit,
    };
    int64_t result = cpu_cpl(st) == 0 ? soft_host_hypercall(v, &call) : -HYPERCALL_EPERM;

    st->gpr[CPU_RAX] = (uint64_t)result & mask;
    return 0;
}

const struct soft_op soft_ops_system[] = {
    {ZYDIS_MNEMONIC_CLI, op_cli},
    {ZYDIS_MNEMONIC_STI, op_sti},
    {ZYDIS_MNEMONIC_HLT, op_hlt},
    {ZYDIS_MNEMONIC_CPUID, op_cpuid},
    {ZYDIS_MNEMONIC_RDTSC, op_rdtsc},
    {ZYDIS_MNEMONIC_RDTSCP, op_rdtscp},
    {ZYDIS_MNEMONIC_RDPID, op_rdpid},
    {ZYDIS_MNEMONIC_RDPMC, op_rdpmc},
    {ZYDIS_MNEMONIC_INVLPG, op_invlpg},
    {ZYDIS_MNEMONIC_INVPCID, op_invpcid},
    {ZYDIS_MNEMONIC_INVD, op_cache_control},
    {ZYDIS_MNEMONIC_WBINVD, op_cache_control},
    {ZYDIS_MNEMONIC_STAC, op_stac_clac},
    {ZYDIS_MNEMONIC_CLAC, op_stac_clac},
    {ZYDIS_MNEMONIC_MONITOR, op_monitor},
    {ZYDIS_MNEMONIC_MWAIT, op_mwait},
    {ZYDIS_MNEMONIC_VMCALL, op_hypercall},
    {ZYDIS_MNEMONIC_VMMCALL, op_hypercall},
    {0, NULL},
};
