/*
 * place.c - which RAM a boot loader has given to what, and filling it
 *
 * Nothing is written outside of a claim, and no two claims overlap, so that a kernel file
 * cannot make one part overwrite another whatever its headers say.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "mem/space.h"
#include "vm/boot/boot.h"

/* The RAM range that holds all of [addr, addr + size), or NULL. */
static const struct boot_range *map_find(const struct boot_map *map, uint64_t addr, uint64_t size)
{
    for (unsigned i = 0; i < map->count; i++) {
        const struct boot_range *r = &map->ranges[i];
        if (r->type == BOOT_RAM && addr >= r->addr && range_fits(addr - r->addr, size, r->size))
            return r;
    }
    return NULL;
}

static const struct boot_claim *claim_find(const struct boot_load *load, uint64_t addr,
                                           uint64_t size)
{
    for (unsigned i = 0; i < load->claim_count; i++)
        if (ranges_overlap(addr, size, load->claims[i].addr, load->claims[i].size))
            return &load->claims[i];
    return NULL;
}

static int claim_add(struct boot_load *load, const struct boot_image *image, const char *what,
                     uint64_t addr, uint64_t size, struct err *e)
{
    if (load->claim_count == BOOT_CLAIMS_MAX)
        return err_set(e, 0, "load '%s': %s: more than %u parts", image->name, what,
                       BOOT_CLAIMS_MAX);
    load->claims[load->claim_count++] = (struct boot_claim){.addr = addr, .size = size};
    return 0;
}

int boot_claim(struct boot_load *load, const struct boot_image *image, const char *what,
               uint64_t addr, uint64_t size, struct err *e)
{
    const struct boot_claim *other;

    if (map_find(load->map, addr, size) == NULL)
        return err_set(e, 0,
                       "load '%s': %s: address 0x%" PRIx64 ", size 0x%" PRIx64
                       " is not in the machine's RAM (give it more with --memory, or the file "
                       "is damaged)",
                       image->name, what, addr, size);
    other = claim_find(load, addr, size);
    if (other != NULL)
        return err_set(e, 0,
                       "load '%s': %s: address 0x%" PRIx64 ", size 0x%" PRIx64
                       " overlaps what was loaded at 0x%" PRIx64,
                       image->name, what, addr, size, other->addr);
    return claim_add(load, image, what, addr, size, e);
}

bool boot_is_claimed(const struct boot_load *load, uint64_t addr, uint64_t size)
{
    for (unsigned i = 0; i < load->claim_count; i++) {
        const struct boot_claim *c = &load->claims[i];
        if (addr >= c->addr && range_fits(addr - c->addr, size, c->size))
            return true;
    }
    return false;
}

static int place_fail(const struct boot_image *image, const char *what, uint64_t size, uint64_t min,
                      uint64_t limit, struct err *e)
{
    return err_set(e, 0,
                   "load '%s': no room for the %s of 0x%" PRIx64 " bytes in RAM from 0x%" PRIx64
                   " to 0x%" PRIx64 "; give the machine more with --memory",
                   image->name, what, size, min, limit);
}

int boot_place_high(struct boot_load *load, const struct boot_image *image, const char *what,
                    uint64_t size, uint64_t align, uint64_t min, uint64_t limit, uint64_t *addr,
                    struct err *e)
{
    for (unsigned i = load->map->count; i-- > 0;) {
        const struct boot_range *r = &load->map->ranges[i];
        uint64_t low = MAX(r->addr, min);
        uint64_t top = MIN(r->addr + r->size, limit);

        if (r->type != BOOT_RAM)
            continue;
        while (top > low && size <= top - low) {
            const struct boot_claim *other;
            uint64_t at = align_down(top - size, align);
            if (at < low)
                break;
            other = claim_find(load, at, size);
            if (other == NULL) {
                *addr = at;
                return claim_add(load, image, what, at, size, e);
            }
            top = other->addr;
        }
    }
    return place_fail(image, what, size, min, limit, e);
}

int boot_place_low(struct boot_load *load, const struct boot_image *image, const char *what,
                   uint64_t size, uint64_t align, uint64_t min, uint64_t limit, uint64_t *addr,
                   struct err *e)
{
    for (unsigned i = 0; i < load->map->count; i++) {
        const struct boot_range *r = &load->map->ranges[i];
        uint64_t top = MIN(r->addr + r->size, limit);
        uint64_t at = align_up(MAX(r->addr, min), align);

        if (r->type != BOOT_RAM)
            continue;
        while (at < top && size <= top - at) {
            const struct boot_claim *other = claim_find(load, at, size);
            if (other == NULL) {
                *addr = at;
                return claim_add(load, image, what, at, size, e);
            }
            at = align_up(other->addr + other->size, align);
        }
    }
    return place_fail(image, what, size, min, limit, e);
}

void boot_write(struct boot_load *load, uint64_t addr, const void *data, uint64_t size)
{
    space_write(load->memory, addr, data, size);
}

void boot_zero(struct boot_load *load, uint64_t addr, uint64_t size)
{
    static const uint8_t zeroes[4096];

    while (size != 0) {
        uint64_t n = MIN(size, sizeof(zeroes));
        boot_write(load, addr, zeroes, n);
        addr += n;
        size -= n;
    }
}

int boot_copy(struct boot_load *load, const struct boot_image *image, uint64_t offset,
              uint64_t addr, uint64_t size, struct err *e)
{
    uint8_t *to;

    if (!range_fits(offset, size, image->size))
        return err_set(e, 0,
                       "load '%s': 0x%" PRIx64 " bytes at offset 0x%" PRIx64
                       " are asked for; the file has 0x%" PRIx64,
                       image->name, size, offset, image->size);
    if (image->data != NULL) {
        boot_write(load, addr, image->data + offset, size);
        return 0;
    }
    to = space_ram_ptr(load->memory, addr, size, true);
    if (to == NULL)
        return err_set(e, 0, "load '%s': 0x%" PRIx64 " is not one piece of RAM", image->name, addr);
    while (size != 0) {
        ssize_t n = pread(image->fd, to, MIN(size, (uint64_t)1 << 30), (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_set(e, errno, "read '%s'", image->name);
        if (n == 0)
            return err_set(e, 0, "read '%s': it has become shorter since it was opened",
                           image->name);
        to += n;
        offset += (uint64_t)n;
        size -= (uint64_t)n;
    }
    return 0;
}

uint64_t boot_map_extended_size(const struct boot_map *map)
{
    for (unsigned i = 0; i < map->count; i++) {
        const struct boot_range *r = &map->ranges[i];
        if (r->type == BOOT_RAM && r->addr == 0x100000)
            return r->size;
    }
    return 0;
}
