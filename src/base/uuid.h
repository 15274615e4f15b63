/*
 * uuid.h - universally unique identifiers
 *
 * Bytes are in the order of the text. Spec: RFC 9562.
 */
#ifndef DOPPEL_BASE_UUID_H
#define DOPPEL_BASE_UUID_H

#include <stdint.h>

#include "base/err.h"

#define UUID_SIZE 16

/* 8-4-4-4-12 hexadecimal digits. -EINVAL and a message that begins with `what` for anything else.
 */
int uuid_parse(const char *text, const char *what, uint8_t out[UUID_SIZE], struct err *e);

/*
 * The same one for the same name, wherever and whenever; different ones for different names, as far
 * as 122 bits of a hash that nobody attacks can tell (version 8, RFC 9562, 5.8).
 */
void uuid_of_name(const char *name, uint8_t out[UUID_SIZE]);

#endif
