/*
 * i8259.c - the PC's pair of 8259A interrupt controllers
 *
 * A request is computed, never stored: an edge-triggered input requests while its edge is
 * latched *and* the line is still high (data sheet, "Edge and level triggered modes": an input
 * that drops before the first INTA ends as the default IR7), a level-triggered one while the
 * line is high. After every change chip_update follows the INT output of the second chip into
 * input 2 of the first, which therefore counts as a level.
 *
 * ICW1's LTIM is replaced by the edge/level control registers, as in every PC since EISA. The
 * 8080 mode (ICW4 bit 0 clear) has no meaning on an x86 and behaves as the 8086 mode.
 *
 * Spec: Intel 8259A data sheet; 82371SB (PIIX3), "ELCR".
 */
#include "dev/irqchip/i8259.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "base/bits.h"
#include "mem/space.h"

#define CASCADE_INPUT 2
#define MASTER 0
#define SLAVE 1
#define NO_REQUEST 8

#define ICW1_INIT 0x10
#define ICW1_SINGLE 0x02
#define ICW1_HAS_ICW4 0x01
#define ICW4_SFNM 0x10
#define ICW4_AEOI 0x02
#define OCW3_SELECT 0x08
#define OCW3_ESMM 0x40
#define OCW3_SMM 0x20
#define OCW3_POLL 0x04
#define OCW3_RR 0x02
#define OCW3_RIS 0x01

/* Which initialisation word the next write to the odd port is. */
enum init_step { INIT_DONE, INIT_ICW2, INIT_ICW3, INIT_ICW4 };

/* Registers of one chip; everything that a snapshot has to keep. */
struct i8259_chip {
    uint8_t lines; /* level of each input */
    uint8_t edges; /* edge-sense latches */
    uint8_t imr;
    uint8_t isr;
    uint8_t elcr;        /* 1: level triggered */
    uint8_t vector_base; /* ICW2 bits 7..3 */
    uint8_t icw3;
    uint8_t lowest;    /* input of the lowest priority; the next one has the highest */
    uint8_t init_step; /* enum init_step */
    bool is_icw4_due;
    bool is_single;
    bool is_ready; /* has been initialised, and no initialisation is under way */
    bool is_auto_eoi;
    bool rotates_on_auto_eoi;
    bool is_special_mask;
    bool is_special_fully_nested;
    bool reads_isr;
    bool is_poll_due; /* the next read is a poll */
};

struct i8259 {
    pthread_mutex_t lock;
    i8259_intr_fn intr;
    void *ctx;
    struct i8259_chip chip[2]; /* under lock */
    bool is_intr;              /* under lock: what `intr` was told last */
};

/* The bits of the ELCR that exist: IRQ 0, 1, 2, 8 and 13 are always edge triggered. */
static const uint8_t elcr_mask[2] = {0xf8, 0xde};

static uint8_t chip_requests(const struct i8259 *pic, unsigned which)
{
    const struct i8259_chip *c = &pic->chip[which];
    uint8_t level = c->elcr;
    if (which == MASTER)
        level |= BIT(CASCADE_INPUT);
    return c->lines & (c->edges | level);
}

/* The input that would be acknowledged now, or NO_REQUEST ("Priority resolver"). */
static unsigned chip_winner(const struct i8259 *pic, unsigned which)
{
    const struct i8259_chip *c = &pic->chip[which];
    uint8_t requests = chip_requests(pic, which) & ~c->imr;
    /* In special mask mode a masked level in service no longer holds back the others. */
    uint8_t holding = c->is_special_mask ? c->isr & ~c->imr : c->isr;

    if (!c->is_ready || requests == 0)
        return NO_REQUEST;
    for (unsigned i = 1; i <= 8; i++) {
        unsigned n = (c->lowest + i) & 7;
        bool is_held = (holding & BIT(n)) != 0;
        /* Special fully nested: a slave in service may interrupt again through its input. */
        if (is_held && c->is_special_fully_nested && which == MASTER && n == CASCADE_INPUT)
            is_held = false;
        if ((requests & BIT(n)) != 0 && !is_held)
            return n;
        if ((holding & BIT(n)) != 0)
            return NO_REQUEST;
    }
    return NO_REQUEST;
}

static void intr_set(struct i8259 *pic, bool level)
{
    if (pic->is_intr == level)
        return;
    pic->is_intr = level;
    pic->intr(pic->ctx, level);
}

static void chip_update(struct i8259 *pic)
{
    struct i8259_chip *master = &pic->chip[MASTER];
    if (chip_winner(pic, SLAVE) != NO_REQUEST)
        master->lines |= BIT(CASCADE_INPUT);
    else
        master->lines &= ~BIT(CASCADE_INPUT);
    intr_set(pic, chip_winner(pic, MASTER) != NO_REQUEST);
}

static void chip_reset(struct i8259_chip *c)
{
    *c = (struct i8259_chip){.lines = c->lines, .imr = 0xff, .lowest = 7};
}

