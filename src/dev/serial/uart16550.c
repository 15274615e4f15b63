/*
 * uart16550.c - 16550A asynchronous serial port
 *
 * The transmitter hands each byte to the character device at once; only what that does not take
 * waits in the transmit FIFO, and THRE tells the guest so. The receive FIFO never overruns from
 * outside: the character device is told how much room there is (loopback can overrun).
 *
 * The other end honours RTS, as far as guests use it: while nobody listens (see is_listening)
 * input waits in the character device. Otherwise what is typed or piped in while a guest boots
 * would go into the FIFO and be lost when its driver clears that.
 *
 * The interrupt output is computed by uart_update after every change from what is pending and
 * enabled; the one state behind it is the THRE interrupt's latch, which reading IIR clears.
 *
 * Spec: National Semiconductor PC16550D data sheet.
 */
#include "dev/serial/uart16550.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

#include "backend/char/chardev.h"
#include "base/bits.h"
#include "mem/space.h"
#include "os/vclock.h"

#define FIFO_SIZE 16
#define CLOCK_HZ 1843200
#define IDLE_POLLS 64
#define LISTENS_NS UINT64_C(10000000)
#define PORT_COUNT 8

enum { REG_DATA, REG_IER, REG_IIR_FCR, REG_LCR, REG_MCR, REG_LSR, REG_MSR, REG_SCRATCH };

#define IER_RDA 0x01
#define IER_THRE 0x02
#define IER_LSR 0x04
#define IER_MSR 0x08
#define IIR_NONE 0x01
#define IIR_MSR 0x00
#define IIR_THRE 0x02
#define IIR_RDA 0x04
#define IIR_LSR 0x06
#define IIR_TIMEOUT 0x0c
#define IIR_FIFOS 0xc0
#define FCR_ENABLE 0x01
#define FCR_CLEAR_RX 0x02
#define FCR_CLEAR_TX 0x04
#define FCR_TRIGGER_SHIFT 6
#define LCR_BITS 0x03
#define LCR_STOP 0x04
#define LCR_PARITY 0x08
#define LCR_BREAK 0x40
#define LCR_DLAB 0x80
#define MCR_DTR 0x01
#define MCR_RTS 0x02
#define MCR_OUT1 0x04
#define MCR_OUT2 0x08
#define MCR_LOOP 0x10
#define MCR_WRITABLE 0x1f
#define LSR_DR 0x01
#define LSR_OE 0x02
#define LSR_PE 0x04
#define LSR_FE 0x08
#define LSR_BI 0x10
#define LSR_ERRORS 0x1e
#define LSR_THRE 0x20
#define LSR_TEMT 0x40
#define LSR_FIFO_ERROR 0x80
#define MSR_DELTA 0x0f
#define MSR_TERI 0x04
#define MSR_CTS 0x10
#define MSR_DSR 0x20
#define MSR_RI 0x40
#define MSR_DCD 0x80

/* Registers and FIFOs; everything that a snapshot has to keep. */
struct uart_fifo {
    uint8_t data[FIFO_SIZE];
    uint8_t errors[FIFO_SIZE]; /* receiver: LSR bits that came with the byte */
    uint8_t head, count;
};

struct uart16550_state {
    uint8_t ier, lcr, mcr, scratch;
    uint8_t fcr; /* enable and trigger bits only */
    uint16_t divisor;
    uint8_t lsr_errors; /* error bits shown in LSR until it is read */
    uint8_t msr_lines;  /* CTS, DSR, RI, DCD as the other end drives them */
    uint8_t msr_delta;
    bool is_thre_pending; /* THRE interrupt: set when the transmitter empties */
    uint8_t idle_polls;   /* LSR reads in a row that found an idle line, saturating */
    bool has_listened;    /* kept its receive interrupt enabled for LISTENS_NS */
    bool is_timeout;      /* characters have waited for four character times */
    struct uart_fifo rx, tx;
};

