/*
 * memfd.h - anonymous shared memory, mapped one or more times
 */
#ifndef DOPPEL_OS_MEMFD_H
#define DOPPEL_OS_MEMFD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define MEMFD_READ 1u
#define MEMFD_WRITE 2u
#define MEMFD_EXEC 4u

/* A sealed-against-shrinking memory file of `size` bytes. Returns the descriptor or -errno. */
int memfd_make(const char *name, uint64_t size, struct err *e);

/* Map [offset, offset + size) shared, with `access` (MEMFD_*). Populated lazily. */
int memfd_map(int fd, uint64_t offset, size_t size, unsigned access, void **out, struct err *e);
void memfd_unmap(void *ptr, size_t size);

/*
 * Give the pages of a mapped range back to the host: they read as zero, and are there again when
 * they are next touched, through any mapping of the file. Page aligned. Any thread. False when the
 * host does not; nothing has changed then.
 */
bool memfd_discard(void *ptr, size_t size);

#endif
