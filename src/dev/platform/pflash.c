/*
 * pflash.c - a parallel flash chip with Intel's command set, in which UEFI keeps its variables
 *
 * Invariant: `buffer_used` bytes of `buffer` belong to [buffer_at, buffer_at + buffer_used), which
 * lies in one block.
 */
#include "dev/platform/pflash.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "mem/space.h"

enum command {
    COMMAND_READ_ARRAY = 0xff,
    COMMAND_READ_ID = 0x90,
    COMMAND_QUERY = 0x98,
    COMMAND_READ_STATUS = 0x70,
    COMMAND_CLEAR_STATUS = 0x50,
    COMMAND_PROGRAM = 0x40,
    COMMAND_PROGRAM_ALIAS = 0x10,
    COMMAND_PROGRAM_BUFFER = 0xe8,
    COMMAND_ERASE = 0x20,
    COMMAND_LOCK = 0x60,
    COMMAND_CONFIRM = 0xd0,
};

#define STATUS_READY 0x80
#define STATUS_ERASE_ERROR 0x20
#define STATUS_PROGRAM_ERROR 0x10
/* both: the second cycle of a command was none */
#define STATUS_SEQUENCE_ERROR (STATUS_ERASE_ERROR | STATUS_PROGRAM_ERROR)

#define BUFFER_BITS 5
#define STATUS_ALL (STATUS_READY | STATUS_ERASE_ERROR | STATUS_PROGRAM_ERROR)

_Static_assert(PFLASH_BUFFER_SIZE == 1u << BUFFER_BITS, "the chip says how large its buffer is");

struct pflash {
    pthread_mutex_t lock;
    struct pflash_config config;

    /* under lock */
    enum pflash_mode mode;
    enum pflash_expects expects;
    uint8_t status;
    uint8_t buffer[PFLASH_BUFFER_SIZE];
    uint32_t buffer_at, buffer_used, buffer_wanted;
    unsigned reads; /* as memory, since the last write; PFLASH_ROM_AFTER: it is to be ROM */
};

/* ---- contents ---- */

static void keep(struct pflash *flash, uint32_t offset, uint32_t size, uint8_t error)
{
    flash->status |= STATUS_READY;
    if (flash->config.changed != NULL &&
        flash->config.changed(flash->config.ctx, offset, size) != 0)
        flash->status |= error;
}

static void program(struct pflash *flash, uint32_t offset, const uint8_t *bytes, uint32_t size)
{
    for (uint32_t i = 0; i < size; i++)
        flash->config.bytes[offset + i] &= bytes[i];
    keep(flash, offset, size, STATUS_PROGRAM_ERROR);
}

static void erase(struct pflash *flash, uint32_t offset)
{
    offset = (uint32_t)align_down(offset, PFLASH_BLOCK_SIZE);
    memset(flash->config.bytes + offset, 0xff, PFLASH_BLOCK_SIZE);
    keep(flash, offset, PFLASH_BLOCK_SIZE, STATUS_ERASE_ERROR);
}

/* ---- commands ---- */

static void expect(struct pflash *flash, enum pflash_expects what)
{
    flash->expects = what;
    flash->mode = PFLASH_READ_STATUS;
}

static void take_command(struct pflash *flash, uint8_t command)
{
    switch (command) {
    case COMMAND_READ_STATUS:
        flash->mode = PFLASH_READ_STATUS;
        break;
    case COMMAND_READ_ID:
        flash->mode = PFLASH_READ_ID;
        break;
    case COMMAND_QUERY:
        flash->mode = PFLASH_READ_QUERY;
        break;
    case COMMAND_PROGRAM:
    case COMMAND_PROGRAM_ALIAS:
        expect(flash, PFLASH_EXPECT_DATA);
        break;
    case COMMAND_PROGRAM_BUFFER:
        flash->status |= STATUS_READY; /* the buffer is free */
        expect(flash, PFLASH_EXPECT_COUNT);
        break;
    case COMMAND_ERASE:
        expect(flash, PFLASH_EXPECT_ERASE);
        break;
    case COMMAND_LOCK:
        expect(flash, PFLASH_EXPECT_LOCK);
        break;
    case COMMAND_CLEAR_STATUS:
        flash->status = 0;
        flash->mode = PFLASH_READ_ARRAY;
        break;
    case COMMAND_CONFIRM: /* also "resume", with nothing suspended */
        break;
    default:
        flash->mode = PFLASH_READ_ARRAY;
        break;
    }
}

/* A second cycle that is not what it must be ends the command; READ ARRAY does without an error. */
static void refuse(struct pflash *flash, uint8_t value)
{
    if (value == COMMAND_READ_ARRAY)
        flash->mode = PFLASH_READ_ARRAY;
    else
        flash->status |= STATUS_READY | STATUS_SEQUENCE_ERROR;
}

/* The count is that of bytes less one. The buffer begins where the first of them goes. */
static void take_count(struct pflash *flash, uint8_t value)
{
    if (value >= PFLASH_BUFFER_SIZE) {
        refuse(flash, value);
        return;
    }
    flash->buffer_wanted = value + 1u;
    flash->buffer_used = 0;
    flash->expects = PFLASH_EXPECT_BUFFER;
}