struct uart16550 {
    pthread_mutex_t lock;
    struct vclock *clock;
    struct chardev *cd;
    struct irq_line irq;
    struct vtimer timer;
    struct uart16550_state s; /* under lock */
    bool is_irq;              /* under lock: what the line was told last */
    bool is_input_stopped;    /* under lock: can_receive said 0, the device waits to be called */
};

/* ---- FIFOs ---- */

static unsigned fifo_limit(const struct uart16550_state *s)
{
    return s->fcr & FCR_ENABLE ? FIFO_SIZE : 1;
}

static unsigned rx_trigger(const struct uart16550_state *s)
{
    static const uint8_t levels[4] = {1, 4, 8, 14};
    return s->fcr & FCR_ENABLE ? levels[s->fcr >> FCR_TRIGGER_SHIFT] : 1;
}

static void fifo_push(struct uart_fifo *f, uint8_t byte, uint8_t errors)
{
    unsigned at = (f->head + f->count) % FIFO_SIZE;
    f->data[at] = byte;
    f->errors[at] = errors;
    f->count++;
}

static void fifo_drop(struct uart_fifo *f, unsigned count)
{
    f->head = (uint8_t)((f->head + count) % FIFO_SIZE);
    f->count -= (uint8_t)count;
}

/* ---- interrupts ---- */

static uint8_t msr_value(const struct uart16550_state *s)
{
    uint8_t lines = s->msr_lines;
    if (s->mcr & MCR_LOOP) {
        /* "The modem control outputs are internally connected to the modem control inputs" */
        lines = 0;
        lines |= s->mcr & MCR_RTS ? MSR_CTS : 0;
        lines |= s->mcr & MCR_DTR ? MSR_DSR : 0;
        lines |= s->mcr & MCR_OUT1 ? MSR_RI : 0;
        lines |= s->mcr & MCR_OUT2 ? MSR_DCD : 0;
    }
    return lines | s->msr_delta;
}

/* The pending, enabled interrupt of the highest priority, as IIR bits 3..0. */
static uint8_t pending_interrupt(const struct uart16550_state *s)
{
    if ((s->ier & IER_LSR) && s->lsr_errors != 0)
        return IIR_LSR;
    if ((s->ier & IER_RDA) && s->rx.count >= rx_trigger(s))
        return IIR_RDA;
    if ((s->ier & IER_RDA) && s->is_timeout)
        return IIR_TIMEOUT;
    if ((s->ier & IER_THRE) && s->is_thre_pending)
        return IIR_THRE;
    if ((s->ier & IER_MSR) && s->msr_delta != 0)
        return IIR_MSR;
    return IIR_NONE;
}

static void uart_update(struct uart16550 *uart)
{
    /*
     * The discrete chip on an ISA card had a buffer gated by OUT2 here. Integrated ports do not
     * all have one, and there are guests that never set OUT2.
     */
    bool level = pending_interrupt(&uart->s) != IIR_NONE;
    if (level == uart->is_irq)
        return;
    uart->is_irq = level;
    irq_set(&uart->irq, level);
}

/* ---- receiver ---- */

static uint64_t character_ns(const struct uart16550_state *s)
{
    unsigned bit_count = 7 + (s->lcr & LCR_BITS) + (s->lcr & LCR_STOP ? 1 : 0) +
                         (s->lcr & LCR_PARITY ? 1 : 0); /* with start and first stop bit */
    unsigned divisor = s->divisor != 0 ? s->divisor : 1;
    return (uint64_t)bit_count * divisor * 16 * NS_PER_SEC / CLOCK_HZ;
}

/* Characters wait below the trigger level, of which the guest wants to hear in time. */
static bool has_timeout_ahead(const struct uart16550_state *s)
{
    return (s->fcr & FCR_ENABLE) && s->rx.count != 0 && s->rx.count < rx_trigger(s);
}

