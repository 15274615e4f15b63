/*
 * msr.h - numbers of model-specific registers
 *
 * Those of the MTRRs are in engine/soft/mtrr.c, those that devices keep in the devices' headers.
 * Specification: SDM vol. 4; AMD64 APM vol. 2, appendix A; Linux,
 * Documentation/virt/kvm/x86/msr.rst.
 */
#ifndef DOPPEL_CPU_MSR_H
#define DOPPEL_CPU_MSR_H

#define MSR_P5_MC_ADDR 0x0
#define MSR_P5_MC_TYPE 0x1
#define MSR_TSC 0x10
#define MSR_KVM_WALL_CLOCK_OLD 0x11
#define MSR_KVM_SYSTEM_TIME_OLD 0x12
#define MSR_PLATFORM_ID 0x17
#define MSR_APIC_BASE 0x1b
#define MSR_EBL_CR_POWERON 0x2a
#define MSR_EBC_FREQUENCY_ID 0x2c
#define MSR_SMI_COUNT 0x34
#define MSR_FEATURE_CONTROL 0x3a
#define MSR_TSC_ADJUST 0x3b
#define MSR_SPEC_CTRL 0x48
#define MSR_PRED_CMD 0x49
#define MSR_UCODE_WRITE 0x79
#define MSR_BIOS_SIGN_ID 0x8b
#define MSR_PERFCTR0 0xc1
#define MSR_PERFCTR1 0xc2
#define MSR_FSB_FREQ 0xcd
#define MSR_PLATFORM_INFO 0xce
#define MSR_ARCH_CAPABILITIES 0x10a
#define MSR_FLUSH_CMD 0x10b
#define MSR_BBL_CR_CTL3 0x11e
#define MSR_SYSENTER_CS 0x174
#define MSR_SYSENTER_ESP 0x175
#define MSR_SYSENTER_EIP 0x176
#define MSR_MCG_CAP 0x179
#define MSR_MCG_STATUS 0x17a
#define MSR_EVNTSEL0 0x186
#define MSR_EVNTSEL1 0x187
#define MSR_PERF_STATUS 0x198
#define MSR_MISC_ENABLE 0x1a0
#define MSR_DEBUGCTL 0x1d9
#define MSR_LAST_BRANCH_FROM 0x1db
#define MSR_LAST_INT_TO 0x1de
#define MSR_PAT 0x277
#define MSR_TSC_DEADLINE 0x6e0
#define MSR_X2APIC_FIRST 0x800
#define MSR_X2APIC_LAST 0x8ff
#define MSR_XSS 0xda0
#define MSR_KVM_FIRST 0x4b564d00
#define MSR_KVM_STEAL_TIME 0x4b564d03
#define MSR_KVM_PV_EOI 0x4b564d04
#define MSR_KVM_POLL_CONTROL 0x4b564d05
#define MSR_KVM_LAST 0x4b564dff
#define MSR_EFER 0xc0000080
#define MSR_STAR 0xc0000081
#define MSR_LSTAR 0xc0000082
#define MSR_CSTAR 0xc0000083
#define MSR_SFMASK 0xc0000084
#define MSR_FS_BASE 0xc0000100
#define MSR_GS_BASE 0xc0000101
#define MSR_KERNEL_GS_BASE 0xc0000102
#define MSR_TSC_AUX 0xc0000103
#define MSR_K7_EVNTSEL0 0xc0010000
#define MSR_K7_PERFCTR3 0xc0010007
#define MSR_SYSCFG 0xc0010010
#define MSR_HWCR 0xc0010015
#define MSR_TOP_MEM 0xc001001a
#define MSR_TOP_MEM2 0xc001001d
#define MSR_NB_CFG 0xc001001f
#define MSR_PATCH_LOADER 0xc0010020
#define MSR_INT_PENDING 0xc0010055
#define MSR_MMIO_CONF_BASE 0xc0010058
#define MSR_SMM_ADDR 0xc0010112
#define MSR_SMM_MASK 0xc0010113
#define MSR_VM_CR 0xc0010114
#define MSR_OSVW_ID_LENGTH 0xc0010140
#define MSR_OSVW_STATUS 0xc0010141
#define MSR_F15H_PERF_FIRST 0xc0010200
#define MSR_F15H_PERF_LAST 0xc001020b
#define MSR_LS_CFG 0xc0011020
#define MSR_DE_CFG 0xc0011029
#define MSR_BU_CFG2 0xc001102a

#endif
