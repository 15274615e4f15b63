/*
 * image_copy.c - `doppel image convert` and `commit`: contents from one image into another
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bits.h"
#include "cli/image.h"
#include "cli/run.h"

#define STEP (UINT64_C(2) << 20) /* a multiple of every cluster size */
#define BLOCK 4096u              /* zeroes are left out in pieces of this size, at least */

/* ---- progress, for those who watch ---- */

struct progress {
    bool is_shown;
    unsigned percent;
};

static void progress_show(struct progress *p, uint64_t done, uint64_t all)
{
    unsigned percent = (unsigned)((double)done / (double)all * 100);

    if (!p->is_shown || percent == p->percent)
        return;
    p->percent = percent;
    fprintf(stderr, "\r%3u %%", percent);
}

static void progress_end(const struct progress *p)
{
    if (p->is_shown)
        fprintf(stderr, "\r      \r");
}

/* ---- copying ---- */

struct copy {
    struct image *from, *to;
    const char *from_path, *to_path;
    uint8_t *buf;  /* of STEP bytes */
    uint64_t unit; /* what is zero is left out in pieces of this size */
    bool compresses;
    bool is_zeroed; /* what is not written reads as zeroes */
};

static bool is_zero(const uint8_t *p, uint64_t size)
{
    return size == 0 || (p[0] == 0 && memcmp(p, p + 1, size - 1) == 0);
}

static int copy_write(struct copy *c, uint64_t offset, uint64_t at, uint64_t size)
{
    if (c->compresses) {
        memset(c->buf + at + size, 0, align_up(size, c->unit) - size);
        int rc = c->to->ops->write_compressed(c->to, offset + at, c->buf + at);
        if (rc != -E2BIG)
            return rc;
    }
    return image_write(c->to, offset + at, c->buf + at, size);
}

/* Up to STEP bytes, from the buffer: what is not zero. */
static int copy_data(struct copy *c, uint64_t offset, uint64_t size)
{
    int rc = 0;

    for (uint64_t at = 0, n; at < size && rc == 0; at += n) {
        n = MIN(c->unit, size - at);
        if (is_zero(c->buf + at, n)) {
            if (!c->is_zeroed)
                rc = c->to->ops->write_zeroes(c->to, offset + at, n, true);
            continue;
        }
        /* as much as possible at once, if that makes no difference */
        while (!c->compresses && at + n < size &&
               !is_zero(c->buf + at + n, MIN(c->unit, size - at - n)))
            n += MIN(c->unit, size - at - n);
        rc = copy_write(c, offset, at, n);
    }
    return rc;
}

static int copy_all(struct copy *c, struct err *e)
{
    struct progress progress = {.is_shown = isatty(STDERR_FILENO), .percent = 100};
    uint64_t size = c->from->size;
    int rc = 0;

    for (uint64_t at = 0, n; at < size && rc == 0; at += n) {
        enum image_extent extent;
        n = size - at;
        progress_show(&progress, at, size);
        rc = image_map_chain(c->from, at, &n, &extent);
        if (rc == 0 && extent == IMAGE_ZERO) {
            /* pieces stay where they are, so that clusters are filled at once */
            if (n < size - at && n > c->unit)
                n = align_down(at + n, c->unit) - at;
            if (n >= c->unit || n == size - at) {
                if (!c->is_zeroed)
                    rc = c->to->ops->write_zeroes(c->to, at, n, true);
                continue;
            }
        }
        n = MIN(STEP - at % STEP, size - at);
        if (rc == 0)
            rc = image_read(c->from, at, c->buf, n);
        if (rc != 0) {
            err_set(e, -rc, "read '%s' at %llu", c->from_path, (unsigned long long)at);
            break;
        }
        rc = copy_data(c, at, n);
        if (rc != 0)
            err_set(e, -rc, "write '%s' at %llu", c->to_path, (unsigned long long)at);
    }
    progress_end(&progress);
    if (rc == 0) {
        rc = c->to->ops->flush(c->to);
        if (rc != 0)
            err_set(e, -rc, "write '%s' out", c->to_path);
    }
    return rc;
}

/* ---- convert ---- */