static void take_buffer(struct pflash *flash, uint32_t offset, const uint8_t *bytes, unsigned size)
{
    bool is_first = flash->buffer_used == 0;
    uint32_t first = is_first ? offset : flash->buffer_at;
    uint32_t room = PFLASH_BLOCK_SIZE - first % PFLASH_BLOCK_SIZE;

    if ((!is_first && offset != flash->buffer_at + flash->buffer_used) ||
        size > flash->buffer_wanted - flash->buffer_used || flash->buffer_used + size > room) {
        refuse(flash, 0);
        flash->expects = PFLASH_EXPECT_COMMAND;
        return;
    }
    flash->buffer_at = first;
    memcpy(flash->buffer + flash->buffer_used, bytes, size);
    flash->buffer_used += size;
    if (flash->buffer_used == flash->buffer_wanted)
        flash->expects = PFLASH_EXPECT_CONFIRM;
}

static void want(struct pflash *flash, unsigned choice)
{
    if (flash->config.wants != NULL)
        flash->config.wants(flash->config.ctx, choice);
}

static void pflash_write(void *ctx, uint64_t offset, uint64_t value, unsigned size)
{
    struct pflash *flash = ctx;
    enum pflash_expects expects = flash->expects;
    uint32_t at = (uint32_t)offset;
    uint8_t bytes[8];

    if (flash->reads == PFLASH_ROM_AFTER)
        want(flash, PFLASH_WINDOW);
    flash->reads = 0;
    store_le64(bytes, value);
    if (expects == PFLASH_EXPECT_BUFFER) {
        take_buffer(flash, at, bytes, size);
        return;
    }
    flash->expects = PFLASH_EXPECT_COMMAND;
    switch (expects) {
    case PFLASH_EXPECT_DATA:
        program(flash, at, bytes, size);
        break;
    case PFLASH_EXPECT_COUNT:
        take_count(flash, bytes[0]);
        break;
    case PFLASH_EXPECT_ERASE:
        if (bytes[0] == COMMAND_CONFIRM)
            erase(flash, at);
        else
            refuse(flash, bytes[0]);
        break;
    case PFLASH_EXPECT_LOCK: /* blocks have no locks; whoever sets or clears one is content */
        flash->status |= STATUS_READY;
        break;
    case PFLASH_EXPECT_CONFIRM:
        if (bytes[0] == COMMAND_CONFIRM)
            program(flash, flash->buffer_at, flash->buffer, flash->buffer_used);
        else
            refuse(flash, bytes[0]);
        break;
    default:
        take_command(flash, bytes[0]);
        break;
    }
}

/* ---- reads ---- */

/* What the chip says of itself (JESD68.01, table 1): byte wide, one region of blocks. */
static uint8_t query_byte(const struct pflash *flash, uint64_t offset)
{
    uint32_t blocks = flash->config.size / PFLASH_BLOCK_SIZE - 1;
    const uint8_t table[] = {
        'Q',
        'R',
        'Y',
        0x01,
        0x00,
        0x31,
        0x00,
        0,
        0,
        0,
        0, /* 10H: Intel's command set */
        0x45,
        0x55,
        0,
        0, /* 1BH: supply */
        7,
        7,
        10,
        0,
        4,
        4,
        4,
        0, /* 1FH: times, powers of two */
        (uint8_t)(31 - __builtin_clz(flash->config.size)),
        0,
        0, /* 27H: size, a power of two */
        BUFFER_BITS,
        0,
        1, /* 2AH: buffer; regions */
        (uint8_t)blocks,
        (uint8_t)(blocks >> 8), /* 2DH: blocks less one */
        (uint8_t)(PFLASH_BLOCK_SIZE >> 8),
        (uint8_t)(PFLASH_BLOCK_SIZE >> 16),
        'P',
        'R',
        'I',
        '1',
        '0', /* 31H: no optional features */
    };

    return offset >= 0x10 && offset - 0x10 < sizeof(table) ? table[offset - 0x10] : 0;
}

static uint8_t special_byte(const struct pflash *flash, uint64_t offset)
{
    static const uint8_t id[] = {0x89, 0x18};

    switch (flash->mode) {
    case PFLASH_READ_ID:
        return offset % PFLASH_BLOCK_SIZE < sizeof(id) ? id[offset % PFLASH_BLOCK_SIZE] : 0;
    case PFLASH_READ_QUERY:
        return query_byte(flash, offset);
    default:
        return flash->status;
    }
}

static uint64_t pflash_read(void *ctx, uint64_t offset, unsigned size)
{
    struct pflash *flash = ctx;
    uint64_t value = 0;

    if (flash->mode == PFLASH_READ_ARRAY) {
        if (flash->reads < PFLASH_ROM_AFTER && ++flash->reads == PFLASH_ROM_AFTER)
            want(flash, PFLASH_ROM);
        memcpy(&value, flash->config.bytes + offset, size);
        return value;
    }
    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)special_byte(flash, offset + i) << 8 * i;
    return value;
}

