/*
 * i8042.c - keyboard controller with a PS/2 keyboard and mouse that nobody touches, port 92h
 *
 * Each device has a queue of answers; the controller moves one byte at a time into its output
 * buffer, in the order controller, keyboard, mouse, and IRQ1 or IRQ12 is up while a byte of that
 * device lies there and the command byte lets it interrupt. Commands are taken at once, so the
 * input buffer is always empty. A queue that a guest overfills drops the new byte.
 *
 * Spec: IBM PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary Device
 * Controller", "Keyboards (101- and 102-Key)", "Mouse".
 */
#include "dev/platform/i8042.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

#include "base/bits.h"
#include "mem/space.h"

#define STATUS_OBF 0x01
#define STATUS_SYSTEM 0x04
#define STATUS_COMMAND 0x08
#define STATUS_UNLOCKED 0x10
#define STATUS_AUX_OBF 0x20

#define CTR_KBD_INT 0x01
#define CTR_AUX_INT 0x02
#define CTR_SYSTEM 0x04
#define CTR_KBD_DISABLE 0x10
#define CTR_AUX_DISABLE 0x20
#define CTR_TRANSLATE 0x40

#define OUT_RESET 0x01 /* active low */
#define OUT_A20 0x02
#define OUT_KBD_FULL 0x10
#define OUT_AUX_FULL 0x20

#define PORT_A_RESET 0x01
#define PORT_A_A20 0x02

#define ACK 0xfa
#define RESEND 0xfe
#define SELF_TEST_PASSED 0xaa

#define QUEUE_SIZE 16
#define RAM_SIZE 32

struct queue {
    uint8_t data[QUEUE_SIZE];
    uint8_t head, count;
};

/* FROM_LOOP: put there by command D3h, as if it came from the mouse. */
enum source { FROM_NONE, FROM_CONTROLLER, FROM_LOOP, FROM_KBD, FROM_AUX };

struct keyboard {
    struct queue queue;
    uint8_t expects; /* command whose argument comes next, or 0 */
    uint8_t leds, rate, scancode_set, last_sent;
    bool is_scanning;
};

struct mouse {
    struct queue queue;
    uint8_t expects;
    uint8_t resolution, rate, last_sent;
    uint8_t knock[3]; /* last three sampling rates: 200, 100, 80 turns the wheel on */
    bool is_reporting, is_remote, is_wrapped, is_scaled_2to1, has_wheel;
};

struct i8042_state {
    uint8_t ram[RAM_SIZE]; /* [0] is the command byte */
    uint8_t command;       /* controller command whose data byte comes next, or 0 */
    uint8_t out_port;      /* without the two "output buffer full" bits */
    uint8_t port_a;
    bool is_command_last;
    uint8_t obf_data;
    uint8_t obf_source;      /* enum source */
    struct queue controller; /* answers of the controller itself */
    struct queue loop;
    struct keyboard kbd;
    struct mouse aux;
};

struct i8042 {
    pthread_mutex_t lock;
    struct i8042_config config;
    struct i8042_state s; /* under lock */
};

/* ---- queues and the output buffer ---- */

static void queue_put(struct queue *q, uint8_t byte)
{
    if (q->count == QUEUE_SIZE)
        return;
    q->data[(q->head + q->count) % QUEUE_SIZE] = byte;
    q->count++;
}

static uint8_t queue_take(struct queue *q)
{
    uint8_t byte = q->data[q->head];
    q->head = (q->head + 1) % QUEUE_SIZE;
    q->count--;
    return byte;
}

static bool obf_is_aux(const struct i8042_state *s)
{
    return s->obf_source == FROM_AUX || s->obf_source == FROM_LOOP;
}

static void irq_update(struct i8042 *kbc)
{
    const struct i8042_state *s = &kbc->s;
    bool is_full = s->obf_source != FROM_NONE;
    irq_set(&kbc->config.irq1, is_full && !obf_is_aux(s) && (s->ram[0] & CTR_KBD_INT));
    irq_set(&kbc->config.irq12, is_full && obf_is_aux(s) && (s->ram[0] & CTR_AUX_INT));
}

