/*
 * space.c - address spaces: guest-physical memory, and I/O ports
 *
 * Invariant: a table, once published, never changes; its regions are sorted by address and do
 * not overlap. Adding and removing build a new table and leave the old one to readers that are
 * still in it, until the space is destroyed.
 */
#include "mem/space.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "os/futex.h"
#include "os/memfd.h"

enum region_kind { REGION_RAM, REGION_ROM, REGION_IO, REGION_SWITCH, REGION_NOTHING };

struct region {
    uint64_t addr;
    uint64_t size;
    enum region_kind kind;
    uint8_t *host;              /* RAM and ROM */
    struct space_window window; /* I/O; ROM whose writes a device takes, else without ops */
    struct space_switch *sw;    /* REGION_SWITCH */
};

/* The region that a switch is at present: one of `choices`, all of the same address and size. */
struct space_switch {
    struct space_switch *next; /* the space's list */
    const struct region *_Atomic now;
    unsigned count;
    struct region choices[];
};

struct space_table {
    struct space_table *older;
    /* Where the last look-up hit; a guess that any reader may change. */
    _Atomic uint32_t last;
    uint32_t count;
    struct region regions[];
};

struct space {
    const char *name;
    uint64_t limit;
    struct space_table *_Atomic table;
    struct space_switch *switches;
    space_written_fn written;
    void *written_ctx;
};

/* ---- building ---- */

static struct space_table *space_table_alloc(uint32_t count)
{
    struct space_table *t = calloc(1, sizeof(struct space_table) + count * sizeof(struct region));
    if (t != NULL)
        t->count = count;
    return t;
}

int space_create(const char *name, uint64_t limit, struct space **out, struct err *e)
{
    struct space *space = calloc(1, sizeof(*space));
    struct space_table *table = space_table_alloc(0);
    if (space == NULL || table == NULL) {
        free(space);
        free(table);
        return err_set(e, ENOMEM, "allocate the address space '%s'", name);
    }
    space->name = name;
    space->limit = limit;
    atomic_init(&space->table, table);
    *out = space;
    return 0;
}

void space_destroy(struct space *space)
{
    if (space == NULL)
        return;
    for (struct space_table *t = atomic_load(&space->table); t != NULL;) {
        struct space_table *older = t->older;
        free(t);
        t = older;
    }
    for (struct space_switch *sw = space->switches; sw != NULL;) {
        struct space_switch *next = sw->next;
        free(sw);
        sw = next;
    }
    free(space);
}

static void space_publish(struct space *space, struct space_table *old, struct space_table *table)
{
    table->older = old;
    atomic_store_explicit(&space->table, table, memory_order_release);
}

static int space_add(struct space *space, const struct region *region, struct err *e)
{
    struct space_table *old = atomic_load(&space->table);
    if (region->size == 0 || !range_fits(region->addr, region->size, space->limit))
        return err_set(e, 0, "%s: a region of %#" PRIx64 " bytes at %#" PRIx64 " is out of range",
                       space->name, region->size, region->addr);
    uint32_t at = 0;
    for (uint32_t i = 0; i < old->count; i++) {
        const struct region *r = &old->regions[i];
        /* Written so that a region which ends at 2^64 does not wrap. */
        if (r->addr <= region->addr + (region->size - 1) && region->addr <= r->addr + (r->size - 1))
            return err_set(e, EEXIST,
                           "%s: a region of %#" PRIx64 " bytes at %#" PRIx64
                           " overlaps the one at %#" PRIx64,
                           space->name, region->size, region->addr, r->addr);
        if (r->addr < region->addr)
            at = i + 1;
    }
    struct space_table *table = space_table_alloc(old->count + 1);
    if (table == NULL)
        return err_set(e, ENOMEM, "%s: add a region", space->name);
    memcpy(table->regions, old->regions, at * sizeof(*region));
    table->regions[at] = *region;
    memcpy(table->regions + at + 1, old->regions + at, (old->count - at) * sizeof(*region));
    space_publish(space, old, table);
    return 0;
}

int space_add_ram(struct space *space, uint64_t addr, void *host, uint64_t size, bool is_rom,
                  struct err *e)
{
    struct region region = {
        .addr = addr, .size = size, .kind = is_rom ? REGION_ROM : REGION_RAM, .host = host};
    return space_add(space, &region, e);
}

static unsigned ops_min_size(const struct space_ops *ops)
{
    return ops->min_size != 0 ? ops->min_size : 1;
}

static unsigned ops_max_size(const struct space_ops *ops)
{
    return ops->max_size != 0 ? ops->max_size : 4;
}

