/*
 * uuid.c - universally unique identifiers
 *
 * Spec: RFC 9562, 4 (text, variant, version).
 */
#include "base/uuid.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "base/bits.h"

#define VERSION_CUSTOM 0x80
#define VARIANT 0x80

/* The value of a hexadecimal digit, or -1. */
static int digit_value(char c)
{
    static const char digits[] = "0123456789abcdef";
    const char *at = memchr(digits, c >= 'A' && c <= 'F' ? c | 0x20 : c, 16);

    return at != NULL ? (int)(at - digits) : -1;
}

static bool parse(const char *text, uint8_t out[UUID_SIZE])
{
    for (unsigned i = 0; i < UUID_SIZE; i++) {
        if ((i == 4 || i == 6 || i == 8 || i == 10) && *text++ != '-')
            return false;
        int high = digit_value(text[0]), low = high < 0 ? -1 : digit_value(text[1]);
        if (low < 0)
            return false;
        out[i] = (uint8_t)(high << 4 | low);
        text += 2;
    }
    return *text == '\0';
}

int uuid_parse(const char *text, const char *what, uint8_t out[UUID_SIZE], struct err *e)
{
    uint8_t bytes[UUID_SIZE];

    if (!parse(text, bytes))
        return err_set(e, EINVAL,
                       "%s: '%s' is no UUID such as 2b4e9c1a-7d35-4f0e-9a61-0c8d5b3f2e17", what,
                       text);
    memcpy(out, bytes, UUID_SIZE);
    return 0;
}

/* FNV-1a from `h` on; then its bits are mixed, for the low ones depend on little. */
static uint64_t hash(const char *name, uint64_t h)
{
    for (; *name != '\0'; name++)
        h = (h ^ (uint8_t)*name) * UINT64_C(0x100000001b3);
    h = (h ^ h >> 33) * UINT64_C(0xff51afd7ed558ccd);
    h = (h ^ h >> 33) * UINT64_C(0xc4ceb9fe1a85ec53);
    return h ^ h >> 33;
}

void uuid_of_name(const char *name, uint8_t out[UUID_SIZE])
{
    store_le64(out, hash(name, UINT64_C(0xcbf29ce484222325)));
    store_le64(out + 8, hash(name, UINT64_C(0x9e3779b97f4a7c15)));
    out[6] = (out[6] & 0x0f) | VERSION_CUSTOM;
    out[8] = (out[8] & 0x3f) | VARIANT;
}