/* Move the next byte into an empty output buffer, and drive the lines. */
static void output_update(struct i8042 *kbc)
{
    struct i8042_state *s = &kbc->s;
    if (s->obf_source == FROM_NONE) {
        if (s->controller.count != 0) {
            s->obf_data = queue_take(&s->controller);
            s->obf_source = FROM_CONTROLLER;
        } else if (s->loop.count != 0) {
            s->obf_data = queue_take(&s->loop);
            s->obf_source = FROM_LOOP;
        } else if (s->kbd.queue.count != 0 && !(s->ram[0] & CTR_KBD_DISABLE)) {
            s->obf_data = s->kbd.last_sent = queue_take(&s->kbd.queue);
            s->obf_source = FROM_KBD;
        } else if (s->aux.queue.count != 0 && !(s->ram[0] & CTR_AUX_DISABLE)) {
            s->obf_data = s->aux.last_sent = queue_take(&s->aux.queue);
            s->obf_source = FROM_AUX;
        }
    }
    irq_update(kbc);
}

/* ---- keyboard ---- */

static void kbd_set_defaults(struct keyboard *k)
{
    k->rate = 0x2b; /* 10.9 a second after 500 ms */
    k->scancode_set = 2;
}

static void kbd_power_on(struct keyboard *k)
{
    *k = (struct keyboard){.is_scanning = true};
    kbd_set_defaults(k);
}

/* What the translating controller makes of the number of a scan code set. */
static uint8_t translate_set(const struct i8042_state *s, uint8_t set)
{
    static const uint8_t translated[4] = {0xff, 0x43, 0x41, 0x3f};
    return s->ram[0] & CTR_TRANSLATE ? translated[set] : set;
}

static void kbd_argument(struct i8042_state *s, uint8_t byte)
{
    struct keyboard *k = &s->kbd;
    uint8_t command = k->expects;
    k->expects = 0;
    switch (command) {
    case 0xed:
        k->leds = byte & 7;
        break;
    case 0xf0:
        if (byte > 3) {
            queue_put(&k->queue, RESEND);
            return;
        }
        queue_put(&k->queue, ACK);
        if (byte == 0)
            queue_put(&k->queue, translate_set(s, k->scancode_set));
        else
            k->scancode_set = byte;
        return;
    case 0xf3:
        k->rate = byte & 0x7f;
        break;
    }
    queue_put(&k->queue, ACK);
}

static void kbd_command(struct i8042_state *s, uint8_t byte)
{
    struct keyboard *k = &s->kbd;

    if (byte != RESEND && k->queue.count != 0)
        k->queue = (struct queue){0}; /* a command makes the keyboard drop what it had to say */
    if (k->expects != 0 && byte < 0xed) {
        kbd_argument(s, byte);
        return;
    }
    k->expects = 0;
    switch (byte) {
    case 0xed: /* set indicators */
    case 0xf0: /* select scan code set */
    case 0xf3: /* set typematic rate */
    case 0xfb: /* set 3: type of one key; its argument is a key and changes nothing here */
    case 0xfc:
    case 0xfd:
        k->expects = byte;
        queue_put(&k->queue, ACK);
        break;
    case 0xee: /* echo */
        queue_put(&k->queue, 0xee);
        break;
    case 0xf2: /* read ID; the translating controller turns 83h into 41h */
        queue_put(&k->queue, ACK);
        queue_put(&k->queue, 0xab);
        queue_put(&k->queue, s->ram[0] & CTR_TRANSLATE ? 0x41 : 0x83);
        break;
    case 0xf4: /* enable */
        k->is_scanning = true;
        queue_put(&k->queue, ACK);
        break;
    case 0xf5: /* default disable */
    case 0xf6: /* set default */
        kbd_set_defaults(k);
        k->is_scanning = byte == 0xf6;
        queue_put(&k->queue, ACK);
        break;
    case 0xf7: /* set 3: type of all keys */
    case 0xf8:
    case 0xf9:
    case 0xfa:
        queue_put(&k->queue, ACK);
        break;
    case 0xfe: /* resend */
        queue_put(&k->queue, k->last_sent);
        break;
    case 0xff: /* reset */
        kbd_power_on(k);
        queue_put(&k->queue, ACK);
        queue_put(&k->queue, SELF_TEST_PASSED);
        break;
    default:
        queue_put(&k->queue, RESEND);
        break;
    }
}

