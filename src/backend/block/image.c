/*
 * image.c - opening images: formats found out, chains of backing files, temporary overlays
 */
#include "backend/block/image.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "backend/block/nbd.h"
#include "backend/block/qcow2.h"
#include "backend/block/store.h"
#include "base/bits.h"

static const char *const format_names[] = {
    [BLOCK_FORMAT_AUTO] = "auto",
    [BLOCK_FORMAT_RAW] = "raw",
    [BLOCK_FORMAT_QCOW2] = "qcow2",
};

const char *image_format_name(enum block_format format)
{
    return format_names[format];
}

int image_parse_format(const char *name, enum block_format *out)
{
    for (unsigned i = BLOCK_FORMAT_RAW; i < ARRAY_SIZE(format_names); i++)
        if (strcmp(name, format_names[i]) == 0) {
            *out = (enum block_format)i;
            return 0;
        }
    return -EINVAL;
}

bool image_is_qcow2_magic(const uint8_t magic[IMAGE_MAGIC_SIZE])
{
    return memcmp(magic, "QFI\xfb", IMAGE_MAGIC_SIZE) == 0;
}

static bool has_suffix(const char *text, const char *suffix)
{
    size_t len = strlen(text), n = strlen(suffix);

    return len >= n && strcmp(text + len - n, suffix) == 0;
}

/* ---- chains ---- */

/* What lies on top of an image that is being opened: to find loops. */
struct chain {
    const struct chain *above;
    unsigned depth;
    dev_t device;
    ino_t inode;
};

static int open_in_chain(const struct image_config *config, const struct chain *above,
                         struct image **out, struct err *e);

char *image_resolve(const char *image_path, const char *name)
{
    const char *slash = strrchr(image_path, '/');
    size_t folder = slash != NULL && name[0] != '/' ? (size_t)(slash + 1 - image_path) : 0;
    char *path = malloc(folder + strlen(name) + 1);

    if (path != NULL) {
        memcpy(path, image_path, folder);
        strcpy(path + folder, name);
    }
    return path;
}

/* "nbd:...", "json:{...": names that are no files. A colon in a file's name follows a slash. */
static bool names_protocol(const char *name)
{
    return name[strcspn(name, ":/")] == ':';
}

static int open_backing(struct image *image, const struct image_config *config,
                        const struct chain *here, struct err *e)
{
    const struct qcow2_names *names = qcow2_names(image);
    const char *name = names->backing_file;
    struct image_config backing = {
        .format = BLOCK_FORMAT_AUTO,
        .is_read_only = !config->opens_backing_writable,
        .is_unlocked = config->is_unlocked,
        .names_nothing = true,
        .cache = config->cache,
    };
    int rc;

    if (name[0] == '\0' || config->is_alone)
        return 0;
    if (nbd_is_uri(config->path)) /* what a server says does not lead to files of ours */
        return err_set(
            e, 0,
            "open the backing file of '%s': it is named '%s', but an image that a server "
            "has cannot have one",
            config->path, name);
    if (strncmp(name, "file:", 5) == 0)
        name += 5;
    if (names_protocol(name))
        return err_set(e, 0,
                       "open the backing file of '%s': '%s' is not the name of a file, and other "
                       "kinds are not supported",
                       config->path, name);
    if (names->backing_format[0] != '\0' &&
        image_parse_format(names->backing_format, &backing.format) != 0)
        return err_set(e, 0,
                       "open the backing file '%s' of '%s': its format '%s' is not supported (raw "
                       "and qcow2 are)",
                       name, config->path, names->backing_format);
    char *path = image_resolve(config->path, name);
    if (path == NULL)
        return err_set(e, ENOMEM, "open the backing file of '%s'", config->path);
    backing.path = path;
    rc = open_in_chain(&backing, here, &image->backing, e);
    free(path);
    if (rc != 0 && here->above == NULL) /* of a long chain, its top is enough */
        err_prefix(e, "what is behind '%s'", config->path);
    return rc;
}

static int check_detected(struct image *image, const struct image_config *config, struct err *e)
{
    const struct qcow2_names *names = qcow2_names(image);

    if (config->format != BLOCK_FORMAT_AUTO || config->is_alone || names->backing_file[0] == '\0')
        return 0;
    if (config->names_nothing)
        return err_set(e, 0,
                       "open '%s': it looks like qcow2 with a backing file '%s', but the image on "
                       "top of it does not state its format, and a raw disk's guest could have "
                       "made it look so; make the overlay again with the backing file's format",
                       config->path, names->backing_file);
    if (has_suffix(config->path, ".qcow2"))
        return 0;
    return err_set(e, 0,
                   "open '%s': it looks like qcow2 with a backing file '%s', which a raw disk's "
                   "guest could have made it look like; state the format (format=qcow2 or "
                   "format=raw), or give it a name that ends in .qcow2",
                   config->path, names->backing_file);
}

static int open_qcow2(struct store *store, const struct image_config *config,
                      const struct chain *here, struct image **out, struct err *e)
{
    struct image *image;
    int rc = qcow2_open(store, config, &image, e);

    if (rc != 0)
        return rc;
    rc = check_detected(image, config, e);
    if (rc == 0)
        rc = open_backing(image, config, here, e);
    if (rc == 0)
        rc = qcow2_start(image, config, e);
    if (rc != 0) {
        image_close(image);
        return rc;
    }
    *out = image;
    return 0;
}

