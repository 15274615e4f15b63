/*
 * mtrr.c - memory-type range registers
 *
 * They are kept and read back but have no effect: guest memory is write-back memory of the
 * host. What a write must not contain is checked as the manual says.
 *
 * Specification: SDM vol. 3, 11.11.
 */
#include "engine/soft/system.h"

#define MSR_MTRRCAP 0xfe
#define MSR_MTRR_VARIABLE_FIRST 0x200
#define MSR_MTRR_FIX64K 0x250
#define MSR_MTRR_FIX16K_FIRST 0x258
#define MSR_MTRR_FIX4K_FIRST 0x268
#define MSR_MTRR_FIX4K_LAST 0x26f
#define MSR_MTRR_DEF_TYPE 0x2ff

#define MTRRCAP_FIXED BIT(8)
#define MTRRCAP_WRITE_COMBINING BIT(10)
#define MTRR_MASK_VALID BIT(11)
#define MTRR_DEF_TYPE_ENABLES (BIT(10) | BIT(11))

/* The register that `index` names; NULL: none of the read-write ones. */
static uint64_t *mtrr_find(struct cpu_state *st, uint32_t index)
{
    uint32_t n = index - MSR_MTRR_VARIABLE_FIRST;

    if (n < 2 * CPU_MTRR_VARIABLE_COUNT)
        return n & 1 ? &st->mtrr_mask[n / 2] : &st->mtrr_base[n / 2];
    if (index == MSR_MTRR_FIX64K)
        return &st->mtrr_fixed[0];
    if (index - MSR_MTRR_FIX16K_FIRST < 2)
        return &st->mtrr_fixed[1 + index - MSR_MTRR_FIX16K_FIRST];
    if (index - MSR_MTRR_FIX4K_FIRST <= MSR_MTRR_FIX4K_LAST - MSR_MTRR_FIX4K_FIRST)
        return &st->mtrr_fixed[3 + index - MSR_MTRR_FIX4K_FIRST];
    return index == MSR_MTRR_DEF_TYPE ? &st->mtrr_def_type : NULL;
}

/* UC, WC, WT, WP and WB. */
static bool type_is_valid(uint64_t type)
{
    return type == 0 || type == 1 || (type >= 4 && type <= 6);
}

static bool value_is_valid(const struct soft_vcpu *v, uint32_t index, uint64_t value)
{
    uint64_t above = ~((UINT64_C(1) << v->model->phys_bits) - 1);

    if (index == MSR_MTRR_DEF_TYPE)
        return (value & ~(MTRR_DEF_TYPE_ENABLES | 0xff)) == 0 && type_is_valid(value & 0xff);
    if (index >= MSR_MTRR_FIX64K) {
        for (unsigned i = 0; i < 64; i += 8)
            if (!type_is_valid(value >> i & 0xff))
                return false;
        return true;
    }
    if (index & 1)
        return (value & (above | (0xfff & ~MTRR_MASK_VALID))) == 0;
    return (value & (above | 0xf00)) == 0 && type_is_valid(value & 0xff);
}

bool soft_mtrr_read(struct soft_vcpu *v, uint32_t index, uint64_t *value, bool *is_mine)
{
    const uint64_t *reg = mtrr_find(&v->st, index);

    *is_mine = reg != NULL || index == MSR_MTRRCAP;
    if (!*is_mine || !cpu_model_has(v->model, CPU_FEATURE_MTRR))
        return false;
    *value = reg != NULL ? *reg : CPU_MTRR_VARIABLE_COUNT | MTRRCAP_FIXED | MTRRCAP_WRITE_COMBINING;
    return true;
}

bool soft_mtrr_write(struct soft_vcpu *v, uint32_t index, uint64_t value, bool *is_mine)
{
    uint64_t *reg = mtrr_find(&v->st, index);

    *is_mine = reg != NULL || index == MSR_MTRRCAP;
    if (reg == NULL || !cpu_model_has(v->model, CPU_FEATURE_MTRR) ||
        !value_is_valid(v, index, value))
        return false;
    *reg = value;
    return true;
}
