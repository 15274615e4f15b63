/*
 * cache.c - the code cache: one memory file mapped writable and executable, block look-up
 *
 * Invariant: no page of the cache is writable and executable through the same mapping. Code
 * and bookkeeping are bump-allocated and only ever freed as a whole, so blocks[] is in
 * order of address and a search by host address is a bisection.
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
#define MAPS_PER_BLOCK 12
#define VIEWS_MAX (1u << 17)

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

static void release(void *p, size_t size)
{
    if (p != NULL)
        munmap(p, size);
}

int bt_cache_create(struct bt_engine *be, size_t size, struct err *e)
{
    be->cache_size = align_up(size, 1u << 21);
    be->block_max = be->cache_size / BLOCK_HOST_MIN;
    be->map_max = be->block_max * MAPS_PER_BLOCK;
    be->view_max = VIEWS_MAX;

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
    be->blocks = reserve(be->block_max * sizeof(be->blocks[0]), e);
    be->block_pool = reserve(be->block_max * sizeof(be->block_pool[0]), e);
    be->maps = reserve(be->map_max * sizeof(be->maps[0]), e);
    be->views = reserve(be->view_max * sizeof(be->views[0]), e);
    if (be->blocks == NULL || be->block_pool == NULL || be->maps == NULL || be->views == NULL) {
        bt_cache_destroy(be);
        return -ENOMEM;
    }
    bt_stubs_make(be);
    be->used = be->stubs_end;
    return 0;
}

void bt_cache_destroy(struct bt_engine *be)
{
    release(be->rw, be->cache_size);
    release(be->rx, be->cache_size);
    release(be->blocks, be->block_max * sizeof(be->blocks[0]));
    release(be->block_pool, be->block_max * sizeof(be->block_pool[0]));
    release(be->maps, be->map_max * sizeof(be->maps[0]));
    release(be->views, be->view_max * sizeof(be->views[0]));
    be->rw = be->rx = NULL;
    be->blocks = NULL;
    be->block_pool = NULL;
    be->maps = NULL;
    be->views = NULL;
}

bool bt_cache_has_room(const struct bt_engine *be)
{
    return be->used + BT_BLOCK_HOST_MAX <= be->cache_size && be->block_count < be->block_max &&
           be->map_count + BT_BLOCK_INSNS_MAX + 1 + BT_LOOP_MAP_MAX <= be->map_max &&
           be->view_count + 3 < be->view_max;
}

void bt_jump_cache_clear(struct bt_jump_cache *jc)
{
    /* an address of another slot: nothing that selects this one can equal it */
    for (unsigned i = 0; i < BT_JC_SIZE; i++)
        jc->minus_rip[i] = i == 0 ? -UINT64_C(2) : 0;
}

/* No code was translated from that page. */
static void page_empty(struct bt_engine *be, gpa_t gpa)
{
    struct soft_ram *ram = soft_ram_find(&be->soft, gpa);

    if (ram == NULL)
        return;
    uint64_t page = (gpa - ram->addr) >> SOFT_PAGE_SHIFT;
    struct bt_code_page *code = be->pages[ram - be->soft.ram][page];
    if (code != NULL) {
        code->blocks = NULL;
        code->tails = NULL;
        code->granules = 0;
    }
    atomic_fetch_and(&ram->page_flags[page], ~SOFT_PAGE_CODE);
}