/* The file's identity is looked at before it is opened: a lock on it would be in our own way. */
static int check_chain(const char *path, struct chain *here, struct err *e)
{
    struct stat st;

    if (here->depth > IMAGE_CHAIN_MAX)
        return err_set(e, 0, "open '%s': more than %u images are on top of each other", path,
                       IMAGE_CHAIN_MAX);
    if (stat(path, &st) != 0)
        return 0; /* opening it will say why */
    here->device = st.st_dev;
    here->inode = st.st_ino;
    for (const struct chain *c = here->above; c != NULL; c = c->above)
        if (c->device == st.st_dev && c->inode == st.st_ino)
            return err_set(e, 0, "open '%s': the image is its own backing file", path);
    return 0;
}

static int find_format(struct store *store, const struct image_config *config,
                       enum block_format *out, struct err *e)
{
    uint8_t magic[IMAGE_MAGIC_SIZE];
    int rc;

    *out = config->format;
    if (*out != BLOCK_FORMAT_AUTO)
        return 0;
    rc = store_read(store, 0, magic, sizeof(magic));
    if (rc != 0)
        return err_set(e, -rc, "read '%s'", config->path);
    *out = image_is_qcow2_magic(magic) ? BLOCK_FORMAT_QCOW2 : BLOCK_FORMAT_RAW;
    return 0;
}

static int open_in_chain(const struct image_config *config, const struct chain *above,
                         struct image **out, struct err *e)
{
    struct chain here = {.above = above, .depth = above != NULL ? above->depth + 1 : 1};
    struct store_config where = {
        .path = config->path,
        .is_read_only = config->is_read_only,
        .is_unlocked = config->is_unlocked,
        .cache = config->cache,
    };
    enum block_format format;
    struct store *store;

    int rc = check_chain(config->path, &here, e);
    if (rc == 0) /* a file in a folder "nbd:" is also "./nbd:..." */
        rc = nbd_is_uri(config->path) ? store_open_nbd(&where, NBD_ANSWER_LIMIT_MS, &store, e)
                                      : store_open_file(&where, &store, e);
    if (rc != 0)
        return rc;
    rc = find_format(store, config, &format, e);
    if (rc != 0) {
        store->ops->close(store);
        return rc;
    }
    return format == BLOCK_FORMAT_RAW ? image_open_raw(store, config, out, e)
                                      : open_qcow2(store, config, &here, out, e);
}

int image_open(const struct image_config *config, struct image **out, struct err *e)
{
    return open_in_chain(config, NULL, out, e);
}

int image_open_ephemeral(struct image *base, struct image **out, struct err *e)
{
    struct image_config config = {.path = "temporary overlay", .format = BLOCK_FORMAT_QCOW2};
    struct qcow2_create create = {
        .size = base->size, .version = 3, .cluster_size = QCOW2_CLUSTER_DEFAULT};
    struct store *store = NULL;
    int rc = store_open_temporary(&store, e);

    if (rc == 0)
        rc = qcow2_format(store, &create, e);
    if (rc != 0) {
        if (store != NULL)
            store->ops->close(store);
        image_close(base);
        return rc;
    }
    rc = qcow2_open(store, &config, out, e);
    if (rc != 0) {
        image_close(base);
        return rc;
    }
    (*out)->backing = base;
    rc = qcow2_start(*out, &config, e);
    if (rc != 0)
        image_close(*out);
    return rc;
}

void image_close(struct image *image)
{
    while (image != NULL) {
        struct image *backing = image->backing;
        image->ops->close(image);
        image = backing;
    }
}

/* ---- for tools ---- */

int image_read(struct image *image, uint64_t offset, void *buf, uint64_t size)
{
    uint64_t from = align_down(offset, BLOCK_SECTOR), to;
    struct iovec iov = {.iov_base = buf, .iov_len = size};

    if (!range_fits(offset, size, image->size))
        return -EINVAL;
    to = align_up(offset + size, BLOCK_SECTOR);
    if (size == 0)
        return 0;
    if (from == offset && to == offset + size)
        return image->ops->transfer(image, false, offset, size, &iov, 1);
    iov = (struct iovec){.iov_base = malloc(to - from), .iov_len = to - from};
    if (iov.iov_base == NULL)
        return -ENOMEM;
    int rc = image->ops->transfer(image, false, from, to - from, &iov, 1);
    if (rc == 0)
        memcpy(buf, (uint8_t *)iov.iov_base + (offset - from), size);
    free(iov.iov_base);
    return rc;
}

int image_write(struct image *image, uint64_t offset, const void *buf, uint64_t size)
{
    struct iovec iov = {.iov_base = (void *)buf, .iov_len = size};

    if (((offset | size) & (BLOCK_SECTOR - 1)) != 0 || !range_fits(offset, size, image->size))
        return -EINVAL;
    if (image->is_read_only)
        return -EROFS;
    return size == 0 ? 0 : image->ops->transfer(image, true, offset, size, &iov, 1);
}

int image_map_chain(struct image *image, uint64_t offset, uint64_t *size, enum image_extent *out)
{
    for (;; image = image->backing) {
        if (image == NULL || offset >= image->size) {
            *out = IMAGE_ZERO;
            return 0;
        }
        *size = MIN(*size, image->size - offset);
        int rc = image->ops->map(image, offset, size, out);
        if (rc != 0 || *out != IMAGE_ABSENT)
            return rc;
    }
}
