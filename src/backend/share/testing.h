/*
 * testing.h - a shared folder for the tests of this folder, and requests as drivers send them
 *
 * Each test has a folder of its own, "folder", with "secret" beside it, which no request may reach:
 * fs_teardown looks whether it is as it was. What goes wrong here is a failure of the test.
 */
#ifndef DOPPEL_BACKEND_SHARE_TESTING_H
#define DOPPEL_BACKEND_SHARE_TESTING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "backend/share/share.h"

#define REPLY_MAX 65536u

struct fs_test {
    char top[64], folder[80];
    struct share *share;
    int dir; /* the folder, for the test's own look */

    /* of the last request */
    int32_t error;
    uint32_t written, reply_size;
    uint8_t answer[sizeof(struct fuse_out_header) + REPLY_MAX];
    uint8_t *reply;
    uint64_t unique;
};

/* ---- folders ---- */

/* A folder and its server, with the session begun; of *like all but the path counts. */
struct fs_test *fs_setup_like(const struct share_config *like);
/* The same, with at most so many descriptors. */
struct fs_test *fs_setup_with(bool is_read_only, unsigned descriptors);
/* The same, writable and with plenty of them. */
struct fs_test *fs_setup(void);
/* All of it goes. */
void fs_teardown(struct fs_test *f);
/* A file, by a name relative to the folder. */
void fs_put_file(const struct fs_test *f, const char *name, const char *text);
/* How many this process has. */
unsigned fs_count_descriptors(void);

/* ---- requests: those that return int return their error, 0 or -errno ---- */

/* Carry out what the pieces hold; returns what was written. */
uint32_t fs_submit(struct fs_test *f, const struct iovec *in, unsigned in_count,
                   const struct iovec *out, unsigned out_count);
/* A request; `room` bytes are there for what comes behind the header of its answer. */
int fs_send_room(struct fs_test *f, uint32_t opcode, uint64_t node, const void *args, size_t size,
                 size_t room);
int fs_send(struct fs_test *f, uint32_t opcode, uint64_t node, const void *args, size_t size);
int fs_send_name(struct fs_test *f, uint32_t opcode, uint64_t node, const char *name);
/* Arguments of a struct and up to two names behind it. */
int fs_send_names(struct fs_test *f, uint32_t opcode, uint64_t node, const void *args, size_t size,
                  const char *a, const char *b);

/* ---- those that are to succeed ---- */

int fs_init(struct fs_test *f, uint32_t major, uint32_t minor);
/* The node. */
uint64_t fs_look_up(struct fs_test *f, uint64_t node, const char *name);
void fs_forget(struct fs_test *f, uint64_t node, uint64_t count);
/* The handle. */
uint64_t fs_open_node(struct fs_test *f, uint64_t node, uint32_t flags);
int fs_release(struct fs_test *f, uint32_t opcode, uint64_t node, uint64_t fh);
int fs_write_text(struct fs_test *f, uint64_t node, uint64_t fh, uint64_t offset, uint32_t flags,
                  const char *text);
/* All entries, in pages of `room` bytes; for READDIRPLUS the look-ups are given back. */
unsigned fs_list(struct fs_test *f, uint64_t node, uint32_t opcode, uint32_t room);
int fs_read_at(struct fs_test *f, uint64_t node, uint64_t fh, uint64_t offset, uint32_t size);

#endif
