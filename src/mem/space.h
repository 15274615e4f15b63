/*
 * space.h - address spaces: guest-physical memory, and I/O ports
 *
 * Both are the same type. A region is RAM, ROM, or a device window; a device sees offsets into
 * its window, never its own address. Regions may not overlap. What nobody claims reads as all
 * ones and swallows writes.
 *
 * Threads: look-ups and accesses from any thread, without a lock (readers see an immutable
 * sorted table that adding or removing replaces as a whole; old tables are kept until the
 * space is destroyed). Adding and removing: one thread at a time, vCPUs stopped or the region
 * not yet in use. A device window names the lock that the space takes around each access.
 */
#ifndef DOPPEL_MEM_SPACE_H
#define DOPPEL_MEM_SPACE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct space;

/* `size` is 1, 2, 4 or 8 and within what the ops declare; the space splits or widens others. */
struct space_ops {
    uint64_t (*read)(void *ctx, uint64_t offset, unsigned size);
    void (*write)(void *ctx, uint64_t offset, uint64_t value, unsigned size);
    uint8_t min_size; /* 0 means 1 */
    uint8_t max_size; /* 0 means 4; larger accesses are split, low part first */
};

/*
 * A device window apart from a space: for bridges, which decode addresses themselves. Accesses
 * take the lock and are split or widened as in a space; [offset, offset + size) is inside.
 */
struct space_window {
    const struct space_ops *ops;
    void *ctx;
    pthread_mutex_t *lock; /* may be NULL */
    bool holds_wakes; /* stores wake threads that want the lock; they wait for nothing (os/futex.h)
                       */
};

uint64_t space_window_load(const struct space_window *window, uint64_t offset, unsigned size);
void space_window_store(const struct space_window *window, uint64_t offset, uint64_t value,
                        unsigned size);

int space_create(const char *name, uint64_t limit, struct space **out, struct err *e);
void space_destroy(struct space *space);

/* RAM or ROM: host memory, owned by the caller. Writes to ROM are ignored. */
int space_add_ram(struct space *space, uint64_t addr, void *host, uint64_t size, bool is_rom,
                  struct err *e);

/* A device window. `ops` and `lock` outlive the region; lock may be NULL. */
int space_add_io(struct space *space, uint64_t addr, uint64_t size, const struct space_ops *ops,
                 void *ctx, pthread_mutex_t *lock, struct err *e);

int space_remove(struct space *space, uint64_t addr, struct err *e);

/* What a part of a space that changes can lead to. */
enum space_choice_kind {
    SPACE_NOTHING,
    SPACE_ROM,
    SPACE_RAM,
    SPACE_WINDOW,
    SPACE_ROM_WINDOW, /* read as ROM, which engines have as such; writes go to the window */
};

struct space_choice {
    enum space_choice_kind kind;
    void *host;                 /* ROM, ROM_WINDOW and RAM: as for space_add_ram */
    struct space_window window; /* WINDOW and ROM_WINDOW */
};

struct space_switch;

/*
 * A region that is one of `count` things, the first of them to begin with, and becomes another by
 * space_switch_set: what a chip set routes to RAM, to ROM or nowhere. *out is the space's. Unlike
 * removing and adding, changing it costs no memory, however often the guest asks for it.
 */
int space_add_switch(struct space *space, uint64_t addr, uint64_t size,
                     const struct space_choice *choices, unsigned count, struct space_switch **out,
                     struct err *e);

/*
 * Any thread; accesses under way may still end at what was there before. Engines know nothing of
 * it: that is the caller's business.
 */
void space_switch_set(struct space_switch *sw, unsigned choice);

/* One access of 1, 2, 4 or 8 bytes, as a CPU makes it. Unaligned is allowed. */
uint64_t space_load(struct space *space, uint64_t addr, unsigned size);
void space_store(struct space *space, uint64_t addr, uint64_t value, unsigned size);

/* Copy in or out, in pieces, across regions. Writes notify code watchers (see below). */
void space_read(struct space *space, uint64_t addr, void *buf, uint64_t size);
void space_write(struct space *space, uint64_t addr, const void *buf, uint64_t size);

/*
 * The host address of [addr, addr + size) when all of it is one RAM (or, with is_write false,
 * ROM) region, else NULL. Valid until the region is removed.
 */
void *space_ram_ptr(struct space *space, uint64_t addr, uint64_t size, bool is_write);

/*
 * Called after space_store/space_write (devices' DMA, boot loaders) changed RAM, so that an
 * engine drops translations of it. One watcher; NULL removes it.
 */
typedef void (*space_written_fn)(void *ctx, uint64_t addr, uint64_t size);
void space_set_watcher(struct space *space, space_written_fn fn, void *ctx);

/* RAM was changed through space_ram_ptr: tell the watcher, as space_write does. Any thread. */
void space_note_written(struct space *space, uint64_t addr, uint64_t size);

/*
 * The contents of a range are wanted no more: give the whole pages in it back to the host. They
 * read as zero until they are written; the watcher is told. Of anything but RAM that was made by
 * memfd_map, nothing is given. Returns bytes given back. Any thread.
 */
uint64_t space_discard(struct space *space, uint64_t addr, uint64_t size);

/* Calls fn for each RAM region (engines' memory slots). */
typedef int (*space_ram_fn)(void *ctx, uint64_t addr, void *host, uint64_t size, bool is_rom,
                            struct err *e);
int space_for_each_ram(struct space *space, space_ram_fn fn, void *ctx, struct err *e);

#endif
