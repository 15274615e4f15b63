/*
 * chardev.c - what all character devices share: input queue, receiver, kinds by name
 *
 * Invariant: input is handed over only on the loop's thread and in the order it came in, also
 * when the receiver asks for more from within its own callback.
 */
#include "backend/char/chardev.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backend/char/chardev_impl.h"
#include "base/bits.h"
#include "os/loop.h"

/* ---- ring ---- */

int char_ring_init(struct char_ring *ring, size_t size, struct err *e)
{
    *ring = (struct char_ring){.bytes = malloc(size), .size = size};
    if (ring->bytes == NULL)
        return err_set(e, ENOMEM, "allocate a queue of %zu bytes", size);
    return 0;
}

void char_ring_free(struct char_ring *ring)
{
    free(ring->bytes);
    ring->bytes = NULL;
}

size_t char_ring_put(struct char_ring *ring, const uint8_t *buf, size_t len)
{
    len = MIN(len, char_ring_room(ring));
    size_t at = (ring->first + ring->count) & (ring->size - 1);
    size_t head = MIN(len, ring->size - at);
    memcpy(ring->bytes + at, buf, head);
    memcpy(ring->bytes, buf + head, len - head);
    ring->count += len;
    return len;
}

size_t char_ring_front(const struct char_ring *ring, const uint8_t **out)
{
    *out = ring->bytes + ring->first;
    return MIN(ring->count, ring->size - ring->first);
}

void char_ring_drop(struct char_ring *ring, size_t len)
{
    ring->first = (ring->first + len) & (ring->size - 1);
    ring->count -= len;
}

/* ---- device ---- */

int chardev_init(struct chardev *cd, const struct chardev_ops *ops, struct loop *loop,
                 struct err *e)
{
    *cd = (struct chardev){.ops = ops, .loop = loop};
    return char_ring_init(&cd->input, CHARDEV_INPUT_SIZE, e);
}

void chardev_fini(struct chardev *cd)
{
    char_ring_free(&cd->input);
}

void chardev_destroy(struct chardev *cd)
{
    if (cd != NULL)
        cd->ops->destroy(cd);
}

size_t chardev_write(struct chardev *cd, const void *buf, size_t len)
{
    return len == 0 ? 0 : cd->ops->write(cd, buf, len);
}

int chardev_drain(struct chardev *cd, int timeout_ms, struct err *e)
{
    return cd->ops->drain(cd, timeout_ms, e);
}

static void chardev_deliver(struct chardev *cd)
{
    if (cd->is_delivering)
        return;
    cd->is_delivering = true;
    bool has_taken = false;
    while (cd->input.count > 0 && cd->receiver != NULL && cd->receiver->receive != NULL) {
        size_t room = cd->receiver->can_receive != NULL
                          ? cd->receiver->can_receive(cd->receiver_ctx)
                          : CHARDEV_INPUT_SIZE;
        const uint8_t *front;
        uint8_t piece[256];
        size_t n = MIN(MIN(room, sizeof(piece)), char_ring_front(&cd->input, &front));
        if (n == 0)
            break;
        memcpy(piece, front, n);
        char_ring_drop(&cd->input, n);
        has_taken = true;
        cd->receiver->receive(cd->receiver_ctx, piece, n);
    }
    cd->is_delivering = false;
    if (has_taken && cd->ops->input_taken != NULL)
        cd->ops->input_taken(cd);
}

static void chardev_on_resume(void *ctx)
{
    struct chardev *cd = ctx;
    atomic_store(&cd->is_resume_posted, false);
    chardev_deliver(cd);
}

void chardev_resume_input(struct chardev *cd)
{
    if (!atomic_exchange(&cd->is_resume_posted, true))
        loop_post(cd->loop, chardev_on_resume, cd);
}

size_t chardev_put_input(struct chardev *cd, const uint8_t *buf, size_t len)
{
    size_t n = char_ring_put(&cd->input, buf, len);
    chardev_deliver(cd);
    return n;
}

static void chardev_tell(struct chardev *cd, enum chardev_event event)
{
    if (cd->receiver != NULL && cd->receiver->event != NULL)
        cd->receiver->event(cd->receiver_ctx, event);
}

void chardev_set_connected(struct chardev *cd, bool is_connected)
{
    if (cd->is_connected == is_connected)
        return;
    cd->is_connected = is_connected;
    chardev_tell(cd, is_connected ? CHARDEV_CONNECTED : CHARDEV_DISCONNECTED);
}

void chardev_set_receiver(struct chardev *cd, const struct chardev_receiver *receiver, void *ctx)
{
    cd->receiver = receiver;
    cd->receiver_ctx = ctx;
    if (receiver == NULL)
        return;
    if (cd->is_connected)
        chardev_tell(cd, CHARDEV_CONNECTED);
    chardev_resume_input(cd);
}

void chardev_set_failed(struct chardev *cd, chardev_failed_fn fn, void *ctx)
{
    cd->failed = fn;
    cd->failed_ctx = ctx;
}

void chardev_send_break(struct chardev *cd)
{
    chardev_tell(cd, CHARDEV_BREAK);
}

void chardev_report_writable(struct chardev *cd)
{
    if (cd->receiver != NULL && cd->receiver->writable != NULL)
        cd->receiver->writable(cd->receiver_ctx);
}

void chardev_report_failed(struct chardev *cd, const struct err *why)
{
    if (cd->failed != NULL)
        cd->failed(cd->failed_ctx, why);
}

/* ---- nothing connected ---- */

static size_t chardev_none_write(struct chardev *cd, const uint8_t *buf, size_t len)
{
    return len;
}

static int chardev_none_drain(struct chardev *cd, int timeout_ms, struct err *e)
{
    return 0;
}

static void chardev_none_destroy(struct chardev *cd)
{
    chardev_fini(cd);
    free(cd);
}

static const struct chardev_ops chardev_none_ops = {
    .write = chardev_none_write,
    .drain = chardev_none_drain,
    .destroy = chardev_none_destroy,
};

int chardev_create_none(struct loop *loop, struct chardev **out, struct err *e)
{
    struct chardev *cd = calloc(1, sizeof(*cd));
    if (cd == NULL)
        return err_set(e, ENOMEM, "allocate a character device");
    int rc = chardev_init(cd, &chardev_none_ops, loop, e);
    if (rc != 0) {
        free(cd);
        return rc;
    }
    *out = cd;
    return 0;
}

/* ---- by name ---- */

int chardev_create(struct loop *loop, const char *spec, const struct chardev_stdio_config *stdio,
                   struct chardev **out, struct err *e)
{
    if (strcmp(spec, "stdio") == 0)
        return chardev_create_stdio(loop, stdio, out, e);
    if (strcmp(spec, "none") == 0)
        return chardev_create_none(loop, out, e);
    if (strncmp(spec, "file:", 5) == 0 && spec[5] != '\0')
        return chardev_create_file(loop, spec + 5, out, e);
    if (strncmp(spec, "unix:", 5) == 0 && spec[5] != '\0')
        return chardev_create_unix(loop, spec + 5, out, e);
    if (strncmp(spec, "pty:", 4) == 0 && spec[4] != '\0')
        return chardev_create_pty(loop, spec + 4, out, e);
    return err_set(e, 0, "'%s' is not one of stdio, file:PATH, unix:PATH, pty:PATH, none", spec);
}
