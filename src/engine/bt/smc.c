/*
 * smc.c - translated code and writes to it
 *
 * A page that code was translated from has SOFT_PAGE_CODE: no vCPU holds a write entry for
 * it, so every write takes the C path and ends in bt_code_written, whichever linear address
 * it came through. Pieces of 64 bytes tell code from data beside it.
 *
 * Order: a translator sets SOFT_PAGE_CODE, then drops every write entry (its own at once, those
 * of others within an exclusive section), and only then reads the page's bytes. A writer that
 * fills a write entry sets its SOFT_PAGE_WRITER bit, then looks for SOFT_PAGE_CODE. Both are
 * sequentially consistent, so at least one sees the other.
 */
#include <stdatomic.h>

#include "engine/bt/bt.h"

/* Writes that a page without translations takes before it counts as data again. */
#define IDLE_WRITES_MAX 64

/* Where the number of that page's code page is; NULL: not RAM. */
static uint32_t *page_slot(struct bt_engine *be, gpa_t gpa)
{
    struct soft_ram *ram = soft_ram_find(&be->soft, gpa);
    if (ram == NULL)
        return NULL;
    return &be->pages[ram - be->soft.ram][(gpa - ram->addr) >> SOFT_PAGE_SHIFT];
}

/* NULL: nothing was translated from that page since the cache was emptied. */
static struct bt_code_page *page_find(struct bt_engine *be, gpa_t gpa)
{
    uint32_t *slot = page_slot(be, gpa);
    return slot == NULL || *slot == 0 ? NULL : &be->code_pages[*slot - 1];
}

/* Writes to it are nobody's business from now on. */
static void page_unprotect(struct bt_engine *be, gpa_t gpa)
{
    struct soft_ram *ram = soft_ram_find(&be->soft, gpa);
    if (ram != NULL)
        atomic_fetch_and(&ram->page_flags[(gpa - ram->addr) >> SOFT_PAGE_SHIFT], ~SOFT_PAGE_CODE);
}

void bt_page_forget(struct bt_engine *be, gpa_t gpa)
{
    uint32_t *slot = page_slot(be, gpa);
    if (slot != NULL)
        *slot = 0;
    page_unprotect(be, gpa);
}

static uint64_t granule_mask(unsigned offset, unsigned size)
{
    unsigned first = offset / 64, last = (offset + size - 1) / 64;
    return bits(~UINT64_C(0), last - first, 0) << first;
}

bool bt_page_is_protected(struct bt_engine *be, gpa_t gpa)
{
    struct soft_ram *ram = soft_ram_find(&be->soft, gpa);
    uint64_t page = (gpa - ram->addr) >> SOFT_PAGE_SHIFT;
    return (atomic_load(&ram->page_flags[page]) & SOFT_PAGE_CODE) != 0;
}

void bt_page_protect(struct bt_vcpu *b, gpa_t gpa)
{
    struct bt_engine *be = b->engine;
    struct soft_ram *ram = soft_ram_find(&be->soft, gpa);
    uint64_t page = (gpa - ram->addr) >> SOFT_PAGE_SHIFT;
    uint8_t *host = ram->host + (page << SOFT_PAGE_SHIFT);
    uint32_t mine = SOFT_PAGE_WRITER(b->soft.index);

    b->stats.protects++;
    uint32_t flags = atomic_load(&ram->page_flags[page]);
    if (!(flags & ~(SOFT_PAGE_CODE | mine))) {
        /* nobody else can write to it: claim it, unless somebody comes in this moment */
        if (atomic_compare_exchange_strong(&ram->page_flags[page], &flags, SOFT_PAGE_CODE)) {
            soft_tlb_drop_writes(&b->soft, host);
            return;
        }
    }
    b->stats.protect_exclusive++;
    soft_exclusive_begin(&b->soft);
    atomic_store(&ram->page_flags[page], SOFT_PAGE_CODE);
    for (unsigned i = 0; i < be->soft.vcpu_count; i++)
        if (be->soft.vcpus[i] != NULL)
            soft_tlb_drop_writes(be->soft.vcpus[i], host);
    soft_exclusive_end(&b->soft);
}

/* bt_cache_has_room has seen to it that there is one left. */
static struct bt_code_page *page_get(struct bt_engine *be, gpa_t gpa)
{
    uint32_t *slot = page_slot(be, gpa);

    if (*slot == 0) {
        be->code_pages[be->page_count++] = (struct bt_code_page){0};
        *slot = be->page_count;
    }
    return &be->code_pages[*slot - 1];
}

