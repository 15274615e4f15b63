/*
 * testing.c - see testing.h
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/share/testing.h"
#include "backend/share/waiting.h"

/* ---- requests ---- */

uint32_t fs_submit(struct fs_test *f, const struct iovec *in, unsigned in_count,
                   const struct iovec *out, unsigned out_count)
{
    struct share_waiting w;

    share_waiting_submit(&w, f->share, in, in_count, out, out_count);
    return share_waiting_end(&w);
}

struct message {
    struct fuse_in_header header;
    uint8_t args[8192];
};

int fs_send_room(struct fs_test *f, uint32_t opcode, uint64_t node, const void *args, size_t size,
                 size_t room)
{
    static _Thread_local struct message m;
    const struct fuse_out_header *out = (const void *)f->answer;

    assert_true(size <= sizeof(m.args));
    m.header = (struct fuse_in_header){.len = (uint32_t)(sizeof(m.header) + size),
                                       .opcode = opcode,
                                       .unique = ++f->unique,
                                       .nodeid = node,
                                       .uid = geteuid(),
                                       .gid = getegid()};
    memcpy(m.args, args, size);
    struct iovec in = {&m, sizeof(m.header) + size};
    struct iovec to = {f->answer, sizeof(*out) + room};
    f->written = fs_submit(f, &in, 1, &to, 1);
    assert_true(f->written >= sizeof(*out) && f->written <= to.iov_len);
    assert_int_equal(out->len, f->written);
    assert_true(out->unique == f->unique);
    f->error = out->error;
    f->reply_size = f->written - (uint32_t)sizeof(*out);
    assert_true(f->error <= 0 && f->error > -512 && (f->error == 0 || f->reply_size == 0));
    return f->error;
}

int fs_send(struct fs_test *f, uint32_t opcode, uint64_t node, const void *args, size_t size)
{
    return fs_send_room(f, opcode, node, args, size, REPLY_MAX);
}

int fs_send_name(struct fs_test *f, uint32_t opcode, uint64_t node, const char *name)
{
    return fs_send(f, opcode, node, name, strlen(name) + 1);
}

int fs_send_names(struct fs_test *f, uint32_t opcode, uint64_t node, const void *args, size_t size,
                  const char *a, const char *b)
{
    uint8_t buf[8192];

    memcpy(buf, args, size);
    memcpy(buf + size, a, strlen(a) + 1);
    size += strlen(a) + 1;
    if (b != NULL) {
        memcpy(buf + size, b, strlen(b) + 1);
        size += strlen(b) + 1;
    }
    return fs_send(f, opcode, node, buf, size);
}

uint64_t fs_look_up(struct fs_test *f, uint64_t node, const char *name)
{
    assert_int_equal(fs_send_name(f, FUSE_LOOKUP, node, name), 0);
    assert_int_equal(f->reply_size, sizeof(struct fuse_entry_out));
    return ((struct fuse_entry_out *)f->reply)->nodeid;
}

void fs_forget(struct fs_test *f, uint64_t node, uint64_t count)
{
    struct {
        struct fuse_in_header header;
        struct fuse_forget_in in;
    } m = {.header = {.len = sizeof(m), .opcode = FUSE_FORGET, .nodeid = node},
           .in = {.nlookup = count}};
    struct iovec in = {&m, sizeof(m)};

    assert_int_equal(fs_submit(f, &in, 1, NULL, 0), 0);
}

uint64_t fs_open_node(struct fs_test *f, uint64_t node, uint32_t flags)
{
    struct fuse_open_in in = {.flags = flags};

    assert_int_equal(fs_send(f, FUSE_OPEN, node, &in, sizeof(in)), 0);
    return ((struct fuse_open_out *)f->reply)->fh;
}

int fs_release(struct fs_test *f, uint32_t opcode, uint64_t node, uint64_t fh)
{
    struct fuse_release_in in = {.fh = fh};

    return fs_send(f, opcode, node, &in, sizeof(in));
}

int fs_write_text(struct fs_test *f, uint64_t node, uint64_t fh, uint64_t offset, uint32_t flags,
                  const char *text)
{
    struct fuse_write_in in = {
        .fh = fh, .offset = offset, .size = (uint32_t)strlen(text), .write_flags = flags};
    uint8_t buf[256];

    memcpy(buf, &in, sizeof(in));
    memcpy(buf + sizeof(in), text, in.size);
    return fs_send(f, FUSE_WRITE, node, buf, sizeof(in) + in.size);
}

int fs_read_at(struct fs_test *f, uint64_t node, uint64_t fh, uint64_t offset, uint32_t size)
{
    struct fuse_read_in in = {.fh = fh, .offset = offset, .size = size};

    return fs_send(f, FUSE_READ, node, &in, sizeof(in));
}

