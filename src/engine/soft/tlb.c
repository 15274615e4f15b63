/*
 * tlb.c - the two levels of the software TLB: lookup, fill, invalidation
 *
 * Key invariant: a flush removes from both levels everything that it covers, execution entries
 * and code cookies included, and costs what was filled, not what there is room for.
 *
 * Specification: SDM vol. 3, 4.10.
 */
#include "cpu/pagewalk.h"
#include "engine/soft/mmu.h"
#include "engine/soft/system.h"

#define REGION_SHIFT 21
#define HUGE_SHIFT 30

static inline bool bitmap_test(const uint64_t *map, unsigned n)
{
    return map[n / 64] >> (n % 64) & 1;
}

static inline void bitmap_assign(uint64_t *map, unsigned n, bool value)
{
    uint64_t bit = BIT(n % 64);

    map[n / 64] = value ? map[n / 64] | bit : map[n / 64] & ~bit;
}

/* Bit of a 2 MiB region in the filter: 2048 for each half of the address space. */
static inline unsigned region_bit(gva_t addr)
{
    uint64_t region = addr >> REGION_SHIFT;
    unsigned half = SOFT_TLB_REGION_WORDS * 64 / 2;

    return (unsigned)((region ^ region >> 11) & (half - 1)) + (addr >> 63 ? half : 0);
}

/* ---- first level ---- */

static inline void slots_add(struct soft_tlb_slots *slots, unsigned slot)
{
    slots->words[slot / 64] |= BIT(slot % 64);
    slots->any |= BIT(slot / 64);
}

static inline void data_drop(struct soft_vcpu *v, unsigned set, unsigned slot)
{
    uint64_t invalid = soft_tlb_invalid_tag(slot);

    v->tlb[set].read_tag[slot] = invalid;
    v->tlb[set].write_tag[slot] = invalid;
}

/* The data slot's number serves for the invalid tag: 8 is below both sizes. */
static inline void exec_drop(struct soft_vcpu *v, unsigned set, unsigned slot)
{
    v->tlb[set].exec_tag[slot] = soft_tlb_invalid_tag(slot);
    v->tlb[set].code_cookie[slot] = 0;
}

/* What a fill means for later flushes. */
static inline void level1_note(struct soft_tlb_tracking *t, gva_t addr,
                               const struct soft_tlb_entry *entry)
{
    unsigned half = addr >> 63;

    if (entry->rights & PAGE_RIGHT_GLOBAL)
        t->has_global[half] = true;
    if (entry->page_shift > SOFT_PAGE_SHIFT) {
        bitmap_assign(t->large_regions, region_bit(addr), true);
        t->has_large[half] = true;
        if (entry->page_shift == HUGE_SHIFT)
            t->has_huge[half] = true;
    }
}

/* May the slot with this tag be taken for `page` without being asked for? */
static inline bool slot_is_free(uint64_t tag, uint64_t page, uint64_t invalid)
{
    return tag == invalid || tag == -page;
}

void soft_tlb_fill_data(struct soft_vcpu *v, unsigned set, gva_t addr,
                        const struct soft_tlb_entry *entry, uint8_t *host, bool is_for_write,
                        bool is_writable)
{
    struct soft_tlb_set *tlb = &v->tlb[set];
    struct soft_tlb_tracking *t = &v->tlb_tracking;
    unsigned slot = soft_tlb_slot(addr);
    gva_t page = align_down(addr, SOFT_PAGE_SIZE);
    uint64_t invalid = soft_tlb_invalid_tag(slot);
    uint64_t addend = (uint64_t)(uintptr_t)host - page;

    if (!is_for_write || slot_is_free(tlb->read_tag[slot], page, invalid)) {
        tlb->read_tag[slot] = -page;
        tlb->read_addend[slot] = addend;
    }
    if (is_writable && (is_for_write || slot_is_free(tlb->write_tag[slot], page, invalid))) {
        tlb->write_tag[slot] = -page;
        tlb->write_addend[slot] = addend;
    } else if (tlb->write_tag[slot] == -page) {
        tlb->write_tag[slot] = invalid;
    }
    /* a slot may be in both: its two halves may hold different pages */
    slots_add(entry->rights & PAGE_RIGHT_GLOBAL ? &t->global[set] : &t->local[set], slot);
    level1_note(t, addr, entry);
    v->stats.tlb_fills++;
}