/* ---- mouse ---- */

static void aux_set_defaults(struct mouse *m)
{
    m->rate = 100;
    m->resolution = 2;
    m->is_scaled_2to1 = m->is_reporting = m->is_remote = m->is_wrapped = false;
}

static void aux_power_on(struct mouse *m)
{
    *m = (struct mouse){0};
    aux_set_defaults(m);
}

static void aux_argument(struct mouse *m, uint8_t byte)
{
    bool is_valid = true;
    if (m->expects == 0xf3) {
        static const uint8_t rates[] = {10, 20, 40, 60, 80, 100, 200};
        is_valid = false;
        for (unsigned i = 0; i < ARRAY_SIZE(rates); i++)
            is_valid = is_valid || rates[i] == byte;
        if (is_valid) {
            m->rate = byte;
            m->knock[0] = m->knock[1];
            m->knock[1] = m->knock[2];
            m->knock[2] = byte;
            if (m->knock[0] == 200 && m->knock[1] == 100 && m->knock[2] == 80)
                m->has_wheel = true;
        }
    } else if (byte <= 3) {
        m->resolution = byte;
    } else {
        is_valid = false;
    }
    if (is_valid)
        m->expects = 0;
    queue_put(&m->queue, is_valid ? ACK : RESEND);
}

static void aux_report(struct mouse *m)
{
    queue_put(&m->queue, 0x08); /* no button, no movement; bit 3 is always set */
    queue_put(&m->queue, 0);
    queue_put(&m->queue, 0);
    if (m->has_wheel)
        queue_put(&m->queue, 0);
}

static void aux_status(struct mouse *m)
{
    queue_put(&m->queue, (uint8_t)((m->is_remote ? 0x40 : 0) | (m->is_reporting ? 0x20 : 0) |
                                   (m->is_scaled_2to1 ? 0x10 : 0)));
    queue_put(&m->queue, m->resolution);
    queue_put(&m->queue, m->rate);
}

static void aux_command_simple(struct mouse *m, uint8_t byte)
{
    queue_put(&m->queue, ACK);
    switch (byte) {
    case 0xe6:
    case 0xe7:
        m->is_scaled_2to1 = byte == 0xe7;
        break;
    case 0xe9:
        aux_status(m);
        break;
    case 0xea:
        m->is_remote = false;
        break;
    case 0xeb:
        aux_report(m);
        break;
    case 0xec:
        m->is_wrapped = false;
        break;
    case 0xee:
        m->is_wrapped = true;
        break;
    case 0xf0:
        m->is_remote = true;
        break;
    case 0xf2:
        queue_put(&m->queue, m->has_wheel ? 3 : 0);
        break;
    case 0xf4:
    case 0xf5:
        m->is_reporting = byte == 0xf4;
        break;
    case 0xf6:
        aux_set_defaults(m);
        break;
    case 0xff:
        aux_power_on(m);
        queue_put(&m->queue, ACK);
        queue_put(&m->queue, SELF_TEST_PASSED);
        queue_put(&m->queue, 0); /* device ID */
        break;
    }
}

static void aux_command(struct i8042_state *s, uint8_t byte)
{
    struct mouse *m = &s->aux;

    if (m->is_wrapped && byte != 0xec && byte != 0xff) {
        queue_put(&m->queue, byte);
        return;
    }
    if (byte != RESEND && m->queue.count != 0)
        m->queue = (struct queue){0};
    if (m->expects != 0 && byte < 0xe6) {
        aux_argument(m, byte);
        return;
    }
    m->expects = 0;
    switch (byte) {
    case 0xe8: /* set resolution */
    case 0xf3: /* set sampling rate */
        m->expects = byte;
        queue_put(&m->queue, ACK);
        break;
    case 0xe6:
    case 0xe7:
    case 0xe9:
    case 0xea:
    case 0xeb:
    case 0xec:
    case 0xee:
    case 0xf0:
    case 0xf2:
    case 0xf4:
    case 0xf5:
    case 0xf6:
    case 0xff:
        aux_command_simple(m, byte);
        break;
    case RESEND:
        queue_put(&m->queue, m->last_sent);
        break;
    default:
        queue_put(&m->queue, RESEND);
        break;
    }
}