unsigned fs_list(struct fs_test *f, uint64_t node, uint32_t opcode, uint32_t room)
{
    struct fuse_open_in open_in = {0};
    struct fuse_read_in in = {.size = room};
    unsigned count = 0;

    assert_int_equal(fs_send(f, FUSE_OPENDIR, node, &open_in, sizeof(open_in)), 0);
    in.fh = ((struct fuse_open_out *)f->reply)->fh;
    for (;;) {
        static uint8_t page[REPLY_MAX];
        assert_int_equal(fs_send(f, opcode, node, &in, sizeof(in)), 0);
        uint32_t size = f->reply_size, at = 0;
        assert_true(size <= room);
        if (size == 0)
            break;
        memcpy(page, f->reply, size);
        while (at < size) {
            const struct fuse_entry_out *entry = (void *)(page + at);
            at += opcode == FUSE_READDIRPLUS ? sizeof(*entry) : 0;
            const struct fuse_dirent *d = (void *)(page + at);
            bool is_dots = d->name[0] == '.';
            assert_true(at + FUSE_DIRENT_SIZE(d) <= size);
            at += FUSE_DIRENT_SIZE(d);
            in.offset = d->off;
            count++;
            if (opcode != FUSE_READDIRPLUS)
                continue;
            assert_int_equal(entry->nodeid == 0, is_dots);
            assert_true(is_dots || entry->attr.ino == d->ino);
            if (!is_dots)
                fs_forget(f, entry->nodeid, 1);
        }
    }
    assert_int_equal(fs_release(f, FUSE_RELEASEDIR, node, in.fh), 0);
    return count;
}

int fs_init(struct fs_test *f, uint32_t major, uint32_t minor)
{
    struct fuse_init_in in = {
        .major = major, .minor = minor, .flags = UINT32_MAX, .max_readahead = 1 << 17};

    return fs_send(f, FUSE_INIT, 0, &in, sizeof(in));
}

/* ---- folders ---- */

void fs_put_file(const struct fs_test *f, const char *name, const char *text)
{
    int fd = openat(f->dir, name, O_WRONLY | O_CREAT | O_TRUNC, 0644);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    close(fd);
}

static void open_share(struct fs_test *f, const struct share_config *like)
{
    struct share_config config = *like;
    struct err e;

    config.path = f->folder;

    assert_int_equal(share_open(&config, &f->share, &e), 0);
}

struct fs_test *fs_setup_like(const struct share_config *like)
{
    struct fs_test *f = calloc(1, sizeof(*f));

    f->reply = f->answer + sizeof(struct fuse_out_header);
    strcpy(f->top, "/tmp/doppel-share-XXXXXX");
    assert_non_null(mkdtemp(f->top));
    snprintf(f->folder, sizeof(f->folder), "%s/folder", f->top);
    assert_int_equal(mkdir(f->folder, 0755), 0);
    f->dir = open(f->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_true(f->dir >= 0);
    assert_int_equal(mkdirat(f->dir, "../secret", 0755), 0);
    fs_put_file(f, "../secret/file", "the secret");
    fs_put_file(f, "a", "hello");
    assert_int_equal(mkdirat(f->dir, "d", 0755), 0);
    fs_put_file(f, "d/b", "there");
    assert_int_equal(symlinkat("/etc", f->dir, "etc"), 0);
    assert_int_equal(symlinkat("../secret", f->dir, "up"), 0);
    assert_int_equal(symlinkat("../secret/file", f->dir, "up-file"), 0);
    assert_int_equal(mkfifoat(f->dir, "fifo", 0666), 0);
    open_share(f, like);
    assert_int_equal(fs_init(f, 7, 36), 0);
    return f;
}

struct fs_test *fs_setup_with(bool is_read_only, unsigned descriptors)
{
    struct share_config like = {.is_read_only = is_read_only, .descriptors_max = descriptors};

    return fs_setup_like(&like);
}

struct fs_test *fs_setup(void)
{
    return fs_setup_with(false, 1000);
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    return remove(path);
}

void fs_teardown(struct fs_test *f)
{
    char text[32] = "";
    int fd = openat(f->dir, "../secret/file", O_RDONLY);

    share_close(f->share);
    assert_true(fd >= 0);
    assert_int_equal(read(fd, text, sizeof(text)), 10);
    assert_string_equal(text, "the secret");
    close(fd);
    close(f->dir);
    nftw(f->top, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    free(f);
}

unsigned fs_count_descriptors(void)
{
    DIR *dir = opendir("/proc/self/fd");
    unsigned count = 0;

    while (readdir(dir) != NULL)
        count++;
    closedir(dir);
    return count;
}

/* ---- by the rules ---- */
