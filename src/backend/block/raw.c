/*
 * raw.c - images that are their store as it is
 *
 * A disk whose format was not stated but found to be raw keeps its guest from making it look like
 * another format: a first sector that begins as such an image does is refused.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backend/block/image.h"
#include "backend/block/store.h"
#include "base/bits.h"
#include "base/log.h"

struct raw {
    struct image image;
    struct store *store;
    bool is_detected;
};

/*
 * A write that covers the first sector of a detected disk. The guest may change its buffers
 * meanwhile, so what is looked at and what is written are one copy.
 */
static int write_guarded(struct raw *r, uint64_t size, const struct iovec *iov, unsigned count)
{
    static struct log_limit limit;
    uint8_t *copy = malloc(size);
    int rc;

    if (copy == NULL)
        return -ENOMEM;
    iov_gather(copy, iov, count);
    if (image_is_qcow2_magic(copy)) {
        if (log_limit_allows(&limit))
            log_warn("the guest writes the beginning of a qcow2 image to a disk that was found to "
                     "be raw; refused (format=raw at --disk allows it)");
        rc = -EPERM;
    } else {
        rc = store_write(r->store, 0, copy, size);
    }
    free(copy);
    return rc;
}

static int raw_transfer(struct image *image, bool is_write, uint64_t offset, uint64_t size,
                        const struct iovec *iov, unsigned count)
{
    struct raw *r = CONTAINER_OF(image, struct raw, image);

    if (UNLIKELY(is_write && offset == 0 && r->is_detected))
        return write_guarded(r, size, iov, count);
    return r->store->ops->transfer(r->store, is_write, offset, size, iov, count);
}

static int raw_flush(struct image *image)
{
    struct raw *r = CONTAINER_OF(image, struct raw, image);

    return r->store->ops->flush(r->store);
}

static int raw_discard(struct image *image, uint64_t offset, uint64_t size)
{
    struct raw *r = CONTAINER_OF(image, struct raw, image);

    return r->store->ops->discard(r->store, offset, size);
}

static int raw_write_zeroes(struct image *image, uint64_t offset, uint64_t size, bool may_unmap)
{
    struct raw *r = CONTAINER_OF(image, struct raw, image);

    return r->store->ops->write_zeroes(r->store, offset, size, may_unmap);
}

static bool raw_locate(struct image *image, const struct block_request *request,
                       struct image_place *out)
{
    struct raw *r = CONTAINER_OF(image, struct raw, image);
    bool is_guarded = request->op == BLOCK_WRITE && request->offset == 0 && r->is_detected;

    if (is_guarded || (request->op == BLOCK_FLUSH && r->store->file->ignores_flushes))
        return false;
    *out = (struct image_place){.file = r->store->file, .offset = request->offset, .image = image};
    return true;
}

static int raw_map(struct image *image, uint64_t offset, uint64_t *size, enum image_extent *out)
{
    struct raw *r = CONTAINER_OF(image, struct raw, image);
    bool is_zero = false;
    int rc = r->store->ops->map(r->store, offset, size, &is_zero);

    *out = is_zero ? IMAGE_ZERO : IMAGE_DATA;
    return rc;
}

static int raw_resize(struct image *image, uint64_t size, struct err *e)
{
    struct raw *r = CONTAINER_OF(image, struct raw, image);
    int rc = r->store->ops->resize(r->store, size);

    if (rc != 0)
        return err_set(e, -rc, "change the size of the disk");
    image->size = size;
    return 0;
}

/* With requests under way, which do not look at image->size. */
static int raw_grow(struct image *image, uint64_t *size)
{
    struct raw *r = CONTAINER_OF(image, struct raw, image);
    uint64_t now;
    int rc = *size != 0 ? r->store->ops->resize(r->store, *size) : 0;

    if (rc != 0 && rc != -EOPNOTSUPP)
        return rc;
    rc = r->store->ops->length(r->store, &now);
    if (rc != 0)
        return rc;
    if (*size > now)
        return -ENOSPC; /* a device is as large as it is */
    *size = align_down(now, BLOCK_SECTOR);
    return 0;
}

static void raw_close(struct image *image)
{
    struct raw *r = CONTAINER_OF(image, struct raw, image);

    r->store->ops->close(r->store);
    free(r);
}

static const struct image_ops raw_ops = {
    .transfer = raw_transfer,
    .flush = raw_flush,
    .discard = raw_discard,
    .write_zeroes = raw_write_zeroes,
    .locate = raw_locate,
    .map = raw_map,
    .grow = raw_grow,
    .resize = raw_resize,
    .close = raw_close,
};

int image_open_raw(struct store *store, const struct image_config *config, struct image **out,
                   struct err *e)
{
    struct raw *r = store->size >= BLOCK_SECTOR ? calloc(1, sizeof(*r)) : NULL;

    if (r == NULL) {
        uint64_t size = store->size;
        store->ops->close(store);
        if (size >= BLOCK_SECTOR)
            return err_set(e, ENOMEM, "open the disk '%s'", config->path);
        return err_set(e, 0, "use '%s' as a disk: it has less than one sector of 512 bytes",
                       config->path);
    }
    r->store = store;
    r->is_detected = config->format == BLOCK_FORMAT_AUTO;
    r->image = (struct image){
        .ops = &raw_ops,
        .format = BLOCK_FORMAT_RAW,
        /* what does not fill a sector cannot be reached by a guest */
        .size = align_down(store->size, BLOCK_SECTOR),
        .physical_size = store->physical_size,
        .is_read_only = store->is_read_only,
        .located_ops = store->file != NULL ? BLOCK_OPS_ALL : 0,
    };
    *out = &r->image;
    return 0;
}
