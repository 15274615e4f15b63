/*
 * mem.c - loads and stores at linear addresses
 *
 * Order of an access: first level of the TLB; else every page it touches is translated before
 * the first byte moves, so that a fault leaves memory as it was; RAM is accessed before
 * devices, because a device's model may change what a host address is good for.
 *
 * Specification: SDM vol. 3, 8.1.1 (aligned accesses up to 8 bytes are single), 6.15 "Interrupt
 * 17" (alignment check).
 */
#include "engine/soft/debug.h"
#include "engine/soft/mmu.h"

/* #AC is checked (SDM vol. 3, 6.15): CR0.AM, EFLAGS.AC and CPL 3; never for implicit accesses. */
static inline bool alignment_is_checked(const struct soft_vcpu *v, enum soft_as as)
{
    const struct cpu_state *st = &v->st;

    return UNLIKELY((st->rflags & RFLAGS_AC) != 0) && (st->cr0 & CR0_AM) &&
           (as == SOFT_AS_USER || (as == SOFT_AS_CPL && cpu_cpl(st) == 3));
}

static inline bool is_misaligned(gva_t addr, unsigned size)
{
    return is_pow2(size) && (addr & (size - 1)) != 0;
}

static inline uint64_t host_load(const uint8_t *p, unsigned size)
{
    uint64_t value = 0;

    switch (size) {
    case 1:
        return *(const volatile uint8_t *)p;
    case 2:
        return load_le16(p);
    case 4:
        return load_le32(p);
    case 8:
        return load_le64(p);
    default:
        for (unsigned i = 0; i < size; i++)
            value |= (uint64_t)p[i] << (8 * i);
        return value;
    }
}

static inline void host_store(uint8_t *p, unsigned size, uint64_t value)
{
    switch (size) {
    case 1:
        *(volatile uint8_t *)p = (uint8_t)value;
        break;
    case 2:
        store_le16(p, (uint16_t)value);
        break;
    case 4:
        store_le32(p, (uint32_t)value);
        break;
    case 8:
        store_le64(p, value);
        break;
    default:
        for (unsigned i = 0; i < size; i++)
            p[i] = (uint8_t)(value >> (8 * i));
    }
}

/* Largest naturally aligned power of two that fits: what a device sees of an odd access. */
static inline unsigned mmio_piece(gpa_t gpa, unsigned size)
{
    unsigned piece = size >= 8 ? 8 : size >= 4 ? 4 : size >= 2 ? 2 : 1;

    /* an access of a whole power of two goes out as it is, aligned or not */
    if (piece == size)
        return piece;
    while (gpa & (piece - 1))
        piece /= 2;
    return piece;
}

static uint64_t mmio_load(struct soft_vcpu *v, gpa_t gpa, unsigned size)
{
    uint64_t value = 0;

    for (unsigned done = 0; done < size;) {
        unsigned piece = mmio_piece(gpa + done, size - done);
        uint64_t part = soft_host_mmio_read(v, gpa + done, piece) & mask_bytes(piece);
        value |= part << (8 * done);
        done += piece;
    }
    return value;
}

static void mmio_store(struct soft_vcpu *v, gpa_t gpa, unsigned size, uint64_t value)
{
    for (unsigned done = 0; done < size;) {
        unsigned piece = mmio_piece(gpa + done, size - done);
        soft_host_mmio_write(v, gpa + done, piece, value >> (8 * done) & mask_bytes(piece));
        done += piece;
    }
}

/* What is not written to host memory is a device's, or a ROM's: what becomes of it is known there.
 */
static void place_store(struct soft_vcpu *v, const struct soft_place *place, unsigned size,
                        uint64_t value)
{
    if (LIKELY(place->host != NULL)) {
        host_store(place->host, size, value);
        if (UNLIKELY(place->is_code_page))
            soft_code_written(v, place->gpa, size);
    } else {
        mmio_store(v, place->gpa, size, value);
    }
}

/* Address of the byte `offset` after addr: linear addresses have 32 bits outside long mode. */
static inline gva_t address_add(const struct soft_vcpu *v, gva_t addr, uint64_t offset)
{
    return cpu_is_long(&v->st) ? addr + offset : (uint32_t)(addr + offset);
}

/* Bytes from addr to the end of its page. */
static inline unsigned page_room(gva_t addr)
{
    return (unsigned)(SOFT_PAGE_SIZE - (addr & (SOFT_PAGE_SIZE - 1)));
}

