/*
 * exec.c - from CS:rIP to an executed instruction
 *
 * Decoded instructions are cached by linear address and checked against the bytes in memory at
 * every use, so that nothing ever has to be invalidated.
 * Spec: Intel SDM vol. 3, 5.3 (CS limit), 6.15 (#UD, #GP of over-long instructions).
 */
#include "engine/soft/exec.h"
#include "engine/soft/fpu_state.h"
#include "engine/soft/mmu.h"
#include "engine/soft/vcpu.h"

static struct soft_insn_slot *slot_of(struct soft_vcpu *v, gva_t addr)
{
    return &v->insn_cache->slots[(addr ^ addr >> 13) & v->insn_cache->mask];
}

static bool bytes_equal(const uint8_t *a, const uint8_t *b, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        if (a[i] != b[i])
            return false;
    return true;
}

/* Copy what is there of [addr, addr + n) within its page; faults as a fetch does. */
static int fetch_piece(struct soft_vcpu *v, gva_t addr, uint8_t *buf, unsigned n)
{
    struct soft_place place;
    int r = soft_translate(v, addr, SOFT_FETCH, SOFT_AS_CPL, &place);

    if (r != 0)
        return r;
    if (place.host != NULL) {
        soft_copy(buf, place.host, n);
        return 0;
    }
    for (unsigned i = 0; i < n; i++)
        buf[i] = (uint8_t)soft_host_mmio_read(v, place.gpa + i, 1);
    return 0;
}

static uint64_t linear_mask(const struct soft_vcpu *v)
{
    return cpu_is_64bit(&v->st) ? ~UINT64_C(0) : UINT32_MAX;
}

/* Outside of 64-bit mode every byte of the instruction must lie within CS. */
static int check_limit(struct soft_vcpu *v, unsigned len)
{
    if (!cpu_is_64bit(&v->st) && v->st.rip + len - 1 > v->st.seg[CPU_CS].limit)
        return soft_raise_error(v, VEC_GP, 0);
    return 0;
}

static int decode(struct soft_vcpu *v, struct insn *out, const uint8_t *bytes, unsigned avail,
                  unsigned mode, int *len)
{
    soft_fpu_save(v); /* the decoder is ordinary C */
    *len = insn_decode(out, bytes, avail, mode, v->model);
    if (*len == -1)
        return soft_raise(v, VEC_UD);
    if (*len == -2)
        return soft_raise_error(v, VEC_GP, 0);
    return 0;
}

/* Bytes beyond the first page's `first` ones, into buf: limit and page faults of their own. */
static int fetch_rest(struct soft_vcpu *v, gva_t addr, uint8_t *buf, unsigned first, unsigned len)
{
    gva_t next = (addr + first) & linear_mask(v);

    if (check_limit(v, first + 1))
        return SOFT_FAULT;
    return fetch_piece(v, next, buf + first, len - first);
}

/* The instruction may go on in the next page, or lies in a device's window. */
static int fetch_slowly(struct soft_vcpu *v, gva_t addr, unsigned mode, const struct insn **in)
{
    struct soft_insn_slot *slot = slot_of(v, addr);
    unsigned first = MIN((unsigned)(SOFT_PAGE_SIZE - (addr & (SOFT_PAGE_SIZE - 1))), INSN_MAX_LEN);
    unsigned known = slot->in.len;
    uint8_t buf[INSN_MAX_LEN];
    int len;

    *in = &slot->in;
    if (fetch_piece(v, addr, buf, first))
        return SOFT_FAULT;
    if (slot->addr == addr && slot->in.mode == mode &&
        bytes_equal(slot->in.bytes, buf, MIN(known, first))) {
        if (known > first && fetch_rest(v, addr, buf, first, known))
            return SOFT_FAULT;
        if (bytes_equal(slot->in.bytes, buf, known))
            return check_limit(v, known);
    }
    slot->addr = ~UINT64_C(0);
    if (decode(v, &slot->in, buf, first, mode, &len))
        return SOFT_FAULT;
    if (len == 0) {
        if (fetch_rest(v, addr, buf, first, INSN_MAX_LEN) ||
            decode(v, &slot->in, buf, INSN_MAX_LEN, mode, &len))
            return SOFT_FAULT;
        if (len == 0)
            return soft_raise_error(v, VEC_GP, 0);
    }
    slot->addr = addr;
    return check_limit(v, (unsigned)len);
}

int soft_fetch(struct soft_vcpu *v, const struct insn **in)
{
    unsigned mode = cpu_code_size(&v->st);
    gva_t addr = (v->st.seg[CPU_CS].base + v->st.rip) & linear_mask(v);
    struct soft_insn_slot *slot;
    uint8_t *bytes;
    int r;

    if (mode == 8)
        addr = v->st.rip;
    r = check_limit(v, 1);
    if (r != 0)
        return r;
    if ((addr & (SOFT_PAGE_SIZE - 1)) > SOFT_PAGE_SIZE - INSN_MAX_LEN)
        return fetch_slowly(v, addr, mode, in);
    bytes = soft_tlb_find_exec(v, soft_tlb_current(v), addr);
    if (bytes == NULL) {
        struct soft_place place;
        r = soft_translate(v, addr, SOFT_FETCH, SOFT_AS_CPL, &place);
        if (r != 0)
            return r;
        if (place.host == NULL)
            return fetch_slowly(v, addr, mode, in);
        bytes = place.host;
    }
    slot = slot_of(v, addr);
    if (slot->addr != addr || slot->in.mode != mode ||
        !bytes_equal(slot->in.bytes, bytes, slot->in.len)) {
        int len;
        slot->addr = ~UINT64_C(0);
        r = decode(v, &slot->in, bytes, INSN_MAX_LEN, mode, &len);
        if (r != 0)
            return r;
        slot->addr = addr;
    }
    *in = &slot->in;
    return check_limit(v, slot->in.len);
}

static int exec_any(struct soft_vcpu *v, const struct insn *in)
{
    soft_op_fn fn;

    if (in->cls == INSN_DATA)
        return soft_exec_data(v, in);
    fn = v->engine->dispatch[in->op];
    return fn != NULL ? fn(v, in) : soft_raise(v, VEC_UD);
}

/* With IGNNE# asserted, x87 instructions do not wait for the exception that is pending. */
static __attribute__((cold)) int exec_ferr(struct soft_vcpu *v, const struct insn *in)
{
    uint16_t fcw;
    int r;

    if (!soft_ferr_is_ignored(v, in))
        return exec_any(v, in);
    fcw = soft_ferr_mask(v);
    r = exec_any(v, in);
    soft_ferr_unmask(v, in, fcw, r == 0);
    return r;
}

int soft_exec(struct soft_vcpu *v, const struct insn *in)
{
    int r;

    v->next_rip = v->st.rip + in->len;
    if (UNLIKELY(in->is_hidden))
        return soft_raise(v, VEC_UD);
    if (in->unit != INSN_UNIT_INT) {
        r = soft_fpu_check(v, in->unit);
        if (r != 0)
            return r;
    }
    r = UNLIKELY(v->st.is_ferr) ? exec_ferr(v, in) : exec_any(v, in);
    if (r != 0)
        return r;
    v->st.rip = v->next_rip & linear_mask(v);
    v->stats.instructions++;
    return 0;
}
