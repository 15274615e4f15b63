/*
 * mmu.c - from a linear address to guest memory
 *
 * The way of a translation: first level of the TLB (inline, in mem.c and generated code), second
 * level, page walk. soft_translate is where the first level is filled, so it is where its
 * invariants (mmu.h) are kept.
 *
 * Specification: SDM vol. 3, chapter 4; vol. 1, 3.3.7.1 (canonical addresses).
 */
#include "cpu/pagewalk.h"
#include "engine/soft/debug.h"
#include "engine/soft/mmu.h"
#include "engine/soft/system.h"
#include "os/tsc.h"

static uint8_t *walk_entry_host(void *ctx, gpa_t addr, bool *is_writable)
{
    return soft_physical(ctx, addr, is_writable);
}

static void walk_entry_written(void *ctx, gpa_t addr)
{
    struct soft_vcpu *v = ctx;
    struct soft_ram *ram = soft_ram_find(v->engine, addr);

    if (UNLIKELY(ram != NULL &&
                 (ram->page_flags[(addr - ram->addr) >> SOFT_PAGE_SHIFT] & SOFT_PAGE_CODE)))
        soft_code_written(v, addr, 8);
}

static inline enum pagewalk_access walk_access(enum soft_access access)
{
    return access == SOFT_READ    ? PAGEWALK_READ
           : access == SOFT_FETCH ? PAGEWALK_FETCH
                                  : PAGEWALK_WRITE;
}

static bool mmu_walk_uncounted(struct soft_vcpu *v, gva_t addr, enum soft_access access,
                               unsigned set, struct soft_tlb_entry *entry, uint32_t *error)
{
    const struct cpu_state *st = &v->st;
    struct pagewalk pw = {
        .cr0 = st->cr0,
        .cr3 = st->cr3,
        .cr4 = st->cr4,
        .efer = st->efer,
        .pae_pdpte = st->pae_pdpte,
        .phys_bits = v->model->phys_bits,
        .has_1g_pages = v->tlb2.has_1g_pages,
        .has_pse36 = v->tlb2.has_pse36,
        .is_bit8_reserved = v->tlb2.is_bit8_reserved,
        .entry = walk_entry_host,
        .entry_written = walk_entry_written,
        .ctx = v,
    };
    struct pagewalk_result result;

    if (!pagewalk(&pw, addr, walk_access(access), set == SOFT_TLB_USER, set != SOFT_TLB_KERNEL_SMAP,
                  &result)) {
        *error = result.error;
        return false;
    }
    entry->gpa = result.gpa;
    entry->rights = result.rights;
    entry->page_shift = result.page_shift;
    soft_tlb2_insert(v, addr, entry);
    return true;
}

static bool mmu_walk(struct soft_vcpu *v, gva_t addr, enum soft_access access, unsigned set,
                     struct soft_tlb_entry *entry, uint32_t *error)
{
    uint64_t start = tsc_read();
    bool is_mapped = mmu_walk_uncounted(v, addr, access, set, entry, error);

    v->stats.walks++;
    v->stats.walk_tsc += tsc_read() - start;
    return is_mapped;
}

/* May `entry` serve this access as it stands? A clean page must be walked for a write. */
static inline bool entry_serves(const struct soft_vcpu *v, const struct soft_tlb_entry *entry,
                                enum soft_access access, unsigned set)
{
    enum pagewalk_access kind = walk_access(access);

    return pagewalk_permits(v->st.cr0, v->st.cr4, entry->rights, kind, set == SOFT_TLB_USER,
                            set != SOFT_TLB_KERNEL_SMAP) &&
           (kind != PAGEWALK_WRITE || (entry->rights & PAGE_RIGHT_DIRTY));
}

/*
 * Become a writer of a RAM page, for a write entry or a single write. False: translated code was
 * made from it. Whoever makes code sets SOFT_PAGE_CODE first and looks for writers then, so one
 * of the two sees the other; he waits until this vCPU has left guest code (exclusive.c) and
 * drops the entry, which is why the flags need not be read again afterwards.
 */
static inline bool page_claim_write(struct soft_vcpu *v, struct soft_ram *ram, gpa_t gpa)
{
    _Atomic uint32_t *flags = &ram->page_flags[(gpa - ram->addr) >> SOFT_PAGE_SHIFT];
    uint32_t mine = SOFT_PAGE_WRITER(v->index);
    uint32_t old = atomic_load_explicit(flags, memory_order_seq_cst);

    if (UNLIKELY(!(old & (mine | SOFT_PAGE_CODE))))
        old = atomic_fetch_or_explicit(flags, mine, memory_order_seq_cst);
    return !(old & SOFT_PAGE_CODE);
}

static void fill_data(struct soft_vcpu *v, gva_t addr, enum soft_access access, unsigned set,
                      const struct soft_tlb_entry *entry, struct soft_ram *ram,
                      struct soft_place *place)
{
    uint8_t *page = place->host - (addr & (SOFT_PAGE_SIZE - 1));
    bool is_writable = false;

