/*
 * image_commands.c - `doppel image create`, `info`, `resize` and `check`
 */
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/block/nbd.h"
#include "backend/block/store.h"
#include "base/bits.h"
#include "base/log.h"
#include "base/parse.h"
#include "cli/image.h"
#include "cli/run.h"

#define REPORTS_MAX 50 /* lines of `check` about single clusters */

/* ---- create ---- */

static int make_raw(struct store *store, const char *path, const struct qcow2_create *create,
                    struct err *e)
{
    int rc;

    if (create->preallocation == QCOW2_PREALLOCATE_METADATA)
        return err_set(e, 0, "make '%s': a raw image has no metadata to preallocate", path);
    if (create->size < BLOCK_SECTOR || create->size % BLOCK_SECTOR != 0)
        return err_set(e, 0, "make '%s': the size must be a multiple of 512 bytes", path);
    if (!store->grows_zeroed)
        return create->size <= store->size
                   ? 0
                   : err_set(e, 0, "use '%s' as an image: the device is too small", path);
    rc = store->ops->resize(store, create->size);
    if (rc == 0 && create->preallocation == QCOW2_PREALLOCATE_FALLOC)
        rc = store->ops->allocate(store, 0, create->size);
    return rc == 0 ? 0
                   : err_set(e, -rc, "make '%s' %llu bytes large", path,
                             (unsigned long long)create->size);
}

int image_make(const char *path, enum block_format format, const struct qcow2_create *create,
               bool may_replace, struct image **out, bool *is_zeroed, struct err *e)
{
    struct image_config config = {.path = path, .format = format, .is_alone = true};
    struct stat before;
    bool was_there = stat(path, &before) == 0;
    struct store *store;
    int rc = store_create_file(path, may_replace, &store, e);

    if (rc != 0)
        return rc;
    *is_zeroed = format == BLOCK_FORMAT_QCOW2 || store->grows_zeroed;
    rc = format == BLOCK_FORMAT_RAW ? make_raw(store, path, create, e)
                                    : qcow2_format(store, create, e);
    store->ops->close(store);
    if (rc == 0)
        rc = image_open(&config, out, e);
    if (rc == 0 && format == BLOCK_FORMAT_QCOW2 && create->preallocation != QCOW2_PREALLOCATE_OFF) {
        rc = qcow2_preallocate(*out, create->preallocation, e);
        if (rc != 0)
            image_close(*out);
    }
    if (rc != 0 && !was_there)
        unlink(path);
    return rc;
}

/* The backing file must be there, and says how large the disk is if nobody else does. */
static int look_at_backing(const struct image_request *r, struct qcow2_create *create,
                           struct err *e)
{
    struct image_config config = {
        .format = r->backing_format, .is_read_only = true, .is_unlocked = true};
    struct image *image;
    int rc;

    if (nbd_is_uri(create->backing_file) || nbd_is_uri(r->file))
        return err_set(e, 0, "--backing: images and their backing files have to be files");
    char *path = image_resolve(r->file, create->backing_file);
    if (path == NULL)
        return err_set(e, ENOMEM, "open the backing file");
    config.path = path;
    rc = image_open(&config, &image, e);
    free(path);
    if (rc != 0)
        return err_prefix(e, "--backing");
    create->backing_format = image->format;
    if (create->size == 0)
        create->size = image->size;
    image_close(image);
    return 0;
}

static int take_size(const char *text, uint64_t *out, struct err *e)
{
    int rc = parse_size(text, "SIZE", out, e);

    if (rc == 0 && (*out == 0 || *out % BLOCK_SECTOR != 0))
        rc = err_set(e, 0, "SIZE: %s is not a multiple of 512 bytes", text);
    return rc;
}

int image_create(const struct image_request *r)
{
    struct qcow2_create create = r->create;
    enum block_format format = r->format != BLOCK_FORMAT_AUTO ? r->format : BLOCK_FORMAT_QCOW2;
    struct image *image;
    bool is_zeroed;
    struct err e;
    int rc = 0;

    if (r->second != NULL)
        rc = take_size(r->second, &create.size, &e);
    else if (create.backing_file == NULL)
        rc = err_set(&e, 0, "how large? doppel image create FILE SIZE, as in 20G");
    if (rc == 0 && create.backing_file != NULL && format == BLOCK_FORMAT_RAW)
        rc = err_set(&e, 0, "a raw image cannot have a backing file");
    if (rc == 0 && create.backing_file != NULL)
        rc = look_at_backing(r, &create, &e);
    if (rc == 0)
        rc = image_make(r->file, format, &create, r->forces, &image, &is_zeroed, &e);
    if (rc != 0)
        return image_fail(&e);
    image_close(image);
    return EXIT_STATUS_OK;
}