/*
 * Somebody will take input: RTS is up, or a guest that never sets RTS has had its interrupt
 * enabled for a while (drivers that look for the chip enable it for a moment), or one without
 * either does nothing but look for input.
 */
static bool is_listening(const struct uart16550_state *s)
{
    return (s->mcr & MCR_RTS) || ((s->ier & IER_RDA) && s->has_listened) ||
           s->idle_polls >= IDLE_POLLS;
}

/*
 * After any movement in the receiver. "FIFO Interrupt Mode Operation": the time-out comes four
 * character times after the last one.
 */
static void timeout_restart(struct uart16550 *uart)
{
    struct uart16550_state *s = &uart->s;

    s->is_timeout = false;
    if (!(s->ier & IER_RDA))
        vtimer_cancel(&uart->timer);
    else if (has_timeout_ahead(s))
        vtimer_arm(&uart->timer, vclock_now_ns(uart->clock) + 4 * character_ns(s));
    else if (!is_listening(s))
        vtimer_arm(&uart->timer, vclock_now_ns(uart->clock) + LISTENS_NS);
    else
        vtimer_cancel(&uart->timer);
}

/* LSR shows the errors of the byte at the head of the FIFO ("revealed to the CPU"). */
static void rx_reveal(struct uart16550_state *s)
{
    if (s->rx.count == 0)
        return;
    s->lsr_errors |= s->rx.errors[s->rx.head];
    s->rx.errors[s->rx.head] = 0;
}

static void rx_push(struct uart16550_state *s, uint8_t byte, uint8_t errors)
{
    if (s->rx.count >= fifo_limit(s)) {
        s->lsr_errors |= LSR_OE;
        /* Without FIFOs the new byte replaces the old one; with them it is lost. */
        if (!(s->fcr & FCR_ENABLE))
            s->rx.data[s->rx.head] = byte;
        return;
    }
    fifo_push(&s->rx, byte, errors);
    if (s->rx.count == 1)
        rx_reveal(s);
}

static size_t rx_room(const struct uart16550_state *s)
{
    /* In loopback the input pin is disconnected; what comes waits outside. */
    if ((s->mcr & MCR_LOOP) || !is_listening(s))
        return 0;
    return s->rx.count < fifo_limit(s) ? fifo_limit(s) - s->rx.count : 0;
}

/* After anything that may have made room. */
static void input_resume(struct uart16550 *uart)
{
    if (uart->is_input_stopped && rx_room(&uart->s) != 0) {
        uart->is_input_stopped = false;
        chardev_resume_input(uart->cd);
    }
}

static void timer_fired(void *ctx)
{
    struct uart16550 *uart = ctx;
    struct uart16550_state *s = &uart->s;

    pthread_mutex_lock(&uart->lock);
    if (has_timeout_ahead(s)) {
        s->is_timeout = true;
        uart_update(uart);
    }
    if (s->ier & IER_RDA) {
        s->has_listened = true;
        input_resume(uart);
    }
    pthread_mutex_unlock(&uart->lock);
}

static size_t uart_can_receive(void *ctx)
{
    struct uart16550 *uart = ctx;
    pthread_mutex_lock(&uart->lock);
    size_t room = rx_room(&uart->s);
    uart->is_input_stopped = room == 0;
    pthread_mutex_unlock(&uart->lock);
    return room;
}

static void uart_receive(void *ctx, const uint8_t *buf, size_t len)
{
    struct uart16550 *uart = ctx;
    pthread_mutex_lock(&uart->lock);
    for (size_t i = 0; i < len; i++)
        rx_push(&uart->s, buf[i], 0);
    timeout_restart(uart);
    uart_update(uart);
    pthread_mutex_unlock(&uart->lock);
}

static uint8_t rx_read(struct uart16550 *uart)
{
    struct uart16550_state *s = &uart->s;
    uint8_t byte = s->rx.data[s->rx.head]; /* an empty receiver shows its last byte */
    if (s->rx.count != 0) {
        fifo_drop(&s->rx, 1);
        rx_reveal(s);
        if (s->rx.count == 0)
            s->rx.data[s->rx.head] = byte;
    }
    timeout_restart(uart);
    input_resume(uart);
    return byte;
}