static int space_check_ops(const struct space *space, uint64_t addr, uint64_t size,
                           const struct space_ops *ops, struct err *e)
{
    unsigned min_size = ops_min_size(ops), max_size = ops_max_size(ops);
    /* A window that its own smallest access does not divide would be read past its end. */
    if (!is_pow2(min_size) || !is_pow2(max_size) || max_size > 8 || min_size > max_size ||
        size % min_size != 0)
        return err_set(e, 0, "%s: the device at %#" PRIx64 " declares impossible access sizes",
                       space->name, addr);
    return 0;
}

int space_add_io(struct space *space, uint64_t addr, uint64_t size, const struct space_ops *ops,
                 void *ctx, pthread_mutex_t *lock, struct err *e)
{
    struct region region = {
        .addr = addr,
        .size = size,
        .kind = REGION_IO,
        .window = {.ops = ops, .ctx = ctx, .lock = lock},
    };
    int rc = space_check_ops(space, addr, size, ops, e);
    return rc == 0 ? space_add(space, &region, e) : rc;
}

/* ---- switches ---- */

static struct region choice_region(uint64_t addr, uint64_t size, const struct space_choice *choice)
{
    static const enum region_kind kinds[] = {
        [SPACE_NOTHING] = REGION_NOTHING, [SPACE_ROM] = REGION_ROM,        [SPACE_RAM] = REGION_RAM,
        [SPACE_WINDOW] = REGION_IO,       [SPACE_ROM_WINDOW] = REGION_ROM,
    };
    return (struct region){.addr = addr,
                           .size = size,
                           .kind = kinds[choice->kind],
                           .host = choice->host,
                           .window = choice->window};
}

int space_add_switch(struct space *space, uint64_t addr, uint64_t size,
                     const struct space_choice *choices, unsigned count, struct space_switch **out,
                     struct err *e)
{
    struct region region = {.addr = addr, .size = size, .kind = REGION_SWITCH};
    struct space_switch *sw = calloc(1, sizeof(*sw) + count * sizeof(struct region));
    int rc = 0;
    if (sw == NULL)
        return err_set(e, ENOMEM, "%s: add a region", space->name);
    sw->count = count;
    for (unsigned i = 0; rc == 0 && i < count; i++) {
        sw->choices[i] = choice_region(addr, size, &choices[i]);
        if (choices[i].window.ops != NULL)
            rc = space_check_ops(space, addr, size, choices[i].window.ops, e);
    }
    atomic_init(&sw->now, &sw->choices[0]);
    region.sw = sw;
    if (rc == 0)
        rc = space_add(space, &region, e);
    if (rc != 0) {
        free(sw);
        return rc;
    }
    sw->next = space->switches;
    space->switches = sw;
    *out = sw;
    return 0;
}

void space_switch_set(struct space_switch *sw, unsigned choice)
{
    assert(choice < sw->count);
    atomic_store_explicit(&sw->now, &sw->choices[choice], memory_order_release);
}

/* What a switch is now; NULL: nothing. Other regions are what they are. */
static inline const struct region *region_resolve(const struct region *r)
{
    if (LIKELY(r->kind != REGION_SWITCH))
        return r;
    r = atomic_load_explicit(&r->sw->now, memory_order_acquire);
    return r->kind != REGION_NOTHING ? r : NULL;
}

int space_remove(struct space *space, uint64_t addr, struct err *e)
{
    struct space_table *old = atomic_load(&space->table);
    for (uint32_t i = 0; i < old->count; i++) {
        if (old->regions[i].addr != addr)
            continue;
        struct space_table *table = space_table_alloc(old->count - 1);
        if (table == NULL)
            return err_set(e, ENOMEM, "%s: remove a region", space->name);
        memcpy(table->regions, old->regions, i * sizeof(struct region));
        memcpy(table->regions + i, old->regions + i + 1,
               (old->count - i - 1) * sizeof(struct region));
        space_publish(space, old, table);
        return 0;
    }
    return err_set(e, ENOENT, "%s: no region at %#" PRIx64, space->name, addr);
}

void space_set_watcher(struct space *space, space_written_fn fn, void *ctx)
{
    space->written_ctx = ctx;
    space->written = fn;
}

void space_note_written(struct space *space, uint64_t addr, uint64_t size)
{
    if (space->written != NULL && size != 0)
        space->written(space->written_ctx, addr, size);
}

int space_for_each_ram(struct space *space, space_ram_fn fn, void *ctx, struct err *e)
{
    struct space_table *t = atomic_load_explicit(&space->table, memory_order_acquire);
    for (uint32_t i = 0; i < t->count; i++) {
        const struct region *r = region_resolve(&t->regions[i]);
        if (r == NULL || r->kind == REGION_IO)
            continue;
        int rc = fn(ctx, r->addr, r->host, r->size, r->kind == REGION_ROM, e);
        if (rc != 0)
            return rc;
    }
    return 0;
}

/* ---- looking up ---- */

/*
 * The region that holds addr, or NULL. *left is then how many bytes from addr on are the
 * region's, or the gap's.
 */
