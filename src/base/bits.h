/*
 * bits.h - bit fields, alignment, little-endian loads and stores, checked arithmetic
 *
 * Nothing here calls out of line, so that code which runs while the guest's vector state is
 * live in the host's registers may use all of it.
 */
#ifndef DOPPEL_BASE_BITS_H
#define DOPPEL_BASE_BITS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BIT(n) (UINT64_C(1) << (n))
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define CONTAINER_OF(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))
#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

/* Bits hi..lo of v, shifted down to bit 0. */
static inline uint64_t bits(uint64_t v, unsigned hi, unsigned lo)
{
    return (v >> lo) & (~UINT64_C(0) >> (63 - (hi - lo)));
}

static inline bool is_pow2(uint64_t v)
{
    return v != 0 && (v & (v - 1)) == 0;
}

/* `align` is a power of two. */
static inline uint64_t align_down(uint64_t v, uint64_t align)
{
    return v & ~(align - 1);
}

static inline uint64_t align_up(uint64_t v, uint64_t align)
{
    return (v + align - 1) & ~(align - 1);
}

/* The low `bytes` (1..8) bytes of all ones. */
static inline uint64_t mask_bytes(unsigned bytes)
{
    return bytes >= 8 ? ~UINT64_C(0) : (UINT64_C(1) << (bytes * 8)) - 1;
}

/* Sign-extend the low `bits_count` (1..64) bits. */
static inline int64_t sign_extend(uint64_t v, unsigned bits_count)
{
    return (int64_t)(v << (64 - bits_count)) >> (64 - bits_count);
}

/* Unaligned little-endian access; the host is x86-64, so a plain copy of known size is right. */
#define BITS_DEFINE_LE(n)                                                                          \
    static inline uint##n##_t load_le##n(const void *p)                                            \
    {                                                                                              \
        uint##n##_t v;                                                                             \
        __builtin_memcpy(&v, p, sizeof(v));                                                        \
        return v;                                                                                  \
    }                                                                                              \
    static inline void store_le##n(void *p, uint##n##_t v)                                         \
    {                                                                                              \
        __builtin_memcpy(p, &v, sizeof(v));                                                        \
    }
BITS_DEFINE_LE(16)
BITS_DEFINE_LE(32)
BITS_DEFINE_LE(64)
#undef BITS_DEFINE_LE

/* Big-endian likewise. */
#define BITS_DEFINE_BE(n)                                                                          \
    static inline uint##n##_t load_be##n(const void *p)                                            \
    {                                                                                              \
        return __builtin_bswap##n(load_le##n(p));                                                  \
    }                                                                                              \
    static inline void store_be##n(void *p, uint##n##_t v)                                         \
    {                                                                                              \
        store_le##n(p, __builtin_bswap##n(v));                                                     \
    }
BITS_DEFINE_BE(16)
BITS_DEFINE_BE(32)
BITS_DEFINE_BE(64)
#undef BITS_DEFINE_BE

/* True when [addr, addr + size) does not wrap and lies within [0, limit). */
static inline bool range_fits(uint64_t addr, uint64_t size, uint64_t limit)
{
    return size <= limit && addr <= limit - size;
}

static inline bool ranges_overlap(uint64_t a, uint64_t a_size, uint64_t b, uint64_t b_size)
{
    return a_size != 0 && b_size != 0 && a < b + b_size && b < a + a_size;
}

#endif
