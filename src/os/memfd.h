/*
 * memfd.h - anonymous shared memory, mapped one or more times
 */
#ifndef DOPPEL_OS_MEMFD_H
#define DOPPEL_OS_MEMFD_H

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
 * Give the memory of [ptr, ptr + size), whole pages of a writable mapping, back to the host; zeros
 * afterwards, in every mapping.
 */
void memfd_discard(void *ptr, size_t size);

#endif