/* Translate the one or two pages of [addr, addr + size); *first is the length in the first. */
static int access_translate(struct soft_vcpu *v, gva_t addr, unsigned size, enum soft_access access,
                            enum soft_as as, struct soft_place places[2], unsigned *first)
{
    *first = MIN(size, page_room(addr));
    /* AMD's CPUs check this before the pages, Intel's behind them (SDM vol. 3, table 6-2) */
    if (UNLIKELY(v->model->is_amd && alignment_is_checked(v, as) && is_misaligned(addr, size)))
        return soft_raise_error(v, VEC_AC, 0);
    if (soft_translate(v, addr, access, as, &places[0]))
        return SOFT_FAULT;
    if (*first != size && soft_translate(v, address_add(v, addr, *first), access, as, &places[1]))
        return SOFT_FAULT;
    if (UNLIKELY(alignment_is_checked(v, as) && is_misaligned(addr, size)))
        return soft_raise_error(v, VEC_AC, 0);
    if (as != SOFT_AS_SYSTEM)
        soft_debug_watch(v, addr, size, access);
    return 0;
}

static __attribute__((noinline)) int load_slow(struct soft_vcpu *v, gva_t addr, unsigned size,
                                               enum soft_as as, uint64_t *value)
{
    struct soft_place places[2];
    uint64_t parts[2] = {0, 0};
    unsigned lengths[2];

    if (access_translate(v, addr, size, SOFT_READ, as, places, &lengths[0]))
        return SOFT_FAULT;
    lengths[1] = size - lengths[0];
    for (unsigned i = 0; i < 2; i++)
        if (lengths[i] != 0 && places[i].host != NULL)
            parts[i] = host_load(places[i].host, lengths[i]);
    for (unsigned i = 0; i < 2; i++)
        if (lengths[i] != 0 && places[i].host == NULL)
            parts[i] = mmio_load(v, places[i].gpa, lengths[i]);
    *value = lengths[1] == 0 ? parts[0] : parts[0] | parts[1] << (8 * lengths[0]);
    return 0;
}

static __attribute__((noinline)) int store_slow(struct soft_vcpu *v, gva_t addr, unsigned size,
                                                enum soft_as as, uint64_t value)
{
    struct soft_place places[2];
    unsigned lengths[2];

    if (access_translate(v, addr, size, SOFT_WRITE, as, places, &lengths[0]))
        return SOFT_FAULT;
    lengths[1] = size - lengths[0];
    for (unsigned i = 0; i < 2; i++)
        if (lengths[i] != 0 && places[i].host != NULL)
            place_store(v, &places[i], lengths[i], i == 0 ? value : value >> (8 * lengths[0]));
    for (unsigned i = 0; i < 2; i++)
        if (lengths[i] != 0 && places[i].host == NULL)
            place_store(v, &places[i], lengths[i], i == 0 ? value : value >> (8 * lengths[0]));
    return 0;
}

int soft_load(struct soft_vcpu *v, gva_t addr, unsigned size, enum soft_as as, uint64_t *value)
{
    uint8_t *host = soft_tlb_find_read(v, soft_tlb_set_of(v, as), addr, size);

    if (LIKELY(host != NULL && !alignment_is_checked(v, as))) {
        *value = host_load(host, size);
        return 0;
    }
    return load_slow(v, addr, size, as, value);
}

int soft_store(struct soft_vcpu *v, gva_t addr, unsigned size, enum soft_as as, uint64_t value)
{
    uint8_t *host = soft_tlb_find_write(v, soft_tlb_set_of(v, as), addr, size);

    if (LIKELY(host != NULL && !alignment_is_checked(v, as))) {
        host_store(host, size, value);
        return 0;
    }
    return store_slow(v, addr, size, as, value);
}

/* ---- any length ---- */

static void place_read(struct soft_vcpu *v, const struct soft_place *place, uint8_t *buf,
                       unsigned size)
{
    if (place->host != NULL) {
        soft_copy(buf, place->host, size);
        return;
    }
    for (unsigned done = 0; done < size;) {
        unsigned piece = MIN(size - done, 8u);
        uint64_t value = mmio_load(v, place->gpa + done, piece);
        for (unsigned i = 0; i < piece; i++)
            buf[done + i] = (uint8_t)(value >> (8 * i));
        done += piece;
    }
}

