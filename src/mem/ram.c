/*
 * ram.c - guest RAM: one memory file, mapped once, lazily populated
 *
 * The host gives a page when the guest first touches it, so a guest may be larger than what
 * the host has free; it is told so.
 */
#include "mem/ram.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/log.h"
#include "base/parse.h"
#include "os/memfd.h"

#define RAM_PAGE 4096u

/* Memory and swap of the host, in bytes; 0 when it cannot be found out. */
static uint64_t ram_host_bytes(void)
{
    struct sysinfo info;
    if (sysinfo(&info) != 0)
        return 0;
    return ((uint64_t)info.totalram + info.totalswap) * info.mem_unit;
}

static int ram_explain(struct err *e, int rc, uint64_t size)
{
    char want[PARSE_SIZE_TEXT];
    err_prefix(e, "give the guest %s of memory (this host has %llu MiB, swap included)",
               parse_format_size(size, want), (unsigned long long)ram_host_bytes() >> 20);
    return rc;
}

int ram_create(uint64_t size, struct ram *out, struct err *e)
{
    char want[PARSE_SIZE_TEXT];
    if (size == 0 || size % RAM_PAGE != 0 || size > SIZE_MAX / 2)
        return err_set(e, 0, "the guest's memory of %s is not a multiple of 4K within reach",
                       parse_format_size(size, want));
    uint64_t host_bytes = ram_host_bytes();
    if (host_bytes != 0 && size > host_bytes)
        log_warn("the guest's memory of %s is more than this host has (%llu MiB, swap included); "
                 "it works as long as the guest does not use it all",
                 parse_format_size(size, want), (unsigned long long)host_bytes >> 20);

    int fd = memfd_make("doppel-ram", size, e);
    if (fd < 0)
        return ram_explain(e, fd, size);
    void *host;
    int rc = memfd_map(fd, 0, size, MEMFD_READ | MEMFD_WRITE, &host, e);
    if (rc != 0) {
        close(fd);
        return ram_explain(e, rc, size);
    }
    /* Wishes: fewer host TLB misses, and no guest secrets in a core file of ours. */
    madvise(host, size, MADV_HUGEPAGE);
    madvise(host, size, MADV_DONTDUMP);
    *out = (struct ram){.fd = fd, .host = host, .size = size};
    return 0;
}

void ram_destroy(struct ram *ram)
{
    if (ram->host == NULL)
        return;
    memfd_unmap(ram->host, ram->size);
    close(ram->fd);
    *ram = (struct ram){.fd = -1};
}
