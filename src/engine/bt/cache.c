/*
 * cache.c - the memory of translations: code, in one memory file mapped writable and executable
 * apart, and tables
 *
 * Invariants: no page of the cache is writable and executable through the same mapping. What code
 * and tables take together, pages that an earlier filling left included, is never more than the
 * cache's size. Both are bump-allocated and only ever freed as a whole.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/bt/bt.h"
#include "os/memfd.h"

/* A block takes at least this much, which bounds the number of blocks. */
#define BLOCK_HOST_MIN 128
/* So much of the cache for each bucket of the table that finds blocks. */
#define BUCKET_SHARE 1024

/* Reserved at once, populated as it is used. */
static void *reserve(size_t size, struct err *e)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);
    if (p == MAP_FAILED) {
        err_set(e, errno, "reserve %zu bytes for the translator's tables", size);
        return NULL;
    }
    return p;
}

/* Every table, to treat them alike. */
struct table {
    void **base;
    size_t entry, count, max;
};

#define TABLES 4

static void tables_of(struct bt_engine *be, struct table out[TABLES])
{
    size_t buckets = (size_t)1 << be->hash_bits;

    out[0] =
        (struct table){(void **)&be->blocks, sizeof(be->blocks[0]), be->block_count, be->block_max};
    out[1] = (struct table){(void **)&be->code_pages, sizeof(be->code_pages[0]), be->page_count,
                            be->page_max};
    out[2] =
        (struct table){(void **)&be->views, sizeof(be->views[0]), be->view_count, be->view_max};
    out[3] = (struct table){(void **)&be->hash, sizeof(be->hash[0]), buckets, buckets};
}

static int tables_create(struct bt_engine *be, struct err *e)
{
    struct table tables[TABLES];

    be->block_max = (uint32_t)(be->cache_size / BLOCK_HOST_MIN);
    be->page_max = be->block_max;
    be->view_max = BT_VIEWS_MAX;
    be->hash_bits = 63 - (unsigned)__builtin_clzll(be->cache_size / BUCKET_SHARE);
    tables_of(be, tables);
    for (unsigned i = 0; i < TABLES; i++) {
        *tables[i].base = reserve(tables[i].max * tables[i].entry, e);
        if (*tables[i].base == NULL)
            return -ENOMEM;
    }
    return 0;
}

static void tables_destroy(struct bt_engine *be)
{
    struct table tables[TABLES];

    tables_of(be, tables);
    for (unsigned i = 0; i < TABLES; i++) {
        if (*tables[i].base != NULL)
            munmap(*tables[i].base, tables[i].max * tables[i].entry);
        *tables[i].base = NULL;
    }
}

/* Zero all that is in use, and give its memory back. */
static void tables_empty(struct bt_engine *be)
{
    struct table tables[TABLES];

    tables_of(be, tables);
    for (unsigned i = 0; i < TABLES; i++)
        madvise(*tables[i].base, tables[i].count * tables[i].entry, MADV_DONTNEED);
    be->block_count = be->page_count = be->view_count = 0;
    memset(be->view_hash, 0, sizeof(be->view_hash));
    memset(be->no_share, 0, sizeof(be->no_share));
}

int bt_cache_create(struct bt_engine *be, size_t size, struct err *e)
{
    be->cache_size = align_up(size, 1u << 21);

    int fd = memfd_make("doppel-code", be->cache_size, e);
    if (fd < 0)
        return fd;
    void *rw = NULL, *rx = NULL;
    int r = memfd_map(fd, 0, be->cache_size, MEMFD_READ | MEMFD_WRITE, &rw, e);
    if (r == 0)
        r = memfd_map(fd, 0, be->cache_size, MEMFD_READ | MEMFD_EXEC, &rx, e);
    close(fd);
    be->rw = rw;
    be->rx = rx;
    if (r != 0) {
        bt_cache_destroy(be);
        return err_prefix(e, "map the code cache (is executable shared memory forbidden here?)");
    }
    r = tables_create(be, e);
    if (r != 0) {
        bt_cache_destroy(be);
        return r;
    }
    bt_stubs_make(be);
    be->used = be->stubs_end;
    return 0;
}

void bt_cache_destroy(struct bt_engine *be)
{
    memfd_unmap(be->rw, be->cache_size);
    memfd_unmap(be->rx, be->cache_size);
    be->rw = be->rx = NULL;
    tables_destroy(be);
}

size_t bt_cache_tables_size(const struct bt_engine *be)
{
    return be->block_count * sizeof(be->blocks[0]) + be->page_count * sizeof(be->code_pages[0]) +
           be->view_count * sizeof(be->views[0]) + (sizeof(be->hash[0]) << be->hash_bits);
}

bool bt_cache_has_room(const struct bt_engine *be)
{
    size_t code = be->used + BT_BLOCK_HOST_MAX + BT_BLOCK_MORE_MAX;
    /* a block may begin a page of each table */
    size_t tables = bt_cache_tables_size(be) + (TABLES - 1) * SOFT_PAGE_SIZE;

    return MAX(code, be->touched) + tables <= be->cache_size && be->block_count < be->block_max &&
           be->page_count + 2 <= be->page_max && be->view_count + 3 < be->view_max;
}

static void jump_cache_clear_group(struct bt_jump_cache *jc, unsigned group)
{
    /* an address of another slot: nothing that selects this one can equal it */
    for (unsigned i = group * BT_JC_GROUP; i < (group + 1) * BT_JC_GROUP; i++)
        jc->minus_rip[i] = i == 0 ? -UINT64_C(2) : 0;
}

void bt_jump_cache_init(struct bt_jump_cache *jc)
{
    for (unsigned i = 0; i < ARRAY_SIZE(jc->filled); i++)
        jc->filled[i] = ~UINT64_C(0);
    bt_jump_cache_clear(jc);
}

void bt_jump_cache_clear(struct bt_jump_cache *jc)
{
    for (unsigned i = 0; i < ARRAY_SIZE(jc->filled); i++) {
        for (uint64_t filled = jc->filled[i]; filled != 0; filled &= filled - 1)
            jump_cache_clear_group(jc, 64 * i + (unsigned)__builtin_ctzll(filled));
        jc->filled[i] = 0;
    }
}

/*
 * Code that was not reached this time, but before, is given back: its place is what the tables may
 * grow into now.
 */
static void code_empty(struct bt_engine *be)
{
    size_t used = align_up(be->used, SOFT_PAGE_SIZE);

    if (used < be->touched)
        memfd_discard(be->rw + used, be->touched - used);
    be->touched = used;
    be->used = be->stubs_end;
}

void bt_cache_empty(struct bt_engine *be)
{
    pthread_mutex_lock(&be->lock);
    for (size_t i = 0; i < be->block_count; i++) {
        const struct bt_block *block = &be->blocks[i];
        bt_page_forget(be, bt_block_gpa(be, block));
        if (block->has_tail)
            bt_page_forget(be, bt_tail_gpa(be, bt_block_tail(be, block)));
    }
    tables_empty(be);
    code_empty(be);
    be->generation++;
    for (unsigned i = 0; i < be->soft.vcpu_count; i++) {
        struct bt_vcpu *b = (struct bt_vcpu *)be->soft.vcpus[i];
        if (b == NULL)
            continue;
        for (unsigned set = 0; set < SOFT_TLB_SETS; set++) {
            bt_jump_cache_clear(&b->jc[set]);
            memset(b->soft.tlb[set].code_cookie, 0, sizeof(b->soft.tlb[set].code_cookie));
        }
    }
    pthread_mutex_unlock(&be->lock);
}
