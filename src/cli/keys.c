/*
 * keys.c - the terminal's escape key, Ctrl-A
 */
#include "cli/keys.h"

#define KEY_CTRL_A 0x01
/* Ctrl held down on purpose or by accident: Ctrl-A Ctrl-X is as good as Ctrl-A X. */
#define KEY_CTRL(letter) ((letter)&0x1f)

/* Carry out the command of this key. Returns true when the key itself goes to the guest. */
static bool keys_command(struct keys *keys, uint8_t key)
{
    switch (key) {
    case KEY_CTRL_A:
        return true;
    case 'x':
    case 'X':
    case KEY_CTRL('x'):
        keys->ops->leave(keys->ctx);
        return false;
    case 'b':
    case 'B':
    case KEY_CTRL('b'):
        keys->ops->send_break(keys->ctx);
        return false;
    case 'p':
    case 'P':
    case KEY_CTRL('p'):
        keys->ops->press_power(keys->ctx);
        return false;
    case 'z':
    case 'Z':
    case KEY_CTRL('z'):
        keys->ops->suspend(keys->ctx);
        return false;
    default:
        keys->ops->show_help(keys->ctx);
        return false;
    }
}

size_t keys_filter(void *self, uint8_t *buf, size_t len)
{
    struct keys *keys = self;
    size_t out = 0;
    for (size_t i = 0; i < len; i++) {
        uint8_t key = buf[i];
        if (keys->has_prefix) {
            keys->has_prefix = false;
            if (keys_command(keys, key))
                buf[out++] = key;
        } else if (key == KEY_CTRL_A) {
            keys->has_prefix = true;
        } else {
            buf[out++] = key;
        }
    }
    return out;
}