/* ---- info ---- */

static const char *compression_name(enum qcow2_compression compression)
{
    return compression == QCOW2_ZSTD ? "zstd" : "zlib";
}

static json_t *qcow2_json(struct image *image)
{
    const struct qcow2_names *names = qcow2_names(image);
    struct qcow2_info q;

    qcow2_get_info(image, &q);
    json_t *json = json_pack("{s:i, s:I, s:i, s:s, s:b, s:b, s:b, s:i}", "version", (int)q.version,
                             "cluster_size", (json_int_t)q.cluster_size, "refcount_bits",
                             (int)q.refcount_bits, "compression", compression_name(q.compression),
                             "lazy_refcounts", q.has_lazy_refcounts, "dirty", q.is_dirty, "corrupt",
                             q.is_corrupt, "snapshots", (int)q.snapshot_count);
    if (names->backing_file[0] != '\0') {
        /* the bytes of a file's name need not be UTF-8: then JSON cannot say them */
        json_t *name = json_string(names->backing_file);
        json_object_set_new(json, "backing_file", name != NULL ? name : json_null());
        if (names->backing_format[0] != '\0') {
            json_t *format = json_string(names->backing_format);
            json_object_set_new(json, "backing_format", format != NULL ? format : json_null());
        }
    }
    return json;
}