void soft_tlb_fill_exec(struct soft_vcpu *v, unsigned set, gva_t addr,
                        const struct soft_tlb_entry *entry, uint8_t *host)
{
    struct soft_tlb_set *tlb = &v->tlb[set];
    struct soft_tlb_tracking *t = &v->tlb_tracking;
    unsigned slot = soft_tlb_exec_slot(addr);
    gva_t page = align_down(addr, SOFT_PAGE_SIZE);
    uint64_t addend = (uint64_t)(uintptr_t)host - page;

    if (tlb->exec_tag[slot] != -page || tlb->exec_addend[slot] != addend)
        tlb->code_cookie[slot] = 0;
    tlb->exec_tag[slot] = -page;
    tlb->exec_addend[slot] = addend;
    bitmap_assign(t->exec_is_global[set], slot, entry->rights & PAGE_RIGHT_GLOBAL);
    bitmap_assign(t->exec_is_filled[set], slot, true);
    level1_note(t, addr, entry);
    v->stats.tlb_fills++;
}

static void level1_flush_slots(struct soft_vcpu *v, unsigned set, struct soft_tlb_slots *slots)
{
    for (uint64_t any = slots->any; any != 0; any &= any - 1) {
        unsigned word = (unsigned)__builtin_ctzll(any);
        for (uint64_t m = slots->words[word]; m != 0; m &= m - 1)
            data_drop(v, set, word * 64 + (unsigned)__builtin_ctzll(m));
        slots->words[word] = 0;
    }
    slots->any = 0;
}

static void level1_flush_exec(struct soft_vcpu *v, unsigned set, bool keep_global)
{
    struct soft_tlb_tracking *t = &v->tlb_tracking;

    for (unsigned word = 0; word < SOFT_TLB_EXEC_SIZE / 64; word++) {
        uint64_t drop = t->exec_is_filled[set][word];
        if (keep_global)
            drop &= ~t->exec_is_global[set][word];
        t->exec_is_filled[set][word] &= ~drop;
        for (; drop != 0; drop &= drop - 1)
            exec_drop(v, set, word * 64 + (unsigned)__builtin_ctzll(drop));
    }
}

static void level1_flush(struct soft_vcpu *v, bool keep_global)
{
    struct soft_tlb_tracking *t = &v->tlb_tracking;

    for (unsigned set = 0; set < SOFT_TLB_SETS; set++) {
        level1_flush_slots(v, set, &t->local[set]);
        if (!keep_global)
            level1_flush_slots(v, set, &t->global[set]);
        level1_flush_exec(v, set, keep_global);
    }
    /* what is known of a half can be forgotten when nothing of it can be left */
    for (unsigned half = 0; half < 2; half++) {
        unsigned words = SOFT_TLB_REGION_WORDS / 2;
        if (keep_global && t->has_global[half])
            continue;
        if (t->has_large[half])
            soft_zero(&t->large_regions[half * words], words * sizeof(t->large_regions[0]));
        t->has_large[half] = t->has_huge[half] = t->has_global[half] = false;
    }
    v->stats.tlb_flushes++;
}

/* Slots in use of one word. */
static inline uint64_t slots_used(const struct soft_tlb_tracking *t, unsigned set, unsigned word)
{
    return t->local[set].words[word] | t->global[set].words[word];
}

/* Drop what lies in the same 2^shift bytes as addr, at least 64 pages. */
static void level1_flush_range(struct soft_vcpu *v, gva_t addr, unsigned shift)
{
    struct soft_tlb_tracking *t = &v->tlb_tracking;
    unsigned first = soft_tlb_slot(addr >> shift << shift) / 64;
    unsigned count = MIN(1u << (shift - SOFT_PAGE_SHIFT - 6), SOFT_TLB_WORDS);

    for (unsigned set = 0; set < SOFT_TLB_SETS; set++) {
        struct soft_tlb_set *tlb = &v->tlb[set];
        for (unsigned word = first; word < first + count; word++)
            for (uint64_t m = slots_used(t, set, word); m != 0; m &= m - 1) {
                unsigned slot = word * 64 + (unsigned)__builtin_ctzll(m);
                if ((-tlb->read_tag[slot] ^ addr) >> shift == 0 ||
                    (-tlb->write_tag[slot] ^ addr) >> shift == 0)
                    data_drop(v, set, slot);
            }
        for (unsigned word = 0; word < SOFT_TLB_EXEC_SIZE / 64; word++)
            for (uint64_t m = t->exec_is_filled[set][word]; m != 0; m &= m - 1) {
                unsigned slot = word * 64 + (unsigned)__builtin_ctzll(m);
                if ((-tlb->exec_tag[slot] ^ addr) >> shift == 0)
                    exec_drop(v, set, slot);
            }
    }
}