/* ---- controller ---- */

static void out_port_write(struct i8042 *kbc, uint8_t value)
{
    kbc->s.out_port = value & (uint8_t) ~(OUT_KBD_FULL | OUT_AUX_FULL);
    if (!(value & OUT_RESET))
        kbc->config.reset(kbc->config.ctx);
}

static uint8_t out_port_read(const struct i8042_state *s)
{
    uint8_t v = s->out_port;
    if (obf_is_aux(s))
        v |= OUT_AUX_FULL;
    else if (s->obf_source != FROM_NONE)
        v |= OUT_KBD_FULL;
    return v;
}

static void command_data(struct i8042 *kbc, uint8_t value)
{
    struct i8042_state *s = &kbc->s;
    uint8_t command = s->command;

    s->command = 0;
    switch (command) {
    case 0xd1:
        out_port_write(kbc, value);
        break;
    case 0xd2: /* as if the keyboard had sent it */
        queue_put(&s->controller, value);
        break;
    case 0xd3: /* as if the mouse had sent it */
        queue_put(&s->loop, value);
        break;
    case 0xd4:
        s->ram[0] &= (uint8_t)~CTR_AUX_DISABLE; /* talking to it starts its clock */
        aux_command(s, value);
        break;
    default: /* 60h..7fh */
        s->ram[command & (RAM_SIZE - 1)] = value;
        break;
    }
}

static void command_write(struct i8042 *kbc, uint8_t value)
{
    struct i8042_state *s = &kbc->s;

    s->command = 0;
    if (value >= 0x20 && value < 0x40) {
        queue_put(&s->controller, s->ram[value & (RAM_SIZE - 1)]);
        return;
    }
    if (value >= 0xf0) {
        /* Pulse output bits low: those whose bit is 0. Only the reset line matters. */
        if (!(value & OUT_RESET))
            kbc->config.reset(kbc->config.ctx);
        return;
    }
    switch (value) {
    case 0xa4: /* password installed? no */
        queue_put(&s->controller, 0xf1);
        break;
    case 0xa7:
        s->ram[0] |= CTR_AUX_DISABLE;
        break;
    case 0xa8:
        s->ram[0] &= (uint8_t)~CTR_AUX_DISABLE;
        break;
    case 0xa9: /* test of the mouse's wires: no fault */
    case 0xab: /* test of the keyboard's wires: no fault */
        queue_put(&s->controller, 0);
        break;
    case 0xaa: /* self test; it leaves the controller as after power-on */
        s->ram[0] = CTR_SYSTEM | CTR_KBD_DISABLE | CTR_AUX_DISABLE | CTR_TRANSLATE;
        queue_put(&s->controller, 0x55);
        break;
    case 0xad:
        s->ram[0] |= CTR_KBD_DISABLE;
        break;
    case 0xae:
        s->ram[0] &= (uint8_t)~CTR_KBD_DISABLE;
        break;
    case 0xc0: /* input port: keyboard not locked, no manufacturing jumper */
        queue_put(&s->controller, 0xa0);
        break;
    case 0xd0:
        queue_put(&s->controller, out_port_read(s));
        break;
    case 0xdd:
    case 0xdf:
        s->out_port = (s->out_port & (uint8_t)~OUT_A20) | (value == 0xdf ? OUT_A20 : 0);
        break;
    case 0xe0: /* test inputs: both clocks low */
        queue_put(&s->controller, 0);
        break;
    default:
        if ((value >= 0x60 && value < 0x80) || (value >= 0xd1 && value <= 0xd4))
            s->command = value;
        break;
    }
}

static uint64_t data_read(void *ctx, uint64_t offset, unsigned size)
{
    struct i8042 *kbc = ctx;
    struct i8042_state *s = &kbc->s;
    uint8_t v = s->obf_data;

    s->obf_source = FROM_NONE;
    irq_update(kbc); /* an edge-triggered input sees each byte */
    output_update(kbc);
    return v;
}