static const struct region *space_find(struct space *space, uint64_t addr, uint64_t *left)
{
    struct space_table *t = atomic_load_explicit(&space->table, memory_order_acquire);
    uint32_t last = atomic_load_explicit(&t->last, memory_order_relaxed);
    if (LIKELY(last < t->count)) {
        const struct region *r = &t->regions[last];
        if (LIKELY(addr - r->addr < r->size)) {
            *left = r->size - (addr - r->addr);
            return region_resolve(r);
        }
    }
    /* The first region that starts behind addr. */
    uint32_t lo = 0, hi = t->count;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (t->regions[mid].addr <= addr)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (lo > 0 && addr - t->regions[lo - 1].addr < t->regions[lo - 1].size) {
        const struct region *r = &t->regions[lo - 1];
        atomic_store_explicit(&t->last, lo - 1, memory_order_relaxed);
        *left = r->size - (addr - r->addr);
        return region_resolve(r);
    }
    *left = lo < t->count ? t->regions[lo].addr - addr : UINT64_MAX;
    return NULL;
}

void *space_ram_ptr(struct space *space, uint64_t addr, uint64_t size, bool is_write)
{
    uint64_t left;
    const struct region *r = space_find(space, addr, &left);
    if (r == NULL || r->kind == REGION_IO || (is_write && r->kind == REGION_ROM) || left < size)
        return NULL;
    return r->host + (addr - r->addr);
}

/* ---- giving back ---- */

#define PAGE_SIZE 4096u

uint64_t space_discard(struct space *space, uint64_t addr, uint64_t size)
{
    uint64_t given = 0;

    while (size > 0) {
        uint64_t left;
        const struct region *r = space_find(space, addr, &left);
        uint64_t n = MIN(left, size);
        uint64_t first = align_up(addr, PAGE_SIZE), end = align_down(addr + n, PAGE_SIZE);
        if (r != NULL && r->kind == REGION_RAM && first < end && first >= addr &&
            memfd_discard(r->host + (first - r->addr), end - first)) {
            space_note_written(space, first, end - first);
            given += end - first;
        }
        addr += n;
        size -= n;
    }
    return given;
}

/* ---- device windows ---- */

/* The largest access that the device takes at `offset` when `size` bytes are still wanted. */
static unsigned window_step(const struct space_window *w, uint64_t offset, unsigned size)
{
    unsigned min_size = ops_min_size(w->ops);
    unsigned step = MIN(size, ops_max_size(w->ops));
    while (!is_pow2(step))
        step &= step - 1;
    /* A device that does not take bytes decodes aligned registers only. */
    if (min_size > 1)
        while (step > min_size && (offset & (step - 1)) != 0)
            step >>= 1;
    return step;
}

/* Does [offset, offset + step) cut a register that the device takes only whole? */
static bool window_is_partial(const struct space_window *w, uint64_t offset, unsigned step)
{
    unsigned min_size = ops_min_size(w->ops);
    return step < min_size || (offset & (min_size - 1)) != 0;
}

/* Under the window's lock. */
static uint64_t window_read(const struct space_window *w, uint64_t offset, unsigned size)
{
    uint64_t value = 0;
    for (unsigned done = 0; done < size;) {
        uint64_t at = offset + done;
        unsigned step = window_step(w, at, size - done);
        uint64_t part;
        if (LIKELY(!window_is_partial(w, at, step))) {
            part = w->ops->read(w->ctx, at, step);
        } else {
            unsigned min_size = ops_min_size(w->ops);
            unsigned skip = (unsigned)(at & (min_size - 1));
            step = MIN(size - done, min_size - skip);
            part = w->ops->read(w->ctx, at - skip, min_size) >> (8 * skip);
        }
        value |= (part & mask_bytes(step)) << (8 * done);
        done += step;
    }
    return value;
}

/* Under the window's lock. A part of a register is merged into what the device reads as. */
static void window_write(const struct space_window *w, uint64_t offset, uint64_t value,
                         unsigned size)
{
    for (unsigned done = 0; done < size;) {
        uint64_t at = offset + done;
        uint64_t part = value >> (8 * done);
        unsigned step = window_step(w, at, size - done);
        if (LIKELY(!window_is_partial(w, at, step))) {
            w->ops->write(w->ctx, at, part & mask_bytes(step), step);
        } else {
            unsigned min_size = ops_min_size(w->ops);
            unsigned skip = (unsigned)(at & (min_size - 1));
            step = MIN(size - done, min_size - skip);
            uint64_t mask = mask_bytes(step) << (8 * skip);
            uint64_t old = w->ops->read(w->ctx, at - skip, min_size) & mask_bytes(min_size);
            w->ops->write(w->ctx, at - skip, (old & ~mask) | ((part << (8 * skip)) & mask),
                          min_size);
        }
        done += step;
    }
}