/* The block's bytes in the page that it begins in. */
static unsigned head_len(const struct bt_engine *be, const struct bt_block *block)
{
    return block->guest_len - (block->has_tail ? bt_block_tail(be, block)->len : 0u);
}

void bt_page_add_block(struct bt_engine *be, struct bt_block *block)
{
    struct bt_code_page *page = page_get(be, bt_block_gpa(be, block));

    block->page_next = page->blocks;
    page->blocks = bt_block_number(be, block);
    page->granules |= granule_mask(block->offset, head_len(be, block));
    if (!block->has_tail)
        return;
    struct bt_tail *tail = bt_block_tail(be, block);
    page = page_get(be, bt_tail_gpa(be, tail));
    tail->next = page->tails;
    page->tails = bt_block_number(be, block);
    page->granules |= granule_mask(0, tail->len);
}

/* Forgets tails whose blocks are dead. */
static bool page_has_tails(struct bt_engine *be, struct bt_code_page *page)
{
    while (page->tails != 0 && bt_block(be, page->tails)->is_dead)
        page->tails = bt_block_tail(be, bt_block(be, page->tails))->next;
    return page->tails != 0;
}

/*
 * No translation is left on the page. Code that is rewritten and run by turns would pay for
 * protecting the page anew each time, so it stays protected until it has only been written to for
 * a while.
 */
static void page_unprotect_if_idle(struct bt_engine *be, struct bt_code_page *page, gpa_t gpa)
{
    if (++page->idle_writes < IDLE_WRITES_MAX)
        return;
    page->idle_writes = 0;
    page_unprotect(be, gpa);
}

static void page_remove_block(struct bt_engine *be, const struct bt_block *block)
{
    uint32_t *link = &page_find(be, bt_block_gpa(be, block))->blocks;

    while (bt_block(be, *link) != block)
        link = &bt_block(be, *link)->page_next;
    *link = block->page_next;
}

void bt_block_retire(struct bt_engine *be, struct bt_block *block)
{
    if (block->is_dead)
        return;
    page_remove_block(be, block);
    bt_block_kill(be, block);
}

/* A write, by `b` if that is not NULL, has changed the block's bytes. */
static void block_lose(struct bt_engine *be, struct bt_vcpu *b, struct bt_block *block)
{
    bt_block_kill(be, block);
    if (b != NULL) {
        b->stats.kills++;
        b->is_code_lost = true;
    }
}

void bt_code_written(struct soft_engine *se, struct soft_vcpu *v, gpa_t gpa, unsigned size)
{
    struct bt_engine *be = (struct bt_engine *)se;
    struct bt_vcpu *b = (struct bt_vcpu *)v;

    pthread_mutex_lock(&be->lock);
    struct bt_code_page *page = page_find(be, gpa);
    unsigned offset = gpa & 0xfff;
    uint64_t mask = granule_mask(offset, size);
    if (b != NULL)
        b->stats.code_writes++;
    if (page == NULL || !(page->granules & mask)) {
        if (b != NULL)
            b->stats.code_writes_beside++;
        if (page == NULL)
            page_unprotect(be, gpa); /* the cache was emptied before anything came of it */
        else if (page->blocks == 0 && !page_has_tails(be, page))
            page_unprotect_if_idle(be, page, gpa);
        pthread_mutex_unlock(&be->lock);
        return;
    }
    page->granules = 0;
    for (uint32_t *link = &page->blocks; *link != 0;) {
        struct bt_block *block = bt_block(be, *link);
        if (ranges_overlap(block->offset, head_len(be, block), offset, size)) {
            *link = block->page_next;
            block_lose(be, b, block);
        } else {
            page->granules |= granule_mask(block->offset, head_len(be, block));
            link = &block->page_next;
        }
    }
    /* instructions that end here, those that a write to their other page killed among them */
    for (uint32_t *link = &page->tails; *link != 0;) {
        struct bt_block *block = bt_block(be, *link);
        struct bt_tail *tail = bt_block_tail(be, block);
        if (block->is_dead) {
            *link = tail->next;
        } else if (offset < tail->len) {
            *link = tail->next;
            page_remove_block(be, block);
            block_lose(be, b, block);
        } else {
            page->granules |= granule_mask(0, tail->len);
            link = &tail->next;
        }
    }
    page->idle_writes = 0;
    pthread_mutex_unlock(&be->lock);
}