static void data_write(void *ctx, uint64_t offset, uint64_t value, unsigned size)
{
    struct i8042 *kbc = ctx;
    struct i8042_state *s = &kbc->s;

    s->is_command_last = false;
    if (s->command != 0) {
        command_data(kbc, (uint8_t)value);
    } else {
        s->ram[0] &= (uint8_t)~CTR_KBD_DISABLE; /* "data to the keyboard enables it" */
        kbd_command(s, (uint8_t)value);
    }
    output_update(kbc);
}

static uint64_t status_read(void *ctx, uint64_t offset, unsigned size)
{
    const struct i8042_state *s = &((struct i8042 *)ctx)->s;
    uint8_t v = STATUS_UNLOCKED | (s->ram[0] & CTR_SYSTEM ? STATUS_SYSTEM : 0);

    if (s->is_command_last)
        v |= STATUS_COMMAND;
    if (s->obf_source != FROM_NONE)
        v |= STATUS_OBF;
    if (obf_is_aux(s))
        v |= STATUS_AUX_OBF;
    return v;
}

static void status_write(void *ctx, uint64_t offset, uint64_t value, unsigned size)
{
    struct i8042 *kbc = ctx;
    kbc->s.is_command_last = true;
    command_write(kbc, (uint8_t)value);
    output_update(kbc);
}

static uint64_t port_a_read(void *ctx, uint64_t offset, unsigned size)
{
    return ((struct i8042 *)ctx)->s.port_a;
}

static void port_a_write(void *ctx, uint64_t offset, uint64_t value, unsigned size)
{
    struct i8042 *kbc = ctx;
    bool was_reset = (kbc->s.port_a & PORT_A_RESET) != 0;
    kbc->s.port_a = (uint8_t)value | PORT_A_A20;
    if ((value & PORT_A_RESET) && !was_reset)
        kbc->config.reset(kbc->config.ctx);
}

static const struct space_ops data_ops = {.read = data_read, .write = data_write, .max_size = 1};
static const struct space_ops status_ops = {
    .read = status_read, .write = status_write, .max_size = 1};
static const struct space_ops port_a_ops = {
    .read = port_a_read, .write = port_a_write, .max_size = 1};

int i8042_map(struct i8042 *kbc, struct space *ports, uint16_t data, uint16_t command,
              uint16_t port_a, struct err *e)
{
    int rc = space_add_io(ports, data, 1, &data_ops, kbc, &kbc->lock, e);
    if (rc == 0)
        rc = space_add_io(ports, command, 1, &status_ops, kbc, &kbc->lock, e);
    if (rc == 0)
        rc = space_add_io(ports, port_a, 1, &port_a_ops, kbc, &kbc->lock, e);
    return rc;
}

/* ---- set-up ---- */

/* As firmware leaves it: self test done, both devices enabled, keyboard interrupt on. */
static void state_reset(struct i8042_state *s)
{
    *s = (struct i8042_state){.out_port = 0xc0 | OUT_RESET | OUT_A20, .port_a = PORT_A_A20};
    s->ram[0] = CTR_SYSTEM | CTR_KBD_INT | CTR_TRANSLATE;
    kbd_power_on(&s->kbd);
    aux_power_on(&s->aux);
}

void i8042_reset(struct i8042 *kbc)
{
    pthread_mutex_lock(&kbc->lock);
    state_reset(&kbc->s);
    output_update(kbc);
    pthread_mutex_unlock(&kbc->lock);
}

int i8042_create(const struct i8042_config *config, struct i8042 **out, struct err *e)
{
    struct i8042 *kbc = calloc(1, sizeof(*kbc));
    if (kbc == NULL)
        return err_set(e, ENOMEM, "make the keyboard controller");
    pthread_mutex_init(&kbc->lock, NULL);
    kbc->config = *config;
    state_reset(&kbc->s);
    *out = kbc;
    return 0;
}

void i8042_destroy(struct i8042 *kbc)
{
    if (kbc == NULL)
        return;
    pthread_mutex_destroy(&kbc->lock);
    free(kbc);
}
