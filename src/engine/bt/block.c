/*
 * block.c - making blocks known, finding them, and what there is to be known of one (block.h)
 *
 * Invariant: records and code are bump-allocated and only ever freed as a whole, so blocks[] is in
 * order of address and a search by host address is a bisection.
 */
#include "engine/bt/bt.h"

#define HASH_FACTOR UINT64_C(0x9e3779b97f4a7c15)

static uint32_t *block_bucket(struct bt_engine *be, uint32_t cookie, unsigned offset, uint32_t mode)
{
    uint64_t h = ((uint64_t)mode << 36 ^ (uint64_t)cookie << 12 ^ offset) * HASH_FACTOR;
    return &be->hash[h >> (64 - be->hash_bits)];
}

static bool block_is(const struct bt_block *block, uint32_t cookie, unsigned offset, uint32_t mode)
{
    return block->cookie == cookie && block->offset == offset && block->mode == mode;
}

static uint32_t *view_bucket(struct bt_engine *be, uint64_t vpn, uint64_t pfn)
{
    return &be->view_hash[((vpn * 31 + pfn) * HASH_FACTOR >> 50) & (BT_VIEW_HASH_SIZE - 1)];
}

/* Number of the view, or 0. */
static uint32_t view_find(struct bt_engine *be, uint64_t vpn, uint64_t pfn)
{
    uint32_t number = *view_bucket(be, vpn, pfn);

    while (number != 0 && (bt_view(be, number)->vpn != vpn || bt_view(be, number)->pfn != pfn))
        number = (uint32_t)bt_view(be, number)->next;
    return number;
}

uint32_t bt_view_cookie(struct bt_engine *be, uint64_t rip, gpa_t gpa)
{
    uint64_t vpn = rip >> SOFT_PAGE_SHIFT, pfn = gpa >> SOFT_PAGE_SHIFT;
    uint32_t number = view_find(be, vpn, pfn);

    if (number != 0 || be->view_count == be->view_max)
        return number;
    uint32_t *bucket = view_bucket(be, vpn, pfn);
    be->views[be->view_count++] = (struct bt_view){.vpn = vpn, .pfn = pfn, .next = *bucket};
    *bucket = be->view_count;
    return be->view_count;
}

struct bt_block *bt_block_find(struct bt_engine *be, uint64_t rip, gpa_t gpa, uint32_t mode)
{
    uint32_t cookie = view_find(be, rip >> SOFT_PAGE_SHIFT, gpa >> SOFT_PAGE_SHIFT);
    unsigned offset = rip & 0xfff;

    if (cookie == 0)
        return NULL;
    for (uint32_t n = *block_bucket(be, cookie, offset, mode); n != 0;) {
        struct bt_block *block = bt_block(be, n);
        if (block_is(block, cookie, offset, mode) && !block->is_dead)
            return block;
        n = block->hash_next;
    }
    return NULL;
}

static uint64_t *share_word(struct bt_engine *be, uint64_t rip, gpa_t gpa, unsigned *bit)
{
    unsigned n = (unsigned)((rip ^ gpa >> 7) * HASH_FACTOR >> 48) % BT_NOSHARE_BITS;

    *bit = n % 64;
    return &be->no_share[n / 64];
}

bool bt_is_share_refused(const struct bt_engine *be, uint64_t rip, gpa_t gpa)
{
    unsigned bit;
    const uint64_t *word = share_word((struct bt_engine *)be, rip, gpa, &bit);
    return *word >> bit & 1;
}

