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
#define BUFFER_SIZE (1u << BUFFER_BITS)

/* What a read gives, and what the next write is. */
enum read_mode { READ_ARRAY, READ_STATUS, READ_ID, READ_QUERY };
enum expects {
    EXPECT_COMMAND,
    EXPECT_DATA,
    EXPECT_ERASE,
    EXPECT_LOCK,
    EXPECT_COUNT,
    EXPECT_BUFFER,
    EXPECT_CONFIRM,
};

struct pflash {
    pthread_mutex_t lock;
    struct pflash_config config;

    /* under lock */
    enum read_mode mode;
    enum expects expects;
    uint8_t status;
    uint8_t buffer[BUFFER_SIZE];
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

static void expect(struct pflash *flash, enum expects what)
{
    flash->expects = what;
    flash->mode = READ_STATUS;
}

static void take_command(struct pflash *flash, uint8_t command)
{
    switch (command) {
    case COMMAND_READ_STATUS:
        flash->mode = READ_STATUS;
        break;
    case COMMAND_READ_ID:
        flash->mode = READ_ID;
        break;
    case COMMAND_QUERY:
        flash->mode = READ_QUERY;
        break;
    case COMMAND_PROGRAM:
    case COMMAND_PROGRAM_ALIAS:
        expect(flash, EXPECT_DATA);
        break;
    case COMMAND_PROGRAM_BUFFER:
        flash->status |= STATUS_READY; /* the buffer is free */
        expect(flash, EXPECT_COUNT);
        break;
    case COMMAND_ERASE:
        expect(flash, EXPECT_ERASE);
        break;
    case COMMAND_LOCK:
        expect(flash, EXPECT_LOCK);
        break;
    case COMMAND_CLEAR_STATUS:
        flash->status = 0;
        flash->mode = READ_ARRAY;
        break;
    case COMMAND_CONFIRM: /* also "resume", with nothing suspended */
        break;
    default:
        flash->mode = READ_ARRAY;
        break;
    }
}

/* A second cycle that is not what it must be ends the command; READ ARRAY does without an error. */
static void refuse(struct pflash *flash, uint8_t value)
{
    if (value == COMMAND_READ_ARRAY)
        flash->mode = READ_ARRAY;
    else
        flash->status |= STATUS_READY | STATUS_SEQUENCE_ERROR;
}

/* The count is that of bytes less one. The buffer begins where the first of them goes. */
static void take_count(struct pflash *flash, uint8_t value)
{
    if (value >= BUFFER_SIZE) {
        refuse(flash, value);
        return;
    }
    flash->buffer_wanted = value + 1u;
    flash->buffer_used = 0;
    flash->expects = EXPECT_BUFFER;
}

static void take_buffer(struct pflash *flash, uint32_t offset, const uint8_t *bytes, unsigned size)
{
    bool is_first = flash->buffer_used == 0;
    uint32_t first = is_first ? offset : flash->buffer_at;
    uint32_t room = PFLASH_BLOCK_SIZE - first % PFLASH_BLOCK_SIZE;

    if ((!is_first && offset != flash->buffer_at + flash->buffer_used) ||
        size > flash->buffer_wanted - flash->buffer_used || flash->buffer_used + size > room) {
        refuse(flash, 0);
        flash->expects = EXPECT_COMMAND;
        return;
    }
    flash->buffer_at = first;
    memcpy(flash->buffer + flash->buffer_used, bytes, size);
    flash->buffer_used += size;
    if (flash->buffer_used == flash->buffer_wanted)
        flash->expects = EXPECT_CONFIRM;
}

static void want(struct pflash *flash, unsigned choice)
{
    if (flash->config.wants != NULL)
        flash->config.wants(flash->config.ctx, choice);
}

static void pflash_write(void *ctx, uint64_t offset, uint64_t value, unsigned size)
{
    struct pflash *flash = ctx;
    enum expects expects = flash->expects;
    uint32_t at = (uint32_t)offset;
    uint8_t bytes[8];

    if (flash->reads == PFLASH_ROM_AFTER)
        want(flash, PFLASH_WINDOW);
    flash->reads = 0;
    store_le64(bytes, value);
    if (expects == EXPECT_BUFFER) {
        take_buffer(flash, at, bytes, size);
        return;
    }
    flash->expects = EXPECT_COMMAND;
    switch (expects) {
    case EXPECT_DATA:
        program(flash, at, bytes, size);
        break;
    case EXPECT_COUNT:
        take_count(flash, bytes[0]);
        break;
    case EXPECT_ERASE:
        if (bytes[0] == COMMAND_CONFIRM)
            erase(flash, at);
        else
            refuse(flash, bytes[0]);
        break;
    case EXPECT_LOCK: /* blocks have no locks; whoever sets or clears one is content */
        flash->status |= STATUS_READY;
        break;
    case EXPECT_CONFIRM:
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
    case READ_ID:
        return offset % PFLASH_BLOCK_SIZE < sizeof(id) ? id[offset % PFLASH_BLOCK_SIZE] : 0;
    case READ_QUERY:
        return query_byte(flash, offset);
    default:
        return flash->status;
    }
}

static uint64_t pflash_read(void *ctx, uint64_t offset, unsigned size)
{
    struct pflash *flash = ctx;
    uint64_t value = 0;

    if (flash->mode == READ_ARRAY) {
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

/* ---- set-up ---- */

void pflash_reset(struct pflash *flash)
{
    pthread_mutex_lock(&flash->lock);
    flash->mode = READ_ARRAY;
    flash->expects = EXPECT_COMMAND;
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