/* ---- transmitter ---- */

/* Give the backend what it takes; an emptied transmitter asks for more. */
static void tx_flush(struct uart16550 *uart)
{
    struct uart16550_state *s = &uart->s;
    while (s->tx.count != 0) {
        unsigned run = MIN(s->tx.count, FIFO_SIZE - s->tx.head);
        size_t taken = chardev_write(uart->cd, s->tx.data + s->tx.head, run);
        fifo_drop(&s->tx, (unsigned)taken);
        if (taken < run)
            return; /* uart_writable goes on */
    }
    s->is_thre_pending = true;
}

static void tx_write(struct uart16550 *uart, uint8_t byte)
{
    struct uart16550_state *s = &uart->s;

    s->is_thre_pending = false;
    s->idle_polls = 0; /* it only waited for room to write */
    if (s->mcr & MCR_LOOP) {
        rx_push(s, byte, 0);
        timeout_restart(uart);
        s->is_thre_pending = true;
        return;
    }
    /* The usual case: nothing waits, and the backend takes the byte. */
    if (uart->cd == NULL || (s->tx.count == 0 && chardev_write(uart->cd, &byte, 1) == 1)) {
        s->is_thre_pending = true;
        return;
    }
    if (s->tx.count < fifo_limit(s))
        fifo_push(&s->tx, byte, 0);
    /* else the guest wrote into a full transmitter: the byte is lost */
}

static void uart_writable(void *ctx)
{
    struct uart16550 *uart = ctx;
    pthread_mutex_lock(&uart->lock);
    if (uart->s.tx.count != 0)
        tx_flush(uart);
    uart_update(uart);
    pthread_mutex_unlock(&uart->lock);
}

/* ---- events from outside ---- */

static void msr_set_lines(struct uart16550_state *s, uint8_t before)
{
    uint8_t after = msr_value(s);
    uint8_t changed = before ^ after;
    s->msr_delta |= (changed & (MSR_CTS | MSR_DSR | MSR_DCD)) >> 4;
    if ((changed & MSR_RI) && !(after & MSR_RI))
        s->msr_delta |= MSR_TERI; /* the trailing edge only */
}

static void uart_event(void *ctx, enum chardev_event event)
{
    struct uart16550 *uart = ctx;
    pthread_mutex_lock(&uart->lock);
    struct uart16550_state *s = &uart->s;
    uint8_t before = msr_value(s);
    switch (event) {
    case CHARDEV_BREAK:
        if (s->mcr & MCR_LOOP)
            break;
        rx_push(s, 0, LSR_BI | LSR_FE); /* a break frames as a zero without stop bit */
        timeout_restart(uart);
        break;
    case CHARDEV_CONNECTED:
        s->msr_lines |= MSR_DCD;
        break;
    case CHARDEV_DISCONNECTED:
        s->msr_lines &= (uint8_t)~MSR_DCD;
        break;
    }
    msr_set_lines(s, before);
    uart_update(uart);
    pthread_mutex_unlock(&uart->lock);
}

static const struct chardev_receiver uart_receiver = {
    .can_receive = uart_can_receive,
    .receive = uart_receive,
    .writable = uart_writable,
    .event = uart_event,
};

/* ---- registers ---- */

static uint8_t lsr_value(const struct uart16550_state *s)
{
    uint8_t v = s->lsr_errors;
    if (s->rx.count != 0)
        v |= LSR_DR;
    if (s->tx.count == 0)
        v |= LSR_THRE | LSR_TEMT;
    if (s->fcr & FCR_ENABLE) {
        uint8_t waiting = s->lsr_errors & (LSR_PE | LSR_FE | LSR_BI);
        for (unsigned i = 0; i < s->rx.count; i++)
            waiting |= s->rx.errors[(s->rx.head + i) % FIFO_SIZE];
        if (waiting != 0)
            v |= LSR_FIFO_ERROR;
    }
    return v;
}