static void print_json(json_t *json)
{
    json_dumpf(json, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(json);
}

/* A size as people say it, with the exact number behind it. */
static void print_size(const char *what, uint64_t size)
{
    static const char units[] = " KMGTPE";
    double value = (double)size;
    unsigned unit = 0;

    for (; value >= 1024 && unit + 1 < sizeof(units) - 1; unit++)
        value /= 1024;
    if (unit == 0)
        printf("%-16s%llu bytes\n", what, (unsigned long long)size);
    else
        printf("%-16s%.3g %ciB (%llu bytes)\n", what, value, units[unit], (unsigned long long)size);
}

static void print_qcow2(struct image *image)
{
    const struct qcow2_names *names = qcow2_names(image);
    struct qcow2_info q;

    qcow2_get_info(image, &q);
    printf("%-16s%u\n", "version", q.version);
    print_size("cluster size", q.cluster_size);
    printf("%-16s%u bits%s\n", "refcounts", q.refcount_bits, q.has_lazy_refcounts ? ", lazy" : "");
    printf("%-16s%s\n", "compression", compression_name(q.compression));
    if (q.snapshot_count != 0)
        printf("%-16s%u\n", "snapshots", q.snapshot_count);
    if (names->backing_file[0] != '\0')
        printf("%-16s%s (%s)\n", "backing file", names->backing_file,
               names->backing_format[0] != '\0' ? names->backing_format : "format not recorded");
    if (q.is_dirty)
        printf("%-16snot closed; it is repaired when it is opened for writing\n", "state");
    if (q.is_corrupt)
        printf("%-16smarked as damaged: doppel image check\n", "state");
}

int image_info(const struct image_request *r)
{
    struct image_config config = {.path = r->file,
                                  .format = r->format,
                                  .is_read_only = true,
                                  .is_unlocked = true,
                                  .is_alone = true,
                                  .is_for_repair = true};
    struct image *image;
    struct stat st = {0};
    struct err e;

    if (image_open(&config, &image, &e) != 0)
        return image_fail(&e);
    bool is_file = stat(r->file, &st) == 0; /* what a server has, only it knows */
    uint64_t used = (uint64_t)st.st_blocks * 512;
    if (r->wants_json) {
        json_t *name = json_string(r->file);
        json_t *json =
            json_pack("{s:o, s:s, s:I}", "file", name != NULL ? name : json_null(), "format",
                      image_format_name(image->format), "size", (json_int_t)image->size);
        if (is_file)
            json_object_set_new(json, "disk_size", json_integer((json_int_t)used));
        if (image->format == BLOCK_FORMAT_QCOW2)
            json_object_set_new(json, "qcow2", qcow2_json(image));
        print_json(json);
    } else {
        printf("%-16s%s\n", "file", r->file);
        printf("%-16s%s\n", "format", image_format_name(image->format));
        print_size("size", image->size);
        if (is_file)
            print_size("on the disk", used);
        if (image->format == BLOCK_FORMAT_QCOW2)
            print_qcow2(image);
    }
    image_close(image);
    return EXIT_STATUS_OK;
}

/* ---- resize ---- */

static int new_size(const struct image_request *r, const struct image *image, uint64_t *out,
                    struct err *e)
{
    bool is_more = r->second[0] == '+';
    int rc = take_size(r->second + is_more, out, e);

    if (rc != 0)
        return rc;
    if (is_more && *out > INT64_MAX - image->size)
        return err_set(e, 0, "SIZE: %s is too much", r->second);
    *out += is_more ? image->size : 0;
    if (*out < image->size && !r->shrinks)
        return err_set(e, 0,
                       "resize '%s' from %llu to %llu bytes: what lies behind would be lost; "
                       "--shrink allows it",
                       r->file, (unsigned long long)image->size, (unsigned long long)*out);
    return 0;
}

int image_resize(const struct image_request *r)
{
    struct image_config config = {.path = r->file, .format = r->format};
    struct image *image;
    uint64_t size = 0;
    struct err e;
    int rc = image_open(&config, &image, &e);

    if (rc != 0)
        return image_fail(&e);
    rc = new_size(r, image, &size, &e);
    if (rc == 0 && size != image->size)
        rc = image->ops->resize(image, size, &e);
    image_close(image);
    return rc == 0 ? EXIT_STATUS_OK : image_fail(&e);
}

/* ---- check ---- */

struct reports {
    json_t *list; /* NULL: printed */
    unsigned count;
};

static void on_report(void *ctx, const char *text)
{
    struct reports *reports = ctx;

    if (reports->count++ >= REPORTS_MAX)
        return;
    if (reports->list != NULL)
        json_array_append_new(reports->list, json_string(text));
    else
        printf("%s\n", text);
}

static void print_check(const struct image_request *r, const struct qcow2_check *c)
{
    uint64_t errors = c->errors - c->errors_fixed, leaks = c->leaks - c->leaks_fixed;

    if (c->errors_fixed + c->leaks_fixed != 0)
        printf("%s: repaired %llu errors and %llu leaks\n", r->file,
               (unsigned long long)c->errors_fixed, (unsigned long long)c->leaks_fixed);
    if (errors + leaks == 0)
        printf("%s: no errors\n", r->file);
    else
        printf("%s: %llu errors, %llu leaks\n", r->file, (unsigned long long)errors,
               (unsigned long long)leaks);
    printf("%llu of %llu clusters (%.1f %%) are allocated, %llu of them compressed\n",
           (unsigned long long)c->allocated, (unsigned long long)c->clusters,
           c->clusters != 0 ? 100.0 * (double)c->allocated / (double)c->clusters : 0.0,
           (unsigned long long)c->compressed);
}

int image_check(const struct image_request *r)
{
    struct image_config config = {.path = r->file,
                                  .format = r->format,
                                  .is_read_only = r->repair == QCOW2_REPAIR_NONE,
                                  .is_alone = true,
                                  .is_for_repair = true};
    struct reports reports = {.list = r->wants_json ? json_array() : NULL};
    struct qcow2_check check = {.report = on_report, .ctx = &reports};
    struct image *image;
    struct err e;
    int rc = image_open(&config, &image, &e);

    if (rc != 0) {
        json_decref(reports.list);
        return image_fail(&e);
    }
    if (image->format != BLOCK_FORMAT_QCOW2)
        rc = err_set(&e, 0, "check '%s': a raw image has nothing that could be wrong", r->file);
    if (rc == 0)
        rc = qcow2_check(image, r->repair, &check, &e);
    image_close(image);
    if (rc != 0) {
        json_decref(reports.list);
        return image_fail(&e);
    }
    if (reports.count > REPORTS_MAX && reports.list == NULL)
        printf("... and %u more\n", reports.count - REPORTS_MAX);
    if (r->wants_json)
        print_json(json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o}", "errors",
                             (json_int_t)(check.errors - check.errors_fixed), "leaks",
                             (json_int_t)(check.leaks - check.leaks_fixed), "errors_fixed",
                             (json_int_t)check.errors_fixed, "leaks_fixed",
                             (json_int_t)check.leaks_fixed, "clusters", (json_int_t)check.clusters,
                             "allocated", (json_int_t)check.allocated, "compressed",
                             (json_int_t)check.compressed, "end_offset",
                             (json_int_t)check.end_offset, "reports", reports.list));
    else
        print_check(r, &check);
    if (check.errors > check.errors_fixed)
        return IMAGE_STATUS_DAMAGED;
    return check.leaks > check.leaks_fixed ? IMAGE_STATUS_LEAKS : EXIT_STATUS_OK;
}
