/*
 * store.c - what can be said of every store by its table of functions
 */
#include "backend/block/store.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"

#define ZERO_STEP (UINT64_C(1) << 20)
#define ZERO_ALIGN 4096u /* so that O_DIRECT takes it as it is */

void iov_gather(uint8_t *to, const struct iovec *iov, unsigned count)
{
    for (unsigned i = 0; i < count; to += iov[i++].iov_len)
        memcpy(to, iov[i].iov_base, iov[i].iov_len);
}

void iov_scatter(const uint8_t *from, const struct iovec *iov, unsigned count)
{
    for (unsigned i = 0; i < count; from += iov[i++].iov_len)
        memcpy(iov[i].iov_base, from, iov[i].iov_len);
}

int store_read(struct store *store, uint64_t offset, void *buf, uint64_t size)
{
    struct iovec iov = {.iov_base = buf, .iov_len = size};

    return store->ops->transfer(store, false, offset, size, &iov, 1);
}

int store_write(struct store *store, uint64_t offset, const void *buf, uint64_t size)
{
    struct iovec iov = {.iov_base = (void *)buf, .iov_len = size};

    return store->ops->transfer(store, true, offset, size, &iov, 1);
}

int store_write_zero_data(struct store *store, uint64_t offset, uint64_t size)
{
    uint64_t step = align_up(MAX(MIN(size, ZERO_STEP), 1), ZERO_ALIGN);
    uint8_t *zeroes = aligned_alloc(ZERO_ALIGN, step);
    int rc = 0;

    if (zeroes == NULL)
        return -ENOMEM;
    memset(zeroes, 0, step);
    for (uint64_t n; size > 0 && rc == 0; offset += n, size -= n) {
        n = MIN(size, step);
        rc = store_write(store, offset, zeroes, n);
    }
    free(zeroes);
    return rc;
}