void bt_cache_empty(struct bt_engine *be)
{
    pthread_mutex_lock(&be->lock);
    for (size_t i = 0; i < be->block_count; i++) {
        page_empty(be, be->blocks[i]->gpa);
        if (be->blocks[i]->tail_len != 0)
            page_empty(be, be->blocks[i]->tail_gpa);
    }
    memset(be->hash, 0, sizeof(be->hash));
    memset(be->dead, 0, sizeof(be->dead));
    memset(be->no_share, 0, sizeof(be->no_share));
    memset(be->view_hash, 0, sizeof(be->view_hash));
    be->block_count = 0;
    be->map_count = 0;
    be->view_count = 0;
    be->used = be->stubs_end;
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

static unsigned block_hash(uint64_t rip, gpa_t gpa, uint32_t mode)
{
    uint64_t h = (rip ^ gpa >> 7 ^ (uint64_t)mode << 20) * UINT64_C(0x9e3779b97f4a7c15);
    return (unsigned)(h >> 48) & (BT_HASH_SIZE - 1);
}

static unsigned share_bit(uint64_t rip, gpa_t gpa)
{
    return block_hash(rip, gpa, 0) % BT_NOSHARE_BITS;
}

bool bt_is_share_refused(const struct bt_engine *be, uint64_t rip, gpa_t gpa)
{
    unsigned bit = share_bit(rip, gpa);
    return be->no_share[bit / 64] >> (bit % 64) & 1;
}

void bt_share_refuse(struct bt_engine *be, const struct bt_block *block)
{
    unsigned bit = share_bit(block->rip, block->gpa);
    be->no_share[bit / 64] |= BIT(bit % 64);
}

void bt_block_forget(struct bt_engine *be, struct bt_block *block)
{
    unsigned h = block_hash(block->rip, block->gpa, block->mode);
    struct bt_block **link = &be->hash[h];

    while (*link != NULL && *link != block)
        link = &(*link)->hash_next;
    if (*link != NULL)
        *link = block->hash_next;
    block->hash_next = be->dead[h];
    be->dead[h] = block;
}

/* Turn the NOP, or jump, at `at` into a jump to `target`. */
static void store_jump(struct bt_engine *be, const uint8_t *at, const uint8_t *target)
{
    unsigned shift = 8 * ((uintptr_t)at & 7); /* at most 24 */
    uint64_t *word = (uint64_t *)(void *)bt_rw(be, at - shift / 8);
    uint32_t rel = (uint32_t)(target - (at + 5));
    uint64_t value = __atomic_load_n(word, __ATOMIC_RELAXED);
    value &= ~(UINT64_C(0xffffffffff) << shift);
    value |= ((uint64_t)rel << 8 | 0xe9) << shift;
    __atomic_store_n(word, value, __ATOMIC_SEQ_CST);
}

void bt_block_forward(struct bt_engine *be, const struct bt_block *block, const uint8_t *target)
{
    store_jump(be, block->body, target);
    bt_loop_disable(be, block);
}

void bt_loop_disable(struct bt_engine *be, const struct bt_block *block)
{
    if (block->loop.entry != NULL)
        store_jump(be, block->loop.entry, block->poll);
}

/* Dead blocks of the same code lead to the new one, so that links to them stay quick. */
static void forward_dead(struct bt_engine *be, unsigned h, const struct bt_block *block)
{
    struct bt_block **link = &be->dead[h];

    while (*link != NULL) {
        struct bt_block *dead = *link;
        if (dead->rip == block->rip && dead->gpa == block->gpa && dead->mode == block->mode) {
            bt_block_forward(be, dead, block->body);
            *link = dead->hash_next;
        } else {
            link = &dead->hash_next;
        }
    }
}

struct bt_block *bt_block_find(struct bt_engine *be, uint64_t rip, gpa_t gpa, uint32_t mode)
{
    struct bt_block *block = be->hash[block_hash(rip, gpa, mode)];
    while (block != NULL && (block->rip != rip || block->gpa != gpa || block->mode != mode))
        block = block->hash_next;
    return block;
}

struct bt_block *bt_block_at(struct bt_engine *be, const uint8_t *rx)
{
    struct bt_block *found = NULL;
    pthread_mutex_lock(&be->lock);
    size_t lo = 0, hi = be->block_count;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (be->blocks[mid]->guard <= rx)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (lo > 0 && rx < be->blocks[lo - 1]->end)
        found = be->blocks[lo - 1];
    pthread_mutex_unlock(&be->lock);
    return found;
}

unsigned bt_block_insn_at(const struct bt_block *block, const uint8_t *rx)
{
    uint32_t offset = (uint32_t)(rx - block->guard);
    unsigned i = block->insn_count;
    while (i > 0 && block->map[i].host_offset > offset)
        i--;
    return i < block->insn_count ? i : block->insn_count - 1u;
}

void bt_block_publish(struct bt_engine *be, struct bt_block *block)
{
    unsigned h = block_hash(block->rip, block->gpa, block->mode);
    block->hash_next = be->hash[h];
    be->hash[h] = block;
    forward_dead(be, h, block);
    be->blocks[be->block_count++] = block;
    be->map_count += block->map_count;
    be->used = align_up((uint64_t)(block->end - be->rx), 16);
    bt_page_add_block(be, block);
}

uint32_t bt_view_cookie(struct bt_engine *be, uint64_t rip, gpa_t gpa)
{
    uint64_t vpn = rip >> SOFT_PAGE_SHIFT, pfn = gpa >> SOFT_PAGE_SHIFT;
    unsigned h =
        (unsigned)((vpn * 31 + pfn) * UINT64_C(0x9e3779b97f4a7c15) >> 50) & (BT_VIEW_HASH_SIZE - 1);
    for (uint32_t i = be->view_hash[h]; i != 0; i = be->views[i - 1].next)
        if (be->views[i - 1].vpn == vpn && be->views[i - 1].pfn == pfn)
            return i;
    if (be->view_count == be->view_max)
        return 0;
    be->views[be->view_count] = (struct bt_view){.vpn = vpn, .pfn = pfn, .next = be->view_hash[h]};
    be->view_hash[h] = ++be->view_count;
    return be->view_count;
}