void i8259_reset(struct i8259 *pic)
{
    pthread_mutex_lock(&pic->lock);
    chip_reset(&pic->chip[MASTER]);
    chip_reset(&pic->chip[SLAVE]);
    chip_update(pic);
    pthread_mutex_unlock(&pic->lock);
}

void i8259_set_firmware_defaults(struct i8259 *pic)
{
    pthread_mutex_lock(&pic->lock);
    pic->chip[MASTER].vector_base = 0x08;
    pic->chip[MASTER].icw3 = BIT(CASCADE_INPUT);
    pic->chip[MASTER].imr = (uint8_t)~BIT(CASCADE_INPUT);
    pic->chip[SLAVE].vector_base = 0x70;
    pic->chip[SLAVE].icw3 = CASCADE_INPUT;
    pic->chip[MASTER].is_ready = pic->chip[SLAVE].is_ready = true;
    chip_update(pic);
    pthread_mutex_unlock(&pic->lock);
}

int i8259_create(i8259_intr_fn intr, void *ctx, struct i8259 **out, struct err *e)
{
    struct i8259 *pic = calloc(1, sizeof(*pic));
    if (pic == NULL)
        return err_set(e, ENOMEM, "make the 8259 interrupt controllers");
    pthread_mutex_init(&pic->lock, NULL);
    pic->intr = intr;
    pic->ctx = ctx;
    chip_reset(&pic->chip[MASTER]);
    chip_reset(&pic->chip[SLAVE]);
    *out = pic;
    return 0;
}

void i8259_destroy(struct i8259 *pic)
{
    if (pic == NULL)
        return;
    pthread_mutex_destroy(&pic->lock);
    free(pic);
}

static void input_set(void *sink, unsigned input, bool level)
{
    struct i8259 *pic = sink;
    struct i8259_chip *c = &pic->chip[input >> 3];
    uint8_t bit = (uint8_t)BIT(input & 7);

    pthread_mutex_lock(&pic->lock);
    if (level && (c->lines & bit) == 0) {
        c->lines |= bit;
        c->edges |= bit;
        chip_update(pic);
    } else if (!level && (c->lines & bit) != 0) {
        c->lines &= ~bit;
        c->edges &= ~bit;
        chip_update(pic);
    }
    pthread_mutex_unlock(&pic->lock);
}

struct irq_line i8259_input(struct i8259 *pic, unsigned irq)
{
    assert(irq < I8259_INPUT_COUNT && irq != CASCADE_INPUT);
    return (struct irq_line){.set = input_set, .sink = pic, .input = irq};
}

/* What the INTA pulses do inside one chip: returns the input, 7 when there is no request. */
static unsigned chip_acknowledge(struct i8259 *pic, unsigned which)
{
    struct i8259_chip *c = &pic->chip[which];
    unsigned n = chip_winner(pic, which);
    if (n == NO_REQUEST)
        return 7;
    c->edges &= ~BIT(n);
    if (!c->is_auto_eoi)
        c->isr |= BIT(n);
    else if (c->rotates_on_auto_eoi)
        c->lowest = (uint8_t)n;
    return n;
}

int i8259_acknowledge(struct i8259 *pic)
{
    pthread_mutex_lock(&pic->lock);
    unsigned n = chip_winner(pic, MASTER);
    unsigned which = MASTER;
    unsigned input = chip_acknowledge(pic, MASTER);
    if (n == CASCADE_INPUT && !pic->chip[MASTER].is_single) {
        which = SLAVE;
        input = chip_acknowledge(pic, SLAVE);
    }
    int vector = pic->chip[which].vector_base | (int)input;
    /* INT falls with the acknowledge, so that an edge-triggered sink sees the next request. */
    intr_set(pic, false);
    chip_update(pic);
    pthread_mutex_unlock(&pic->lock);
    return vector;
}

/* ---- registers ---- */

static void icw1_write(struct i8259_chip *c, uint8_t value)
{
    c->edges = 0;
    c->imr = 0;
    c->isr = 0;
    c->lowest = 7;
    c->is_special_mask = false;
    c->reads_isr = false;
    c->is_poll_due = false;
    c->rotates_on_auto_eoi = false;
    c->is_auto_eoi = false;
    c->is_special_fully_nested = false;
    c->is_ready = false;
    c->is_single = (value & ICW1_SINGLE) != 0;
    c->is_icw4_due = (value & ICW1_HAS_ICW4) != 0;
    c->init_step = INIT_ICW2;
}

static void icw_advance(struct i8259_chip *c)
{
    if (c->init_step == INIT_ICW2 && !c->is_single) {
        c->init_step = INIT_ICW3;
    } else if (c->init_step != INIT_ICW4 && c->is_icw4_due) {
        c->init_step = INIT_ICW4;
    } else {
        c->init_step = INIT_DONE;
        c->is_ready = true;
    }
}

