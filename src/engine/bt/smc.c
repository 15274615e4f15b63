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
#include <stdlib.h>

#include "engine/bt/bt.h"

/* Writes that a page without translations takes before it counts as data again. */
#define IDLE_WRITES_MAX 64

static struct bt_code_page **page_slot(struct bt_engine *be, gpa_t gpa, struct soft_ram **ram_out)
{
    struct soft_ram *ram = soft_ram_find(&be->soft, gpa);
    if (ram == NULL)
        return NULL;
    *ram_out = ram;
    return &be->pages[ram - be->soft.ram][(gpa - ram->addr) >> SOFT_PAGE_SHIFT];
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

static struct bt_code_page *page_get(struct bt_engine *be, gpa_t gpa)
{
    struct soft_ram *ram = NULL;
    struct bt_code_page **slot = page_slot(be, gpa, &ram);
    if (*slot == NULL) {
        *slot = calloc(1, sizeof(**slot));
        if (*slot == NULL)
            abort(); /* the host is out of memory for 32 bytes: nothing could go on */
    }
    return *slot;
}

/* The block's bytes in the page that it begins in. */
static unsigned head_len(const struct bt_block *block)
{
    return (unsigned)(block->guest_len - block->tail_len);
}

void bt_page_add_block(struct bt_engine *be, struct bt_block *block)
{
    struct bt_code_page *page = page_get(be, block->gpa);

    block->page_next = page->blocks;
    page->blocks = block;
    page->granules |= granule_mask(block->gpa & 0xfff, head_len(block));
    if (block->tail_len == 0)
        return;
    page = page_get(be, block->tail_gpa);
    block->tail_next = page->tails;
    page->tails = block;
    page->granules |= granule_mask(0, block->tail_len);
}

static void block_kill(struct bt_engine *be, struct bt_block *block)
{
    bt_block_forward(be, block, block->fail);
    block->is_dead = true;
    bt_block_forget(be, block);
}

/* Forgets tails whose blocks are dead. */
static bool page_has_tails(struct bt_code_page *page)
{
    while (page->tails != NULL && page->tails->is_dead)
        page->tails = page->tails->tail_next;
    return page->tails != NULL;
}

/*
 * No translation is left on the page. Code that is rewritten and run by turns would pay for
 * protecting the page anew each time, so it stays protected until it has only been written to for
 * a while.
 */
static void page_unprotect_if_idle(struct bt_code_page *page, struct soft_ram *ram, gpa_t gpa)
{
    if (++page->idle_writes < IDLE_WRITES_MAX)
        return;
    page->idle_writes = 0;
    atomic_fetch_and(&ram->page_flags[(gpa - ram->addr) >> SOFT_PAGE_SHIFT], ~SOFT_PAGE_CODE);
}

static void page_remove_block(struct bt_engine *be, const struct bt_block *block)
{
    struct soft_ram *ram = NULL;
    struct bt_block **link = &(*page_slot(be, block->gpa, &ram))->blocks;

    while (*link != block)
        link = &(*link)->page_next;
    *link = block->page_next;
}

void bt_block_retire(struct bt_engine *be, struct bt_block *block)
{
    if (block->is_dead)
        return;
    page_remove_block(be, block);
    block_kill(be, block);
}

/* A write, by `b` if that is not NULL, has changed the block's bytes. */
static void block_lose(struct bt_engine *be, struct bt_vcpu *b, struct bt_block *block)
{
    block_kill(be, block);
    if (b != NULL) {
        b->stats.kills++;
        b->is_code_lost = true;
    }
}

void bt_code_written(struct soft_engine *se, struct soft_vcpu *v, gpa_t gpa, unsigned size)
{
    struct bt_engine *be = (struct bt_engine *)se;
    struct bt_vcpu *b = (struct bt_vcpu *)v;
    struct soft_ram *ram = NULL;

    pthread_mutex_lock(&be->lock);
    struct bt_code_page **slot = page_slot(be, gpa, &ram);
    struct bt_code_page *page = slot != NULL ? *slot : NULL;
    unsigned offset = gpa & 0xfff;
    uint64_t mask = granule_mask(offset, size);
    if (b != NULL)
        b->stats.code_writes++;
    if (page == NULL || !(page->granules & mask)) {
        if (b != NULL)
            b->stats.code_writes_beside++;
        if (page != NULL && page->blocks == NULL && !page_has_tails(page))
            page_unprotect_if_idle(page, ram, gpa);
        pthread_mutex_unlock(&be->lock);
        return;
    }
    page->granules = 0;
    for (struct bt_block **link = &page->blocks; *link != NULL;) {
        struct bt_block *block = *link;
        unsigned begin = block->gpa & 0xfff;
        if (ranges_overlap(begin, head_len(block), offset, size)) {
            *link = block->page_next;
            block_lose(be, b, block);
        } else {
            page->granules |= granule_mask(begin, head_len(block));
            link = &block->page_next;
        }
    }
    /* instructions that end here, those that a write to their other page killed among them */
    for (struct bt_block **link = &page->tails; *link != NULL;) {
        struct bt_block *block = *link;
        if (block->is_dead) {
            *link = block->tail_next;
        } else if (offset < block->tail_len) {
            *link = block->tail_next;
            page_remove_block(be, block);
            block_lose(be, b, block);
        } else {
            page->granules |= granule_mask(0, block->tail_len);
            link = &block->tail_next;
        }
    }
    page->idle_writes = 0;
    pthread_mutex_unlock(&be->lock);
}
