/*
 * ram.h - guest RAM: one memory file, mapped once, lazily populated
 */
#ifndef DOPPEL_MEM_RAM_H
#define DOPPEL_MEM_RAM_H

#include <stdint.h>

#include "base/err.h"

struct ram {
    int fd;           /* memory file, for other mappings of the same bytes */
    uint8_t *host;    /* mapping of the whole, page aligned */
    uint64_t size;    /* bytes, a multiple of 4 KiB */
};

/* Fails with a message that names the size and what the host can give. */
int ram_create(uint64_t size, struct ram *out, struct err *e);
void ram_destroy(struct ram *ram);

#endif