static enum block_format target_format(const struct image_request *r)
{
    size_t len = strlen(r->second);

    if (r->format != BLOCK_FORMAT_AUTO)
        return r->format;
    return (len >= 4 && strcmp(r->second + len - 4, ".raw") == 0) ||
                   (len >= 4 && strcmp(r->second + len - 4, ".img") == 0)
               ? BLOCK_FORMAT_RAW
               : BLOCK_FORMAT_QCOW2;
}

static int convert(const struct image_request *r, struct image *from, struct err *e)
{
    enum block_format format = target_format(r);
    struct qcow2_create create = r->create;
    struct copy c = {.from = from, .from_path = r->file, .to_path = r->second};
    struct stat before;
    bool was_there = stat(r->second, &before) == 0;

    if (r->compresses && format == BLOCK_FORMAT_RAW)
        return err_set(e, 0, "--compress: a raw image cannot be compressed");
    create.size = from->size;
    int rc = image_make(r->second, format, &create, r->forces, &c.to, &c.is_zeroed, e);
    if (rc != 0)
        return rc;
    c.compresses = r->compresses;
    c.unit =
        format == BLOCK_FORMAT_QCOW2 ? MAX(create.cluster_size, r->compresses ? 1 : BLOCK) : BLOCK;
    c.buf = aligned_alloc(BLOCK, STEP);
    rc = c.buf != NULL ? copy_all(&c, e) : err_set(e, ENOMEM, "copy '%s'", r->file);
    free(c.buf);
    image_close(c.to);
    if (rc != 0 && !was_there)
        unlink(r->second);
    return rc;
}

int image_convert(const struct image_request *r)
{
    struct image_config config = {
        .path = r->file, .format = r->source_format, .is_read_only = true};
    struct image *from;
    struct err e;
    int rc = image_open(&config, &from, &e);

    if (rc == 0) {
        rc = convert(r, from, &e);
        image_close(from);
    }
    return rc == 0 ? EXIT_STATUS_OK : image_fail(&e);
}

/* ---- commit ---- */

/* Only what the overlay itself says. */
static int commit_all(struct image *top, uint8_t *buf)
{
    struct progress progress = {.is_shown = isatty(STDERR_FILENO), .percent = 100};
    struct image *below = top->backing;
    int rc = 0;

    for (uint64_t at = 0, n; at < top->size && rc == 0; at += n) {
        enum image_extent extent;
        n = top->size - at;
        progress_show(&progress, at, top->size);
        rc = top->ops->map(top, at, &n, &extent);
        if (rc != 0 || extent == IMAGE_ABSENT)
            continue;
        if (extent == IMAGE_ZERO) {
            rc = below->ops->write_zeroes(below, at, n, true);
            continue;
        }
        n = MIN(n, STEP);
        rc = image_read(top, at, buf, n);
        if (rc == 0)
            rc = image_write(below, at, buf, n);
    }
    progress_end(&progress);
    return rc;
}

static int commit(const char *path, struct image *top, struct err *e)
{
    struct image *below = top->backing;
    int rc = 0;

    if (below == NULL)
        return err_set(e, 0, "commit '%s': it has no backing file", path);
    if (top->size > below->size)
        rc = below->ops->resize(below, top->size, e);
    if (rc != 0)
        return rc;
    uint8_t *buf = aligned_alloc(BLOCK, STEP);
    rc = buf != NULL ? commit_all(top, buf) : -ENOMEM;
    free(buf);
    /* what is below must be there before what is above goes */
    if (rc == 0)
        rc = below->ops->flush(below);
    if (rc == 0)
        rc = top->ops->empty(top);
    if (rc == 0)
        rc = top->ops->flush(top);
    return rc == 0 ? 0 : err_set(e, -rc, "commit '%s' (nothing is lost: it can be repeated)", path);
}

int image_commit(const struct image_request *r)
{
    struct image_config config = {
        .path = r->file, .format = r->format, .opens_backing_writable = true};
    struct image *top;
    struct err e;
    int rc = image_open(&config, &top, &e);

    if (rc == 0) {
        rc = commit(r->file, top, &e);
        image_close(top);
    }
    return rc == 0 ? EXIT_STATUS_OK : image_fail(&e);
}