static void odd_port_write(struct i8259_chip *c, uint8_t value)
{
    switch (c->init_step) {
    case INIT_DONE:
        c->imr = value;
        return;
    case INIT_ICW2:
        c->vector_base = value & 0xf8;
        break;
    case INIT_ICW3:
        c->icw3 = value;
        break;
    case INIT_ICW4:
        c->is_special_fully_nested = (value & ICW4_SFNM) != 0;
        c->is_auto_eoi = (value & ICW4_AEOI) != 0;
        break;
    }
    icw_advance(c);
}

/* Ends the level of highest priority in service; returns it, or NO_REQUEST. */
static unsigned chip_end_highest(struct i8259_chip *c)
{
    /* "Special mask mode": a masked level in service is not cleared by a non-specific EOI. */
    uint8_t served = c->is_special_mask ? c->isr & ~c->imr : c->isr;
    for (unsigned i = 1; i <= 8; i++) {
        unsigned n = (c->lowest + i) & 7;
        if (served & BIT(n)) {
            c->isr &= ~BIT(n);
            return n;
        }
    }
    return NO_REQUEST;
}

static void ocw2_write(struct i8259_chip *c, uint8_t value)
{
    unsigned level = value & 7;
    unsigned ended;

    switch (value >> 5) { /* R, SL, EOI */
    case 0:
        c->rotates_on_auto_eoi = false;
        break;
    case 1:
        chip_end_highest(c);
        break;
    case 2: /* no operation */
        break;
    case 3:
        c->isr &= ~BIT(level);
        break;
    case 4:
        c->rotates_on_auto_eoi = true;
        break;
    case 5:
        ended = chip_end_highest(c);
        if (ended != NO_REQUEST)
            c->lowest = (uint8_t)ended;
        break;
    case 6:
        c->lowest = (uint8_t)level;
        break;
    case 7:
        c->isr &= ~BIT(level);
        c->lowest = (uint8_t)level;
        break;
    }
}

static void ocw3_write(struct i8259_chip *c, uint8_t value)
{
    if (value & OCW3_ESMM)
        c->is_special_mask = (value & OCW3_SMM) != 0;
    c->is_poll_due = (value & OCW3_POLL) != 0;
    /* A poll overrides a register read ("If both bits are set"). */
    if (!c->is_poll_due && (value & OCW3_RR))
        c->reads_isr = (value & OCW3_RIS) != 0;
}

static void chip_write(struct i8259 *pic, unsigned which, uint64_t offset, uint8_t value)
{
    struct i8259_chip *c = &pic->chip[which];
    if (offset == 1)
        odd_port_write(c, value);
    else if (value & ICW1_INIT)
        icw1_write(c, value);
    else if (value & OCW3_SELECT)
        ocw3_write(c, value);
    else
        ocw2_write(c, value);
    chip_update(pic);
}

static uint8_t chip_read(struct i8259 *pic, unsigned which, uint64_t offset)
{
    struct i8259_chip *c = &pic->chip[which];
    if (c->is_poll_due) {
        c->is_poll_due = false;
        bool has_request = chip_winner(pic, which) != NO_REQUEST;
        uint8_t answer = (uint8_t)chip_acknowledge(pic, which);
        chip_update(pic);
        return has_request ? 0x80 | answer : answer;
    }
    if (offset == 1)
        return c->imr;
    return c->reads_isr ? c->isr : chip_requests(pic, which);
}

static uint64_t master_read(void *ctx, uint64_t offset, unsigned size)
{
    return chip_read(ctx, MASTER, offset);
}

static void master_write(void *ctx, uint64_t offset, uint64_t value, unsigned size)
{
    chip_write(ctx, MASTER, offset, (uint8_t)value);
}

static uint64_t slave_read(void *ctx, uint64_t offset, unsigned size)
{
    return chip_read(ctx, SLAVE, offset);
}

static void slave_write(void *ctx, uint64_t offset, uint64_t value, unsigned size)
{
    chip_write(ctx, SLAVE, offset, (uint8_t)value);
}

static uint64_t elcr_read(void *ctx, uint64_t offset, unsigned size)
{
    struct i8259 *pic = ctx;
    return pic->chip[offset & 1].elcr;
}

static void elcr_write(void *ctx, uint64_t offset, uint64_t value, unsigned size)
{
    struct i8259 *pic = ctx;
    pic->chip[offset & 1].elcr = (uint8_t)value & elcr_mask[offset & 1];
    chip_update(pic);
}

static const struct space_ops master_ops = {
    .read = master_read, .write = master_write, .max_size = 1};
static const struct space_ops slave_ops = {.read = slave_read, .write = slave_write, .max_size = 1};
static const struct space_ops elcr_ops = {.read = elcr_read, .write = elcr_write, .max_size = 1};

int i8259_map(struct i8259 *pic, struct space *ports, uint16_t master, uint16_t slave,
              uint16_t elcr, struct err *e)
{
    int rc = space_add_io(ports, master, 2, &master_ops, pic, &pic->lock, e);
    if (rc == 0)
        rc = space_add_io(ports, slave, 2, &slave_ops, pic, &pic->lock, e);
    if (rc == 0)
        rc = space_add_io(ports, elcr, 2, &elcr_ops, pic, &pic->lock, e);
    return rc;
}
