/*
 * keys.h - the terminal's escape key, Ctrl-A
 */
#ifndef DOPPEL_CLI_KEYS_H
#define DOPPEL_CLI_KEYS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct keys_ops {
    void (*leave)(void *ctx);
    void (*show_help)(void *ctx);
    void (*send_break)(void *ctx);
    void (*press_power)(void *ctx);
    void (*suspend)(void *ctx);
};

/* Zero-initialise, then set ops and ctx. */
struct keys {
    const struct keys_ops *ops;
    void *ctx;
    bool has_prefix; /* Ctrl-A was typed last */
};

/*
 * A chardev_filter_fn: takes commands out of what was typed and carries them out. `self` is a
 * struct keys. Ctrl-A twice sends one; after an unknown key nothing is sent and help is shown.
 */
size_t keys_filter(void *self, uint8_t *buf, size_t len);

#endif
