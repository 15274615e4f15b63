/*
 * state.c - a processor's state after RESET, INIT and SIPI
 *
 * Spec: Intel SDM vol. 3, table 9-1 (reset and INIT), 8.4 (SIPI).
 */
#include "cpu/state.h"

static void set_data_segments(struct cpu_state *st)
{
    for (unsigned i = 0; i < CPU_SEG_COUNT; i++)
        st->seg[i] = (struct cpu_seg){.attr = SEG_P | SEG_S | SEG_TYPE_WRITE_READ | SEG_TYPE_ACCESSED,
                                      .limit = 0xffff};
    st->seg[CPU_LDTR].attr = SEG_P | 2;
    st->seg[CPU_TR].attr = SEG_P | 11;
}

static void set_common(struct cpu_state *st, uint32_t cpuid_1_eax)
{
    for (unsigned i = 0; i < CPU_GPR_COUNT; i++)
        st->gpr[i] = 0;
    st->gpr[CPU_RDX] = cpuid_1_eax;
    st->rip = 0xfff0;
    st->rflags = RFLAGS_FIXED;
    set_data_segments(st);
    st->seg[CPU_CS] = (struct cpu_seg){.selector = 0xf000,
                                       .attr = SEG_P | SEG_S | SEG_TYPE_CODE | SEG_TYPE_WRITE_READ |
                                               SEG_TYPE_ACCESSED,
                                       .limit = 0xffff,
                                       .base = 0xffff0000};
    st->gdtr = st->idtr = (struct cpu_table){.limit = 0xffff};
    st->cr2 = st->cr3 = st->cr4 = 0;
    for (unsigned i = 0; i < 4; i++)
        st->dr[i] = st->pae_pdpte[i] = 0;
    st->dr6 = DR6_FIXED;
    st->dr7 = DR7_FIXED;
    st->efer = 0;
    st->run_state = CPU_RUNNING;
    st->shadow = st->is_nmi_blocked = st->is_exception_pending = 0;
    st->pending_dbg = 0;
}

void cpu_state_reset(struct cpu_state *st, uint32_t cpuid_1_eax)
{
    __builtin_memset(st, 0, sizeof(*st));
    set_common(st, cpuid_1_eax);
    st->cr0 = CR0_CD | CR0_NW | CR0_ET;
    st->xcr0 = XCR0_X87;
    st->pat = UINT64_C(0x0007040600070406);
    st->misc_enable = 1;
    store_le16(st->xsave, 0x40);
    store_le16(st->xsave + 4, 0xff);
    store_le32(st->xsave + 24, 0x1f80);
    store_le64(st->xsave + 512, XCR0_X87 | XCR0_SSE);
}

void cpu_state_init(struct cpu_state *st, uint32_t cpuid_1_eax)
{
    uint64_t kept = st->cr0 & (CR0_CD | CR0_NW);
    set_common(st, cpuid_1_eax);
    st->cr0 = kept | CR0_ET;
}

void cpu_state_sipi(struct cpu_state *st, uint8_t vector)
{
    st->seg[CPU_CS].selector = (uint16_t)(vector << 8);
    st->seg[CPU_CS].base = (uint64_t)vector << 12;
    st->rip = 0;
    st->run_state = CPU_RUNNING;
}