uint64_t space_window_load(const struct space_window *window, uint64_t offset, unsigned size)
{
    if (window->lock != NULL)
        pthread_mutex_lock(window->lock);
    uint64_t value = window_read(window, offset, size);
    if (window->lock != NULL)
        pthread_mutex_unlock(window->lock);
    return value;
}

void space_window_store(const struct space_window *window, uint64_t offset, uint64_t value,
                        unsigned size)
{
    if (window->holds_wakes)
        futex_hold_wakes();
    if (window->lock != NULL)
        pthread_mutex_lock(window->lock);
    window_write(window, offset, value, size);
    if (window->lock != NULL)
        pthread_mutex_unlock(window->lock);
    if (window->holds_wakes)
        futex_release_wakes();
}

/* ---- one access ---- */

static uint64_t host_load(const uint8_t *p, unsigned size)
{
    switch (size) {
    case 1:
        return *(const volatile uint8_t *)p;
    case 2:
        return load_le16(p);
    case 4:
        return load_le32(p);
    case 8:
        return load_le64(p);
    default: {
        uint64_t v = 0;
        memcpy(&v, p, size);
        return v;
    }
    }
}

static void host_store(uint8_t *p, uint64_t value, unsigned size)
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
        memcpy(p, &value, size);
        break;
    }
}

static uint64_t space_load_in(const struct region *r, uint64_t addr, unsigned size)
{
    if (r == NULL)
        return mask_bytes(size);
    uint64_t offset = addr - r->addr;
    if (r->kind != REGION_IO)
        return host_load(r->host + offset, size);
    return space_window_load(&r->window, offset, size);
}

static void space_store_in(struct space *space, const struct region *r, uint64_t addr,
                           uint64_t value, unsigned size)
{
    if (r == NULL || (r->kind == REGION_ROM && r->window.ops == NULL))
        return;
    uint64_t offset = addr - r->addr;
    if (r->kind == REGION_RAM) {
        host_store(r->host + offset, value, size);
        if (space->written != NULL)
            space->written(space->written_ctx, addr, size);
        return;
    }
    space_window_store(&r->window, offset, value, size);
}

uint64_t space_load(struct space *space, uint64_t addr, unsigned size)
{
    uint64_t left;
    const struct region *r = space_find(space, addr, &left);
    if (LIKELY(left >= size))
        return space_load_in(r, addr, size);
    uint64_t value = 0;
    for (unsigned done = 0; done < size;) {
        r = space_find(space, addr + done, &left);
        unsigned n = (unsigned)MIN(left, (uint64_t)(size - done));
        value |= (space_load_in(r, addr + done, n) & mask_bytes(n)) << (8 * done);
        done += n;
    }
    return value;
}

void space_store(struct space *space, uint64_t addr, uint64_t value, unsigned size)
{
    uint64_t left;
    const struct region *r = space_find(space, addr, &left);
    if (LIKELY(left >= size)) {
        space_store_in(space, r, addr, value, size);
        return;
    }
    for (unsigned done = 0; done < size;) {
        r = space_find(space, addr + done, &left);
        unsigned n = (unsigned)MIN(left, (uint64_t)(size - done));
        space_store_in(space, r, addr + done, value >> (8 * done), n);
        done += n;
    }
}

/* ---- copies ---- */

void space_read(struct space *space, uint64_t addr, void *buf, uint64_t size)
{
    uint8_t *out = buf;
    while (size > 0) {
        uint64_t left;
        const struct region *r = space_find(space, addr, &left);
        uint64_t n = MIN(left, size);
        if (r == NULL) {
            memset(out, 0xff, n);
        } else if (r->kind != REGION_IO) {
            memcpy(out, r->host + (addr - r->addr), n);
        } else {
            /* Naturally aligned pieces, as a bus master makes them. */
            n = MIN(n, UINT64_C(8) - (addr & 7));
            uint64_t value = space_load_in(r, addr, (unsigned)n);
            memcpy(out, &value, n);
        }
        out += n;
        addr += n;
        size -= n;
    }
}

void space_write(struct space *space, uint64_t addr, const void *buf, uint64_t size)
{
    const uint8_t *in = buf;
    while (size > 0) {
        uint64_t left;
        const struct region *r = space_find(space, addr, &left);
        uint64_t n = MIN(left, size);
        if (r != NULL && r->kind == REGION_RAM) {
            memcpy(r->host + (addr - r->addr), in, n);
            if (space->written != NULL)
                space->written(space->written_ctx, addr, n);
        } else if (r != NULL) {
            n = MIN(n, UINT64_C(8) - (addr & 7));
            uint64_t value = 0;
            memcpy(&value, in, n);
            space_store_in(space, r, addr, value, (unsigned)n);
        }
        in += n;
        addr += n;
        size -= n;
    }
}
