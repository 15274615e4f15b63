/*
 * futex.h - sleep until a word changes (Linux futex(2)), for one process
 *
 * Who is woken runs at once, and first wants the lock under which it was woken: then it sleeps
 * again, and its waker has to wake it once more. So a thread that wakes others while it has locks
 * may hold its wakes back until it has let go of them. It must not wait for anything but locks
 * meanwhile: those whom it did not wake yet do nothing.
 */
#ifndef DOPPEL_OS_FUTEX_H
#define DOPPEL_OS_FUTEX_H

#include <stdatomic.h>
#include <stdint.h>

/* Sleep while *word is `value`; may return at any time, so look again. */
void futex_wait(_Atomic uint32_t *word, uint32_t value);

/* Wake one thread that sleeps on `word`, which stays where it is until it was woken. */
void futex_wake(_Atomic uint32_t *word);

/* From here on this thread's wakes wait for the matching release. Nests. */
void futex_hold_wakes(void);
void futex_release_wakes(void);

#endif