static void level1_flush_page(struct soft_vcpu *v, gva_t addr)
{
    struct soft_tlb_tracking *t = &v->tlb_tracking;
    gva_t page = align_down(addr, SOFT_PAGE_SIZE);
    bool is_legacy = !(v->st.cr4 & CR4_PAE);

    if (UNLIKELY(t->has_huge[addr >> 63])) {
        level1_flush_range(v, addr, HUGE_SHIFT);
        return;
    }
    /* fragments of a 4 MiB page may have been filled from either half of it */
    if (t->has_large[addr >> 63] &&
        (bitmap_test(t->large_regions, region_bit(addr)) ||
         (is_legacy && bitmap_test(t->large_regions, region_bit(addr ^ BIT(REGION_SHIFT)))))) {
        level1_flush_range(v, addr, is_legacy ? REGION_SHIFT + 1 : REGION_SHIFT);
        return;
    }
    for (unsigned set = 0; set < SOFT_TLB_SETS; set++) {
        struct soft_tlb_set *tlb = &v->tlb[set];
        unsigned slot = soft_tlb_slot(addr);
        if (tlb->read_tag[slot] == -page || tlb->write_tag[slot] == -page)
            data_drop(v, set, slot);
        slot = soft_tlb_exec_slot(addr);
        if (tlb->exec_tag[slot] == -page)
            exec_drop(v, set, slot);
    }
}

void soft_tlb_drop_writes(struct soft_vcpu *v, const uint8_t *page)
{
    struct soft_tlb_tracking *t = &v->tlb_tracking;

    for (unsigned set = 0; set < SOFT_TLB_SETS; set++) {
        struct soft_tlb_set *tlb = &v->tlb[set];
        for (uint64_t any = t->local[set].any | t->global[set].any; any != 0; any &= any - 1) {
            unsigned word = (unsigned)__builtin_ctzll(any);
            for (uint64_t m = slots_used(t, set, word); m != 0; m &= m - 1) {
                unsigned slot = word * 64 + (unsigned)__builtin_ctzll(m);
                /* an invalid tag may match by chance; it is invalid afterwards as well */
                if (tlb->write_addend[slot] - tlb->write_tag[slot] == (uint64_t)(uintptr_t)page)
                    tlb->write_tag[slot] = soft_tlb_invalid_tag(slot);
            }
        }
    }
}

/* ---- second level ---- */

/* Everything out, ASIDs from the start. */
static void level2_clear(struct soft_tlb2 *c)
{
    soft_zero(c->small, sizeof(c->small));
    soft_zero(c->large, sizeof(c->large));
    soft_zero(c->huge, sizeof(c->huge));
    soft_zero(c->asid_of_pcid, sizeof(c->asid_of_pcid));
    c->has_large = false;
    c->has_huge = false;
    c->asid_global = 1;
    c->asid_last = 1;
}

/* The ASID of a PCID; gives it one when it has none. */
static inline uint16_t asid_of(struct soft_tlb2 *c, unsigned pcid)
{
    uint16_t asid = c->asid_of_pcid[pcid];

    if (LIKELY(asid != 0))
        return asid;
    if (UNLIKELY(c->asid_last == UINT16_MAX))
        level2_clear(c);
    return c->asid_of_pcid[pcid] = ++c->asid_last;
}

static inline uint64_t level2_key(uint64_t number, uint16_t asid)
{
    return number << 16 | asid;
}

static inline struct soft_tlb2_line *line_small(struct soft_tlb2 *c, gva_t addr)
{
    uint64_t number = addr >> SOFT_PAGE_SHIFT;

    return &c->small[(number ^ number >> 11) & (SOFT_TLB2_SIZE - 1)];
}

static inline struct soft_tlb2_line *line_large(struct soft_tlb2 *c, gva_t addr)
{
    uint64_t number = addr >> REGION_SHIFT;

    return &c->large[(number ^ number >> 7) & (SOFT_TLB2_LARGE_SIZE - 1)];
}