static uint8_t lsr_read(struct uart16550 *uart)
{
    struct uart16550_state *s = &uart->s;
    uint8_t v = lsr_value(s);

    s->lsr_errors = 0;
    if ((v & (LSR_THRE | LSR_DR)) == LSR_THRE && s->idle_polls < IDLE_POLLS) {
        s->idle_polls++;
        input_resume(uart);
    }
    return v;
}

static uint8_t iir_read(struct uart16550_state *s)
{
    uint8_t pending = pending_interrupt(s);
    if (pending == IIR_THRE)
        s->is_thre_pending = false; /* "reading the IIR, if source of interrupt" */
    return s->fcr & FCR_ENABLE ? pending | IIR_FIFOS : pending;
}

static uint64_t uart_read(void *ctx, uint64_t offset, unsigned size)
{
    struct uart16550 *uart = ctx;
    struct uart16550_state *s = &uart->s;
    bool is_dlab = (s->lcr & LCR_DLAB) != 0;
    uint8_t v = 0xff;

    switch (offset) {
    case REG_DATA:
        v = is_dlab ? (uint8_t)s->divisor : rx_read(uart);
        break;
    case REG_IER:
        v = is_dlab ? (uint8_t)(s->divisor >> 8) : s->ier;
        break;
    case REG_IIR_FCR:
        v = iir_read(s);
        break;
    case REG_LCR:
        v = s->lcr;
        break;
    case REG_MCR:
        v = s->mcr;
        break;
    case REG_LSR:
        v = lsr_read(uart);
        break;
    case REG_MSR:
        v = msr_value(s);
        s->msr_delta = 0;
        break;
    case REG_SCRATCH:
        v = s->scratch;
        break;
    }
    uart_update(uart);
    return v;
}

static void ier_write(struct uart16550 *uart, uint8_t value)
{
    struct uart16550_state *s = &uart->s;
    uint8_t old = s->ier;
    s->ier = value & (IER_RDA | IER_THRE | IER_LSR | IER_MSR);
    /* Enabling the THRE interrupt with an empty transmitter interrupts at once. */
    if ((s->ier & ~old & IER_THRE) && s->tx.count == 0)
        s->is_thre_pending = true;
    if (((s->ier ^ old) & IER_RDA) && !s->is_timeout)
        timeout_restart(uart);
    input_resume(uart);
}

static void rx_clear(struct uart16550_state *s)
{
    s->rx = (struct uart_fifo){0};
    s->is_timeout = false;
}

static void tx_clear(struct uart16550_state *s)
{
    if (s->tx.count != 0)
        s->is_thre_pending = true;
    s->tx = (struct uart_fifo){0};
}

static void fcr_write(struct uart16550 *uart, uint8_t value)
{
    struct uart16550_state *s = &uart->s;
    bool was_enabled = (s->fcr & FCR_ENABLE) != 0;
    bool is_enabled = (value & FCR_ENABLE) != 0;

    /*
     * "Programming any other bit needs bit 0". Leaving FIFO mode clears both FIFOs. Entering it
     * keeps what the holding registers have: Linux enables its interrupt just before, and a byte
     * that came in between would be lost.
     */
    s->fcr = is_enabled ? value & (FCR_ENABLE | 3 << FCR_TRIGGER_SHIFT) : 0;
    bool is_left = was_enabled && !is_enabled;
    if (is_left || (is_enabled && (value & FCR_CLEAR_RX)))
        rx_clear(s);
    if (is_left || (is_enabled && (value & FCR_CLEAR_TX)))
        tx_clear(s);
    timeout_restart(uart);
    input_resume(uart);
}