void bt_share_refuse(struct bt_engine *be, const struct bt_block *block)
{
    unsigned bit;
    uint64_t *word = share_word(be, bt_block_rip(be, block), bt_block_gpa(be, block), &bit);
    *word |= BIT(bit);
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

/* Whoever comes to the block goes on at `target`. */
static void block_forward(struct bt_engine *be, const struct bt_block *block, const uint8_t *target)
{
    store_jump(be, bt_block_body(be, block), target);
    bt_loop_disable(be, block);
}

void bt_loop_disable(struct bt_engine *be, const struct bt_block *block)
{
    const uint8_t *guard = bt_block_guard(be, block);

    if (block->has_loop)
        store_jump(be, guard + bt_block_loop(be, block)->entry, bt_block_poll(be, block));
}

void bt_block_kill(struct bt_engine *be, struct bt_block *block)
{
    block_forward(be, block, bt_block_guard(be, block) + block->fail);
    block->is_dead = true;
}

/* Dead blocks of the same code lead to the new one, so that links to them stay quick. */
static void forward_dead(struct bt_engine *be, uint32_t *link, const struct bt_block *block)
{
    while (*link != 0) {
        struct bt_block *other = bt_block(be, *link);
        if (other->is_dead && block_is(other, block->cookie, block->offset, block->mode)) {
            block_forward(be, other, bt_block_body(be, block));
            *link = other->hash_next;
        } else {
            link = &other->hash_next;
        }
    }
}

/* ---- what lies behind a block's code ---- */

static uint8_t *block_more(const struct bt_engine *be, const struct bt_block *block)
{
    return be->rw + block->at + block->more;
}

struct bt_loop_map *bt_block_loop(const struct bt_engine *be, const struct bt_block *block)
{
    return (struct bt_loop_map *)(void *)block_more(be, block);
}

struct bt_tail *bt_block_tail(const struct bt_engine *be, const struct bt_block *block)
{
    return (struct bt_tail *)(void *)(block_more(be, block) +
                                      (block->has_loop ? sizeof(struct bt_loop_map) : 0));
}

const struct bt_copy_map *bt_block_copies(const struct bt_engine *be, const struct bt_block *block)
{
    return (const struct bt_copy_map *)(void *)(bt_block_tail(be, block) + block->has_tail);
}

static uint16_t *block_words(const struct bt_engine *be, const struct bt_block *block)
{
    const struct bt_copy_map *copies = bt_block_copies(be, block);

    if (block->has_loop)
        copies += bt_block_loop(be, block)->count;
    return (uint16_t *)(uintptr_t)copies;
}

static uint16_t word_of(const struct bt_draft *draft, unsigned i)
{
    const struct bt_insn_map *m = &draft->map[i];

    if (i == 0)
        return m->host;
    return (uint16_t)((m->guest - m[-1].guest) << 12 | (m->host - m[-1].host));
}

/* Write all of it; returns its end. */
static uint8_t *more_fill(struct bt_engine *be, struct bt_block *block,
                          const struct bt_draft *draft)
{
    if (block->has_loop)
        *bt_block_loop(be, block) = draft->loop;
    if (block->has_tail)
        *bt_block_tail(be, block) =
            (struct bt_tail){.cookie = draft->tail_cookie, .len = draft->tail_len};
    struct bt_copy_map *copies = (struct bt_copy_map *)(uintptr_t)bt_block_copies(be, block);
    for (unsigned i = 0; block->has_loop && i < draft->loop.count; i++)
        copies[i] = draft->copies[i];
    uint16_t *words = block_words(be, block);
    for (unsigned i = 0; i < draft->insn_count; i++)
        words[i] = word_of(draft, i);
    return (uint8_t *)(words + draft->insn_count);
}

struct bt_block *bt_block_publish(struct bt_engine *be, const struct bt_draft *draft)
{
    struct bt_block *block = &be->blocks[be->block_count++];

    *block = (struct bt_block){
        .at = (uint32_t)(draft->guard - be->rx),
        .cookie = draft->cookie,
        .mode = draft->mode,
        .guest_len = draft->guest_len,
        .offset = draft->rip & 0xfff,
        .has_shares = draft->has_shares,
        .has_loop = draft->loop_entry != NULL,
        .has_tail = draft->tail_gpa != BT_NO_TAIL,
        .more = (uint16_t)align_up((uint64_t)(draft->end - draft->guard), 8),
        .insn_count = (uint8_t)draft->insn_count,
        .fail = (uint8_t)(draft->fail - draft->guard),
        .poll = (uint8_t)(draft->poll - draft->guard),
        .body = (uint8_t)(draft->body - draft->guard),
    };
    be->used = align_up((uint64_t)(more_fill(be, block, draft) - be->rw), 16);
    uint32_t *bucket = block_bucket(be, block->cookie, block->offset, block->mode);
    forward_dead(be, bucket, block);
    block->hash_next = *bucket;
    *bucket = bt_block_number(be, block);
    bt_page_add_block(be, block);
    return block;
}

struct bt_block *bt_block_at(struct bt_engine *be, const uint8_t *rx)
{
    struct bt_block *found = NULL;
    uint64_t at = (uint64_t)(rx - be->rx);

    pthread_mutex_lock(&be->lock);
    size_t lo = 0, hi = be->block_count;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (be->blocks[mid].at <= at)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (lo > 0 && at < be->used)
        found = &be->blocks[lo - 1];
    pthread_mutex_unlock(&be->lock);
    return found;
}

unsigned bt_block_insn_at(const struct bt_engine *be, const struct bt_block *block,
                          const uint8_t *rx)
{
    const uint16_t *words = block_words(be, block);
    uint64_t offset = (uint64_t)(rx - bt_block_guard(be, block));
    uint64_t host = words[0] & BT_MAP_HOST_MAX;
    unsigned i = 0;

    while (i + 1u < block->insn_count && host + (words[i + 1] & BT_MAP_HOST_MAX) <= offset)
        host += words[++i] & BT_MAP_HOST_MAX;
    return i;
}

struct bt_insn_map bt_block_insn(const struct bt_engine *be, const struct bt_block *block,
                                 unsigned index)
{
    const uint16_t *words = block_words(be, block);
    struct bt_insn_map m = {0, 0};

    for (unsigned i = 0; i <= index; i++) {
        m.guest = (uint16_t)(m.guest + (words[i] >> 12));
        m.host = (uint16_t)(m.host + (words[i] & BT_MAP_HOST_MAX));
    }
    return m;
}