    if (!ram->is_rom && entry_serves(v, entry, SOFT_WRITE, set)) {
        is_writable = page_claim_write(v, ram, entry->gpa);
        place->is_code_page = !is_writable;
    }
    if (UNLIKELY(ram->is_rom && access != SOFT_READ))
        place->host = NULL;
    if (UNLIKELY(soft_debug_is_armed(v) && soft_debug_page_is_watched(v, addr)))
        return;
    soft_tlb_fill_data(v, set, addr, entry, page, access != SOFT_READ, is_writable);
}

/* Pages that follow a miss in a row of misses and are filled with it. */
#define STREAM_PAGES 8

/*
 * Misses that go from page to page: fill what comes next, as far as translations are known. Stops
 * at the next GiB, so that no address wraps. Never walks: that would set accessed bits.
 */
static void fill_ahead(struct soft_vcpu *v, gva_t addr, enum soft_access access, unsigned set,
                       struct soft_tlb_entry entry)
{
    gva_t page = align_down(addr, SOFT_PAGE_SIZE);
    unsigned shift = entry.page_shift;
    struct soft_ram *ram;
    struct soft_place place;

    for (unsigned i = 0; i < STREAM_PAGES; i++) {
        gva_t next = page + SOFT_PAGE_SIZE;
        if ((page ^ next) >> 30 != 0)
            break;
        if ((page ^ next) >> shift == 0)
            entry.gpa += SOFT_PAGE_SIZE;
        else if (!soft_tlb2_find(v, next, &entry) || !entry_serves(v, &entry, access, set))
            break;
        shift = entry.page_shift;
        ram = soft_ram_find(v->engine, entry.gpa);
        if (ram == NULL)
            break;
        place.host = ram->host + (entry.gpa - ram->addr);
        fill_data(v, next, access, set, &entry, ram, &place);
        page = next;
    }
    v->tlb_tracking.next_page[access != SOFT_READ] = (page >> SOFT_PAGE_SHIFT) + 1;
}

static inline bool address_is_canonical(const struct soft_vcpu *v, gva_t addr)
{
    return !cpu_is_long(&v->st) || soft_is_canonical(v, addr);
}

int soft_translate(struct soft_vcpu *v, gva_t addr, enum soft_access access, enum soft_as as,
                   struct soft_place *place)
{
    unsigned set = soft_tlb_set_of(v, as);
    struct soft_tlb_entry entry;
    struct soft_ram *ram;

    if (!cpu_is_long(&v->st))
        addr = (uint32_t)addr;
    else if (UNLIKELY(!address_is_canonical(v, addr)))
        return soft_raise_error(v, VEC_GP, 0);

    if (UNLIKELY(!(v->st.cr0 & CR0_PG))) {
        entry.gpa = align_down(addr, SOFT_PAGE_SIZE);
        entry.rights =
            PAGE_RIGHT_WRITE | PAGE_RIGHT_DIRTY | (set == SOFT_TLB_USER ? PAGE_RIGHT_USER : 0);
        entry.page_shift = SOFT_PAGE_SHIFT;
    } else if (!soft_tlb2_find(v, addr, &entry) || !entry_serves(v, &entry, access, set)) {
        uint32_t error;
        if (!mmu_walk(v, addr, access, set, &entry, &error))
            return soft_raise_page_fault(v, addr, error);
    }

    place->gpa = entry.gpa | (addr & (SOFT_PAGE_SIZE - 1));
    place->is_code_page = false;
    ram = soft_ram_find(v->engine, entry.gpa);
    if (UNLIKELY(ram == NULL)) {
        place->host = NULL;
        return 0;
    }
    place->host = ram->host + (place->gpa - ram->addr);
    if (access == SOFT_FETCH) {
        soft_tlb_fill_exec(v, set, addr, &entry, place->host - (addr & (SOFT_PAGE_SIZE - 1)));
        return 0;
    }
    fill_data(v, addr, access, set, &entry, ram, place);
    uint64_t *next_page = &v->tlb_tracking.next_page[access != SOFT_READ];
    if (*next_page == addr >> SOFT_PAGE_SHIFT && (v->st.cr0 & CR0_PG))
        fill_ahead(v, addr, access, set, entry);
    else
        *next_page = (addr >> SOFT_PAGE_SHIFT) + 1;
    return 0;
}

int soft_load_pdptrs(struct soft_vcpu *v, uint64_t cr3)
{
    gpa_t table = cr3 & 0xffffffe0;
    uint64_t pdpte[4];
    bool is_writable;

    for (unsigned i = 0; i < 4; i++) {
        uint8_t *host = soft_physical(v, table + 8 * i, &is_writable);
        pdpte[i] = host != NULL ? __atomic_load_n((uint64_t *)(void *)host, __ATOMIC_RELAXED)
                                : ~UINT64_C(0);
        if (pagewalk_pdpte_is_bad(pdpte[i], v->model->phys_bits))
            return soft_raise_error(v, VEC_GP, 0);
    }
    for (unsigned i = 0; i < 4; i++)
        v->st.pae_pdpte[i] = pdpte[i];
    return 0;
}