static void place_write(struct soft_vcpu *v, const struct soft_place *place, const uint8_t *buf,
                        unsigned size)
{
    if (place->host != NULL) {
        soft_copy(place->host, buf, size);
        if (UNLIKELY(place->is_code_page))
            soft_code_written(v, place->gpa, size);
        return;
    }
    for (unsigned done = 0; done < size;) {
        unsigned piece = MIN(size - done, 8u);
        mmio_store(v, place->gpa + done, piece, host_load(buf + done, piece));
        done += piece;
    }
}

/* Pages that one transfer holds translations of at once. */
#define TRANSFER_PAGES 4u

/*
 * Move up to TRANSFER_PAGES pages' worth; sets *moved. All its pages are translated before the
 * first byte moves.
 */
static int transfer(struct soft_vcpu *v, gva_t addr, uint8_t *in, const uint8_t *out, unsigned size,
                    enum soft_as as, unsigned *moved)
{
    enum soft_access access = in != NULL ? SOFT_READ : SOFT_WRITE;
    struct soft_place places[TRANSFER_PAGES];
    unsigned lengths[TRANSFER_PAGES], starts[TRANSFER_PAGES];
    unsigned count = 0, total = 0;

    while (total < size && count < TRANSFER_PAGES) {
        gva_t at = address_add(v, addr, total);
        if (soft_translate(v, at, access, as, &places[count]))
            return SOFT_FAULT;
        starts[count] = total;
        lengths[count] = MIN(size - total, page_room(at));
        total += lengths[count++];
    }
    if (as != SOFT_AS_SYSTEM)
        soft_debug_watch(v, addr, total, access);
    for (unsigned pass = 0; pass < 2; pass++)
        for (unsigned i = 0; i < count; i++) {
            if ((places[i].host == NULL) != (pass == 1))
                continue;
            if (in != NULL)
                place_read(v, &places[i], in + starts[i], lengths[i]);
            else
                place_write(v, &places[i], out + starts[i], lengths[i]);
        }
    *moved = total;
    return 0;
}

int soft_read(struct soft_vcpu *v, gva_t addr, void *buf, unsigned size, enum soft_as as)
{
    uint8_t *host;
    unsigned moved;

    if (size == 0)
        return 0;
    host =
        size <= SOFT_PAGE_SIZE ? soft_tlb_find_read(v, soft_tlb_set_of(v, as), addr, size) : NULL;
    if (LIKELY(host != NULL)) {
        soft_copy(buf, host, size);
        return 0;
    }
    for (unsigned done = 0; done < size; done += moved)
        if (transfer(v, address_add(v, addr, done), (uint8_t *)buf + done, NULL, size - done, as,
                     &moved))
            return SOFT_FAULT;
    return 0;
}

int soft_write(struct soft_vcpu *v, gva_t addr, const void *buf, unsigned size, enum soft_as as)
{
    uint8_t *host;
    unsigned moved;

    if (size == 0)
        return 0;
    host =
        size <= SOFT_PAGE_SIZE ? soft_tlb_find_write(v, soft_tlb_set_of(v, as), addr, size) : NULL;
    if (LIKELY(host != NULL)) {
        soft_copy(host, buf, size);
        return 0;
    }
    if (size > (TRANSFER_PAGES - 1) * SOFT_PAGE_SIZE && soft_probe(v, addr, size, SOFT_WRITE, as))
        return SOFT_FAULT;
    for (unsigned done = 0; done < size; done += moved)
        if (transfer(v, address_add(v, addr, done), NULL, (const uint8_t *)buf + done, size - done,
                     as, &moved))
            return SOFT_FAULT;
    return 0;
}

int soft_probe(struct soft_vcpu *v, gva_t addr, unsigned size, enum soft_access access,
               enum soft_as as)
{
    unsigned set = soft_tlb_set_of(v, as);
    struct soft_place place;

    for (unsigned done = 0; done < size;) {
        gva_t at = address_add(v, addr, done);
        uint8_t *host = access == SOFT_READ    ? soft_tlb_find_read(v, set, at, 1)
                        : access == SOFT_FETCH ? soft_tlb_find_exec(v, set, at)
                                               : soft_tlb_find_write(v, set, at, 1);
        if (host == NULL && soft_translate(v, at, access, as, &place))
            return SOFT_FAULT;
        done += page_room(at);
    }
    return 0;
}

void soft_code_written(struct soft_vcpu *v, gpa_t gpa, unsigned size)
{
    struct soft_engine *se = v->engine;

    if (se->code_written == NULL)
        return;
    while (size != 0) {
        unsigned part = MIN(size, page_room(gpa));
        se->code_written(se, v, gpa, part);
        gpa += part;
        size -= part;
    }
}