static void lcr_write(struct uart16550 *uart, uint8_t value)
{
    struct uart16550_state *s = &uart->s;
    /* In loopback the receiver sees the transmitter's break. */
    if ((s->mcr & MCR_LOOP) && (value & ~s->lcr & LCR_BREAK)) {
        rx_push(s, 0, LSR_BI | LSR_FE);
        timeout_restart(uart);
    }
    s->lcr = value;
}

static void mcr_write(struct uart16550 *uart, uint8_t value)
{
    struct uart16550_state *s = &uart->s;
    uint8_t before = msr_value(s);
    s->mcr = value & MCR_WRITABLE;
    msr_set_lines(s, before);
    input_resume(uart);
}

static void uart_write(void *ctx, uint64_t offset, uint64_t value, unsigned size)
{
    struct uart16550 *uart = ctx;
    struct uart16550_state *s = &uart->s;
    bool is_dlab = (s->lcr & LCR_DLAB) != 0;
    uint8_t v = (uint8_t)value;

    switch (offset) {
    case REG_DATA:
        if (is_dlab)
            s->divisor = (s->divisor & 0xff00) | v;
        else
            tx_write(uart, v);
        break;
    case REG_IER:
        if (is_dlab)
            s->divisor = (uint16_t)((s->divisor & 0x00ff) | v << 8);
        else
            ier_write(uart, v);
        break;
    case REG_IIR_FCR:
        fcr_write(uart, v);
        break;
    case REG_LCR:
        lcr_write(uart, v);
        break;
    case REG_MCR:
        mcr_write(uart, v);
        break;
    case REG_SCRATCH:
        s->scratch = v;
        break;
    default: /* LSR and MSR are read-only: the data sheet's factory tests aside */
        break;
    }
    uart_update(uart);
}

static const struct space_ops uart_ops = {.read = uart_read, .write = uart_write, .max_size = 1};

int uart16550_map(struct uart16550 *uart, struct space *ports, uint16_t base, struct err *e)
{
    return space_add_io(ports, base, PORT_COUNT, &uart_ops, uart, &uart->lock, e);
}

/* ---- set-up ---- */

/* "UART Reset Configuration". Divisor and scratch are not touched by a reset. */
static void state_reset(struct uart16550_state *s)
{
    uint16_t divisor = s->divisor;
    uint8_t lines = s->msr_lines, scratch = s->scratch;
    *s = (struct uart16550_state){.divisor = divisor, .msr_lines = lines, .scratch = scratch};
}

void uart16550_reset(struct uart16550 *uart)
{
    pthread_mutex_lock(&uart->lock);
    vtimer_cancel(&uart->timer);
    state_reset(&uart->s);
    uart_update(uart);
    input_resume(uart);
    pthread_mutex_unlock(&uart->lock);
}

int uart16550_create(struct vclock *clock, struct chardev *cd, struct irq_line irq,
                     struct uart16550 **out, struct err *e)
{
    struct uart16550 *uart = calloc(1, sizeof(*uart));
    if (uart == NULL)
        return err_set(e, ENOMEM, "make a 16550A serial port");
    pthread_mutex_init(&uart->lock, NULL);
    uart->clock = clock;
    uart->cd = cd;
    uart->irq = irq;
    vtimer_init(&uart->timer, clock, timer_fired, uart);
    uart->s.divisor = 1; /* 115200 baud until the guest says otherwise */
    /* Ready and, until the character device says otherwise, connected. */
    if (cd != NULL)
        uart->s.msr_lines = MSR_CTS | MSR_DSR | MSR_DCD;
    state_reset(&uart->s);
    if (cd != NULL)
        chardev_set_receiver(cd, &uart_receiver, uart);
    *out = uart;
    return 0;
}

void uart16550_destroy(struct uart16550 *uart)
{
    if (uart == NULL)
        return;
    if (uart->cd != NULL)
        chardev_set_receiver(uart->cd, NULL, NULL);
    vtimer_cancel(&uart->timer);
    pthread_mutex_destroy(&uart->lock);
    free(uart);
}
