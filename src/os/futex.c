/*
 * futex.c - see futex.h
 */
#include "os/futex.h"

#include <assert.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/bits.h"

static _Thread_local struct {
    unsigned depth, count;
    _Atomic uint32_t *words[8]; /* more than these are woken at once */
} held;

void futex_wait(_Atomic uint32_t *word, uint32_t value)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void wake(_Atomic uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

void futex_wake(_Atomic uint32_t *word)
{
    if (held.depth != 0 && held.count < ARRAY_SIZE(held.words))
        held.words[held.count++] = word;
    else
        wake(word);
}

void futex_hold_wakes(void)
{
    held.depth++;
}

void futex_release_wakes(void)
{
    assert(held.depth > 0);
    if (--held.depth != 0)
        return;
    for (unsigned i = 0; i < held.count; i++)
        wake(held.words[i]);
    held.count = 0;
}
