/*
 * image.h - `doppel image`: disk images made, looked at, changed
 */
#ifndef DOPPEL_CLI_IMAGE_H
#define DOPPEL_CLI_IMAGE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "backend/block/image.h"
#include "backend/block/qcow2.h"
#include "base/err.h"

/* How `doppel image check` ends, beyond EXIT_STATUS_OK and EXIT_STATUS_ERROR. */
enum image_status {
    IMAGE_STATUS_DAMAGED = 2, /* errors remain */
    IMAGE_STATUS_LEAKS = 3,   /* nothing but leaks remains */
};

/* argv[0..argc) starts behind "image". Returns the exit status. */
int image_run(int argc, char **argv);

/* Lines for the general help. */
void image_print_list(FILE *out);

/* ---- between the files of the command ---- */

/* What was asked for. Strings point into argv. */
struct image_request {
    const char *file, *second;       /* second: SIZE, or TARGET */
    enum block_format format;        /* AUTO: not given */
    enum block_format source_format; /* likewise */
    struct qcow2_create create;
    enum block_format backing_format; /* AUTO: found out */
    enum qcow2_repair repair;
    bool compresses, forces, shrinks, wants_json;
};

/* image_commands.c. Each returns the exit status; messages have been printed. */
int image_create(const struct image_request *r);
int image_info(const struct image_request *r);
int image_resize(const struct image_request *r);
int image_check(const struct image_request *r);

/* image_copy.c */
int image_convert(const struct image_request *r);
int image_commit(const struct image_request *r);

/*
 * Make the file with an empty disk of create->size bytes in it, and open it for writing.
 * *is_zeroed: it reads as zeroes (a block device does not).
 */
int image_make(const char *path, enum block_format format, const struct qcow2_create *create,
               bool may_replace, struct image **out, bool *is_zeroed, struct err *e);

int image_fail(const struct err *e);

#endif