static const struct space_ops pflash_ops = {
    .read = pflash_read, .write = pflash_write, .max_size = 8};

int pflash_map(struct pflash *flash, struct space *memory, uint64_t base, struct space_switch **out,
               struct err *e)
{
    struct space_window window = {.ops = &pflash_ops, .ctx = flash, .lock = &flash->lock};
    const struct space_choice choices[] = {
        [PFLASH_WINDOW] = {.kind = SPACE_WINDOW, .window = window},
        [PFLASH_ROM] = {.kind = SPACE_ROM_WINDOW, .host = flash->config.bytes, .window = window},
    };

    return space_add_switch(memory, base, flash->config.size, choices, ARRAY_SIZE(choices), out, e);
}

/* ---- state ---- */

void pflash_get_state(struct pflash *flash, struct pflash_state *out)
{
    memset(out, 0, sizeof(*out));
    pthread_mutex_lock(&flash->lock);
    out->mode = (uint8_t)flash->mode;
    out->expects = (uint8_t)flash->expects;
    out->status = flash->status;
    if (flash->expects == PFLASH_EXPECT_BUFFER || flash->expects == PFLASH_EXPECT_CONFIRM) {
        out->buffer_wanted = (uint8_t)flash->buffer_wanted;
        out->buffer_used = (uint8_t)flash->buffer_used;
        out->buffer_at = flash->buffer_used != 0 ? flash->buffer_at : 0;
        memcpy(out->buffer, flash->buffer, flash->buffer_used);
    }
    pthread_mutex_unlock(&flash->lock);
}

/* As take_buffer lets it come about. */
static int check_buffer(const struct pflash *flash, const struct pflash_state *s, struct err *e)
{
    bool is_full = s->buffer_used == s->buffer_wanted;

    if (s->expects != PFLASH_EXPECT_BUFFER && s->expects != PFLASH_EXPECT_CONFIRM)
        return 0;
    if (s->buffer_wanted == 0 || s->buffer_wanted > PFLASH_BUFFER_SIZE)
        return err_set(e, 0, "buffer_wanted is %u, and the buffer has %u bytes", s->buffer_wanted,
                       PFLASH_BUFFER_SIZE);
    if (s->buffer_used > s->buffer_wanted || is_full != (s->expects == PFLASH_EXPECT_CONFIRM))
        return err_set(e, 0, "buffer_used is %u of %u, and expects is %u", s->buffer_used,
                       s->buffer_wanted, s->expects);
    if (s->buffer_used != 0 &&
        (!range_fits(s->buffer_at, s->buffer_used, flash->config.size) ||
         s->buffer_at % PFLASH_BLOCK_SIZE + s->buffer_used > PFLASH_BLOCK_SIZE))
        return err_set(e, 0, "buffer_at is %#x, where %u bytes do not lie in a block", s->buffer_at,
                       s->buffer_used);
    return 0;
}

static int check_state(const struct pflash *flash, const struct pflash_state *s, struct err *e)
{
    if (s->mode > PFLASH_READ_QUERY)
        return err_set(e, 0, "mode is %u, and there is no such", s->mode);
    if (s->expects > PFLASH_EXPECT_CONFIRM)
        return err_set(e, 0, "expects is %u, and there is no such", s->expects);
    if (s->status & ~STATUS_ALL)
        return err_set(e, 0, "status is 0x%02x, and not all of these bits exist", s->status);
    return check_buffer(flash, s, e);
}

int pflash_set_state(struct pflash *flash, const struct pflash_state *state, struct err *e)
{
    pthread_mutex_lock(&flash->lock);
    int rc = check_state(flash, state, e);
    if (rc == 0) {
        flash->mode = state->mode;
        flash->expects = state->expects;
        flash->status = state->status;
        flash->buffer_wanted = state->buffer_wanted;
        flash->buffer_used = state->buffer_used;
        flash->buffer_at = state->buffer_at;
        memcpy(flash->buffer, state->buffer, sizeof(flash->buffer));
        if (flash->reads == PFLASH_ROM_AFTER)
            want(flash, PFLASH_WINDOW);
        flash->reads = 0;
    }
    pthread_mutex_unlock(&flash->lock);
    return rc != 0 ? err_prefix(e, "put back the state of the flash chip") : 0;
}

/* ---- set-up ---- */

void pflash_reset(struct pflash *flash)
{
    pthread_mutex_lock(&flash->lock);
    flash->mode = PFLASH_READ_ARRAY;
    flash->expects = PFLASH_EXPECT_COMMAND;
    flash->status = STATUS_READY;
    pthread_mutex_unlock(&flash->lock);
}

int pflash_create(const struct pflash_config *config, struct pflash **out, struct err *e)
{
    struct pflash *flash = calloc(1, sizeof(*flash));

    if (flash == NULL)
        return err_set(e, ENOMEM, "make a flash chip");
    pthread_mutex_init(&flash->lock, NULL);
    flash->config = *config;
    pflash_reset(flash);
    *out = flash;
    return 0;
}

void pflash_destroy(struct pflash *flash)
{
    if (flash == NULL)
        return;
    pthread_mutex_destroy(&flash->lock);
    free(flash);
}