static inline struct soft_tlb2_way *ways_find(struct soft_tlb2_way *ways, unsigned count,
                                              uint64_t key, uint64_t global_key)
{
    for (unsigned i = 0; i < count; i++)
        if (ways[i].tag == key || ways[i].tag == global_key)
            return &ways[i];
    return NULL;
}

static inline bool level2_hit(const struct soft_tlb2_way *way, gva_t addr, unsigned shift,
                              struct soft_tlb_entry *entry)
{
    if (way == NULL)
        return false;
    entry->gpa =
        align_down(way->data, SOFT_PAGE_SIZE) | (addr & (BIT(shift) - 1) & ~(SOFT_PAGE_SIZE - 1));
    entry->rights = (uint32_t)way->data & (SOFT_PAGE_SIZE - 1);
    entry->page_shift = shift;
    return true;
}

bool soft_tlb2_find(struct soft_vcpu *v, gva_t addr, struct soft_tlb_entry *entry)
{
    struct soft_tlb2 *c = &v->tlb2;
    uint16_t asid = asid_of(c, soft_pcid(v));
    uint64_t number = addr >> SOFT_PAGE_SHIFT;

    if (level2_hit(ways_find(line_small(c, addr)->ways, SOFT_TLB2_WAYS, level2_key(number, asid),
                             level2_key(number, c->asid_global)),
                   addr, SOFT_PAGE_SHIFT, entry))
        return true;
    if (c->has_large) {
        number = addr >> REGION_SHIFT;
        if (level2_hit(ways_find(line_large(c, addr)->ways, SOFT_TLB2_WAYS,
                                 level2_key(number, asid), level2_key(number, c->asid_global)),
                       addr, REGION_SHIFT, entry))
            return true;
    }
    if (c->has_huge) {
        number = addr >> HUGE_SHIFT;
        return level2_hit(ways_find(c->huge, SOFT_TLB2_HUGE_SIZE, level2_key(number, asid),
                                    level2_key(number, c->asid_global)),
                          addr, HUGE_SHIFT, entry);
    }
    return false;
}

/* Replace the entry with one of these keys, or the oldest; the new one comes first. */
static void ways_insert(struct soft_tlb2_way *ways, uint64_t key, uint64_t other_key, uint64_t data)
{
    unsigned i = 0;

    while (i < SOFT_TLB2_WAYS - 1 && ways[i].tag != key && ways[i].tag != other_key)
        i++;
    for (; i > 0; i--) {
        ways[i].tag = ways[i - 1].tag;
        ways[i].data = ways[i - 1].data;
    }
    ways[0].tag = key;
    ways[0].data = data;
}

void soft_tlb2_insert(struct soft_vcpu *v, gva_t addr, const struct soft_tlb_entry *entry)
{
    struct soft_tlb2 *c = &v->tlb2;
    uint16_t asid = asid_of(c, soft_pcid(v));
    uint16_t other = c->asid_global;
    gpa_t gpa = entry->gpa;

    if (entry->rights & PAGE_RIGHT_GLOBAL) {
        other = asid;
        asid = c->asid_global;
    }
    if (entry->page_shift == SOFT_PAGE_SHIFT) {
        uint64_t number = addr >> SOFT_PAGE_SHIFT;
        ways_insert(line_small(c, addr)->ways, level2_key(number, asid), level2_key(number, other),
                    gpa | entry->rights);
    } else if (entry->page_shift == HUGE_SHIFT) {
        uint64_t key = level2_key(addr >> HUGE_SHIFT, asid);
        uint64_t other_key = level2_key(addr >> HUGE_SHIFT, other);
        struct soft_tlb2_way *way = ways_find(c->huge, SOFT_TLB2_HUGE_SIZE, key, other_key);
        if (way == NULL)
            way = &c->huge[c->huge_next++ % SOFT_TLB2_HUGE_SIZE];
        way->tag = key;
        way->data = align_down(gpa, BIT(HUGE_SHIFT)) | entry->rights;
        c->has_huge = true;
    } else {
        uint64_t number = addr >> REGION_SHIFT;
        ways_insert(line_large(c, addr)->ways, level2_key(number, asid), level2_key(number, other),
                    align_down(gpa, BIT(REGION_SHIFT)) | entry->rights);
        c->has_large = true;
    }
}

static void ways_drop(struct soft_tlb2_way *ways, unsigned count, uint64_t number, uint16_t asid,
                      uint16_t asid_global)
{
    for (unsigned i = 0; i < count; i++)
        if (ways[i].tag == level2_key(number, asid) ||
            ways[i].tag == level2_key(number, asid_global))
            ways[i].tag = 0;
}

static void level2_flush_page(struct soft_vcpu *v, unsigned pcid, gva_t addr)
{
    struct soft_tlb2 *c = &v->tlb2;
    uint16_t asid = asid_of(c, pcid);
    uint16_t global = c->asid_global;

    ways_drop(line_small(c, addr)->ways, SOFT_TLB2_WAYS, addr >> SOFT_PAGE_SHIFT, asid, global);
    if (c->has_large) {
        ways_drop(line_large(c, addr)->ways, SOFT_TLB2_WAYS, addr >> REGION_SHIFT, asid, global);
        if (!(v->st.cr4 & CR4_PAE)) {
            gva_t twin = addr ^ BIT(REGION_SHIFT); /* the other half of a 4 MiB page */
            ways_drop(line_large(c, twin)->ways, SOFT_TLB2_WAYS, twin >> REGION_SHIFT, asid,
                      global);
        }
    }
    if (c->has_huge)
        ways_drop(c->huge, SOFT_TLB2_HUGE_SIZE, addr >> HUGE_SHIFT, asid, global);
}

/* ---- invalidation as the architecture names it ---- */

void soft_tlb_init(struct soft_vcpu *v)
{
    struct soft_tlb2 *c = &v->tlb2;
    const struct cpu_model *model = v->model;

    for (unsigned set = 0; set < SOFT_TLB_SETS; set++) {
        for (unsigned slot = 0; slot < SOFT_TLB_SIZE; slot++)
            data_drop(v, set, slot);
        for (unsigned slot = 0; slot < SOFT_TLB_EXEC_SIZE; slot++)
            exec_drop(v, set, slot);
    }
    soft_zero(&v->tlb_tracking, sizeof(v->tlb_tracking));
    level2_clear(c);
    c->has_1g_pages = cpu_model_has(model, CPU_FEATURE_PDPE1GB);
    c->has_pse36 = cpu_model_has(model, CPU_FEATURE_PSE36);
    c->is_bit8_reserved = soft_is_amd(v);
    c->is_ready = true;
}

void soft_tlb_flush_all(struct soft_vcpu *v)
{
    struct soft_tlb2 *c = &v->tlb2;

    if (!c->is_ready) {
        soft_tlb_init(v);
        return;
    }
    level1_flush(v, false);
    soft_zero(c->asid_of_pcid, sizeof(c->asid_of_pcid));
    if (c->asid_last == UINT16_MAX)
        level2_clear(c);
    else
        c->asid_global = ++c->asid_last;
    c->has_large = false;
    c->has_huge = false;
}

void soft_tlb_flush_nonglobal(struct soft_vcpu *v)
{
    v->tlb2.asid_of_pcid[soft_pcid(v)] = 0;
    level1_flush(v, true);
}

void soft_tlb_switch(struct soft_vcpu *v, bool keep)
{
    if (!keep)
        v->tlb2.asid_of_pcid[soft_pcid(v)] = 0;
    level1_flush(v, true);
}

void soft_tlb_flush_pcid(struct soft_vcpu *v, unsigned pcid)
{
    v->tlb2.asid_of_pcid[pcid & 0xfff] = 0;
    if ((pcid & 0xfff) == soft_pcid(v))
        level1_flush(v, true);
}

void soft_tlb_flush_pcids(struct soft_vcpu *v)
{
    soft_zero(v->tlb2.asid_of_pcid, sizeof(v->tlb2.asid_of_pcid));
    level1_flush(v, true);
}

void soft_tlb_flush_page(struct soft_vcpu *v, gva_t addr)
{
    level2_flush_page(v, soft_pcid(v), addr);
    level1_flush_page(v, addr);
    v->stats.tlb_page_flushes++;
}

void soft_tlb_flush_page_pcid(struct soft_vcpu *v, unsigned pcid, gva_t addr)
{
    level2_flush_page(v, pcid & 0xfff, addr);
    if ((pcid & 0xfff) == soft_pcid(v))
        level1_flush_page(v, addr);
    v->stats.tlb_page_flushes++;
}

void soft_tlb_rights_changed(struct soft_vcpu *v)
{
    level1_flush(v, false);
}
