/*
 * share_test.c - the FUSE server against a driver that plays by the rules, and one that does not
 *
 * Each test has a folder of its own, "folder", with "secret" beside it, which no request may reach.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/share/share.h"
#include "base/bits.h"

#define REPLY_MAX 65536u

struct fixture {
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

/* ---- requests ---- */

struct waiting {
    struct share_request share;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool is_done;
    uint32_t written;
};

static void request_done(struct share_request *share, uint32_t written)
{
    struct waiting *w = CONTAINER_OF(share, struct waiting, share);

    pthread_mutex_lock(&w->lock);
    w->is_done = true;
    w->written = written;
    pthread_cond_signal(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

/* Carry out what the pieces hold; returns what was written. */
static uint32_t submit(struct fixture *f, const struct iovec *in, unsigned in_count,
                       const struct iovec *out, unsigned out_count)
{
    struct waiting w = {.share = {.in = in,
                                  .in_count = in_count,
                                  .out = out,
                                  .out_count = out_count,
                                  .done = request_done},
                        .lock = PTHREAD_MUTEX_INITIALIZER,
                        .changed = PTHREAD_COND_INITIALIZER};

    for (unsigned i = 0; i < in_count; i++)
        w.share.in_size += in[i].iov_len;
    for (unsigned i = 0; i < out_count; i++)
        w.share.out_size += out[i].iov_len;
    share_submit(f->share, &w.share);
    pthread_mutex_lock(&w.lock);
    while (!w.is_done)
        pthread_cond_wait(&w.changed, &w.lock);
    pthread_mutex_unlock(&w.lock);
    return w.written;
}

struct message {
    struct fuse_in_header header;
    uint8_t args[8192];
};

/* One request as drivers send them; returns its error, 0 or -errno. */
static int send_room(struct fixture *f, uint32_t opcode, uint64_t node, const void *args,
                     size_t size, size_t room)
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
    f->written = submit(f, &in, 1, &to, 1);
    assert_true(f->written >= sizeof(*out) && f->written <= to.iov_len);
    assert_int_equal(out->len, f->written);
    assert_true(out->unique == f->unique);
    f->error = out->error;
    f->reply_size = f->written - (uint32_t)sizeof(*out);
    assert_true(f->error <= 0 && f->error > -512 && (f->error == 0 || f->reply_size == 0));
    return f->error;
}

static int send(struct fixture *f, uint32_t opcode, uint64_t node, const void *args, size_t size)
{
    return send_room(f, opcode, node, args, size, REPLY_MAX);
}

static int send_name(struct fixture *f, uint32_t opcode, uint64_t node, const char *name)
{
    return send(f, opcode, node, name, strlen(name) + 1);
}

/* Arguments of a struct and up to two names behind it. */
static int send_names(struct fixture *f, uint32_t opcode, uint64_t node, const void *args,
                      size_t size, const char *a, const char *b)
{
    uint8_t buf[8192];

    memcpy(buf, args, size);
    memcpy(buf + size, a, strlen(a) + 1);
    size += strlen(a) + 1;
    if (b != NULL) {
        memcpy(buf + size, b, strlen(b) + 1);
        size += strlen(b) + 1;
    }
    return send(f, opcode, node, buf, size);
}

static uint64_t look_up(struct fixture *f, uint64_t node, const char *name)
{
    assert_int_equal(send_name(f, FUSE_LOOKUP, node, name), 0);
    assert_int_equal(f->reply_size, sizeof(struct fuse_entry_out));
    return ((struct fuse_entry_out *)f->reply)->nodeid;
}

static void forget(struct fixture *f, uint64_t node, uint64_t count)
{
    struct {
        struct fuse_in_header header;
        struct fuse_forget_in in;
    } m = {.header = {.len = sizeof(m), .opcode = FUSE_FORGET, .nodeid = node},
           .in = {.nlookup = count}};
    struct iovec in = {&m, sizeof(m)};

    assert_int_equal(submit(f, &in, 1, NULL, 0), 0);
}

static uint64_t open_node(struct fixture *f, uint64_t node, uint32_t flags)
{
    struct fuse_open_in in = {.flags = flags};

    assert_int_equal(send(f, FUSE_OPEN, node, &in, sizeof(in)), 0);
    return ((struct fuse_open_out *)f->reply)->fh;
}

static int release(struct fixture *f, uint32_t opcode, uint64_t node, uint64_t fh)
{
    struct fuse_release_in in = {.fh = fh};

    return send(f, opcode, node, &in, sizeof(in));
}

static int write_text(struct fixture *f, uint64_t node, uint64_t fh, uint64_t offset,
                      uint32_t flags, const char *text)
{
    struct fuse_write_in in = {
        .fh = fh, .offset = offset, .size = (uint32_t)strlen(text), .write_flags = flags};
    uint8_t buf[256];

    memcpy(buf, &in, sizeof(in));
    memcpy(buf + sizeof(in), text, in.size);
    return send(f, FUSE_WRITE, node, buf, sizeof(in) + in.size);
}

static int read_at(struct fixture *f, uint64_t node, uint64_t fh, uint64_t offset, uint32_t size)
{
    struct fuse_read_in in = {.fh = fh, .offset = offset, .size = size};

    return send(f, FUSE_READ, node, &in, sizeof(in));
}

static int init(struct fixture *f, uint32_t major, uint32_t minor)
{
    struct fuse_init_in in = {
        .major = major, .minor = minor, .flags = UINT32_MAX, .max_readahead = 1 << 17};

    return send(f, FUSE_INIT, 0, &in, sizeof(in));
}

/* ---- folders ---- */

static void put_file(const struct fixture *f, const char *name, const char *text)
{
    int fd = openat(f->dir, name, O_WRONLY | O_CREAT | O_TRUNC, 0644);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    close(fd);
}

static void open_share(struct fixture *f, bool is_read_only, unsigned descriptors)
{
    struct share_config config = {
        .path = f->folder, .is_read_only = is_read_only, .descriptors_max = descriptors};
    struct err e;

    assert_int_equal(share_open(&config, &f->share, &e), 0);
}

static struct fixture *setup_with(bool is_read_only, unsigned descriptors)
{
    struct fixture *f = calloc(1, sizeof(*f));

    f->reply = f->answer + sizeof(struct fuse_out_header);
    strcpy(f->top, "/tmp/doppel-share-XXXXXX");
    assert_non_null(mkdtemp(f->top));
    snprintf(f->folder, sizeof(f->folder), "%s/folder", f->top);
    assert_int_equal(mkdir(f->folder, 0755), 0);
    f->dir = open(f->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_true(f->dir >= 0);
    assert_int_equal(mkdirat(f->dir, "../secret", 0755), 0);
    put_file(f, "../secret/file", "the secret");
    put_file(f, "a", "hello");
    assert_int_equal(mkdirat(f->dir, "d", 0755), 0);
    put_file(f, "d/b", "there");
    assert_int_equal(symlinkat("/etc", f->dir, "etc"), 0);
    assert_int_equal(symlinkat("../secret", f->dir, "up"), 0);
    assert_int_equal(symlinkat("../secret/file", f->dir, "up-file"), 0);
    assert_int_equal(mkfifoat(f->dir, "fifo", 0666), 0);
    open_share(f, is_read_only, descriptors);
    assert_int_equal(init(f, 7, 36), 0);
    return f;
}

static struct fixture *setup(void)
{
    return setup_with(false, 1000);
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    return remove(path);
}

static void teardown(struct fixture *f)
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

static unsigned count_descriptors(void)
{
    DIR *dir = opendir("/proc/self/fd");
    unsigned count = 0;

    while (readdir(dir) != NULL)
        count++;
    closedir(dir);
    return count;
}

/* ---- by the rules ---- */

static void sessions(void **state)
{
    struct fixture *f = setup();
    const struct fuse_init_out *out = (const void *)f->reply;

    assert_int_equal(out->major, 7);
    assert_int_equal(out->minor, 36);
    assert_int_equal(out->max_write, 1 << 20);
    assert_int_equal(out->max_pages, 256);
    assert_true(out->flags & FUSE_MAX_PAGES);
    assert_false(out->flags & (FUSE_WRITEBACK_CACHE | FUSE_POSIX_LOCKS | FUSE_POSIX_ACL));
    uint64_t node = look_up(f, 1, "a");
    assert_int_equal(send(f, FUSE_DESTROY, 0, "", 0), 0);
    assert_int_equal(send_name(f, FUSE_LOOKUP, 1, "a"), -EIO);
    assert_int_equal(init(f, 8, 0), 0); /* the driver begins again */
    assert_int_equal(out->major, 7);
    assert_int_equal(send_name(f, FUSE_LOOKUP, 1, "a"), -EIO);
    assert_int_equal(init(f, 7, 30), -EPROTO);
    assert_int_equal(init(f, 6, 40), -EPROTO);
    assert_int_equal(init(f, 7, 99), 0);
    assert_int_equal(out->minor, FUSE_KERNEL_MINOR_VERSION);
    struct fuse_getattr_in get = {0};
    assert_int_equal(send(f, FUSE_GETATTR, node, &get, sizeof(get)), -ESTALE);
    assert_int_not_equal(look_up(f, 1, "a"), node); /* numbers never come back */
    teardown(f);
}

static void files_are_read_and_written(void **state)
{
    struct fixture *f = setup();
    uint64_t node = look_up(f, 1, "a");
    uint64_t fh = open_node(f, node, O_RDWR);

    assert_int_equal(read_at(f, node, fh, 1, 100), 0);
    assert_int_equal(f->reply_size, 4);
    assert_memory_equal(f->reply, "ello", 4);
    assert_int_equal(write_text(f, node, fh, 3, 0, "p, help"), 0);
    assert_int_equal(((struct fuse_write_out *)f->reply)->size, 7);
    assert_int_equal(read_at(f, node, fh, 0, 100), 0);
    assert_memory_equal(f->reply, "help, help", 10);
    assert_int_equal(read_at(f, node, fh, 10, 100), 0);
    assert_int_equal(f->reply_size, 0);
    assert_int_equal(read_at(f, node, fh, UINT64_MAX, 100), -EINVAL);
    assert_int_equal(write_text(f, node, fh, UINT64_MAX, 0, "x"), -EINVAL);

    struct fuse_fsync_in fsync_in = {.fh = fh};
    assert_int_equal(send(f, FUSE_FSYNC, node, &fsync_in, sizeof(fsync_in)), 0);
    struct fuse_flush_in flush = {.fh = fh};
    assert_int_equal(send(f, FUSE_FLUSH, node, &flush, sizeof(flush)), 0);
    struct fuse_fallocate_in more = {.fh = fh, .length = 4096};
    assert_int_equal(send(f, FUSE_FALLOCATE, node, &more, sizeof(more)), 0);
    struct fuse_lseek_in seek = {.fh = fh, .offset = 1, .whence = SEEK_HOLE};
    assert_int_equal(send(f, FUSE_LSEEK, node, &seek, sizeof(seek)), 0);
    assert_int_equal(((struct fuse_lseek_out *)f->reply)->offset, 4096);
    seek.whence = SEEK_SET;
    assert_int_equal(send(f, FUSE_LSEEK, node, &seek, sizeof(seek)), -EINVAL);

    struct fuse_setattr_in set = {.valid = FATTR_SIZE | FATTR_FH | FATTR_MODE, .fh = fh};
    set.size = 4;
    set.mode = 0604;
    assert_int_equal(send(f, FUSE_SETATTR, node, &set, sizeof(set)), 0);
    assert_int_equal(((struct fuse_attr_out *)f->reply)->attr.size, 4);
    assert_int_equal(((struct fuse_attr_out *)f->reply)->attr.mode, S_IFREG | 0604);
    set = (struct fuse_setattr_in){
        .valid = FATTR_MTIME | FATTR_SIZE, .mtime = 1000, .mtimensec = 5, .size = 2};
    assert_int_equal(send(f, FUSE_SETATTR, node, &set, sizeof(set)), 0);
    assert_int_equal(((struct fuse_attr_out *)f->reply)->attr.mtime, 1000);
    assert_int_equal(((struct fuse_attr_out *)f->reply)->attr.mtimensec, 5);
    set.mtimensec = UINT32_MAX;
    assert_int_equal(send(f, FUSE_SETATTR, node, &set, sizeof(set)), -EINVAL);

    struct fuse_copy_file_range_in copy = {
        .fh_in = fh, .nodeid_out = node, .fh_out = fh, .off_out = 2, .len = 2};
    assert_int_equal(send(f, FUSE_COPY_FILE_RANGE, node, &copy, sizeof(copy)), 0);
    assert_int_equal(read_at(f, node, fh, 0, 100), 0);
    assert_memory_equal(f->reply, "hehe", 4);

    /* taken away, it is still there for who has it open */
    assert_int_equal(send_name(f, FUSE_UNLINK, 1, "a"), 0);
    assert_int_equal(send_name(f, FUSE_LOOKUP, 1, "a"), -ENOENT);
    assert_int_equal(write_text(f, node, fh, 0, 0, "H"), 0);
    set = (struct fuse_setattr_in){.valid = FATTR_MODE, .mode = 0600};
    assert_int_equal(send(f, FUSE_SETATTR, node, &set, sizeof(set)), 0);
    assert_int_equal(((struct fuse_attr_out *)f->reply)->attr.nlink, 0);
    assert_int_equal(release(f, FUSE_RELEASE, node, fh), 0);
    teardown(f);
}

/* Answers and data may be cut into pieces anywhere. */
static void pieces(void **state)
{
    struct fixture *f = setup();
    uint64_t node = look_up(f, 1, "a"), fh = open_node(f, node, O_RDWR);
    struct {
        struct fuse_in_header header;
        struct fuse_write_in in;
        char data[5];
    } __attribute__((packed))
    m = {.header = {.len = sizeof(m), .opcode = FUSE_WRITE, .unique = 7, .nodeid = node},
         .in = {.fh = fh, .size = 5},
         .data = "HELLO"};
    uint8_t from[sizeof(m)], to[64];

    for (unsigned cut = 1; cut < sizeof(m) - 1; cut++) {
        memcpy(from, &m, sizeof(m));
        struct iovec in[] = {{from, cut}, {from + cut, sizeof(m) - cut}};
        struct iovec out[] = {{to, cut % 23 + 1}, {to + cut % 23 + 1, 24 - cut % 23 - 1}};
        assert_int_equal(submit(f, in, 2, out, 2), 24);
        assert_int_equal(((struct fuse_out_header *)to)->error, 0);
        assert_int_equal(load_le32(to + 16), 5);
        struct fuse_read_in get = {.fh = fh, .size = 5};
        struct fuse_in_header header = {
            .len = sizeof(header) + sizeof(get), .opcode = FUSE_READ, .nodeid = node};
        struct iovec asks[] = {{&header, sizeof(header)}, {&get, sizeof(get)}};
        struct iovec gets[] = {{to, cut % 20 + 1}, {to + cut % 20 + 1, 40}};
        memset(to, 0, sizeof(to));
        assert_int_equal(submit(f, asks, 2, gets, 2), 16 + 5);
        assert_memory_equal(to + 16, "HELLO", 5);
    }
    teardown(f);
}

static void names_are_made_and_moved(void **state)
{
    struct fixture *f = setup();
    struct fuse_mkdir_in mkdir_in = {.mode = 0777, .umask = 027};
    struct fuse_mknod_in node_in = {.mode = S_IFIFO | 0666, .umask = 077};
    struct stat st;

    assert_int_equal(send_names(f, FUSE_MKDIR, 1, &mkdir_in, sizeof(mkdir_in), "new", NULL), 0);
    uint64_t folder = ((struct fuse_entry_out *)f->reply)->nodeid;
    assert_int_equal(fstatat(f->dir, "new", &st, 0), 0);
    assert_int_equal(st.st_mode, S_IFDIR | 0750);
    assert_int_equal(send_names(f, FUSE_MKNOD, folder, &node_in, sizeof(node_in), "pipe", NULL), 0);
    assert_int_equal(fstatat(f->dir, "new/pipe", &st, 0), 0);
    assert_int_equal(st.st_mode, S_IFIFO | 0600);
    node_in = (struct fuse_mknod_in){.mode = S_IFBLK | 0666, .rdev = 0x800};
    assert_int_equal(send_names(f, FUSE_MKNOD, folder, &node_in, sizeof(node_in), "disk", NULL),
                     -EPERM);
    node_in = (struct fuse_mknod_in){.mode = S_IFCHR | 0666, .rdev = 0x103};
    assert_int_equal(send_names(f, FUSE_MKNOD, folder, &node_in, sizeof(node_in), "null", NULL),
                     -EPERM);
    assert_int_equal(send_names(f, FUSE_SYMLINK, folder, "", 0, "link", "../../secret"), 0);
    assert_int_equal(((struct fuse_entry_out *)f->reply)->attr.mode & S_IFMT, S_IFLNK);
    assert_int_equal(send(f, FUSE_READLINK, ((struct fuse_entry_out *)f->reply)->nodeid, "", 0), 0);
    assert_int_equal(f->reply_size, 12);
    assert_memory_equal(f->reply, "../../secret", 12);

    struct fuse_link_in link_in = {.oldnodeid = look_up(f, 1, "a")};
    assert_int_equal(send_names(f, FUSE_LINK, folder, &link_in, sizeof(link_in), "hard", NULL), 0);
    assert_int_equal(((struct fuse_entry_out *)f->reply)->nodeid, link_in.oldnodeid);
    assert_int_equal(((struct fuse_entry_out *)f->reply)->attr.nlink, 2);
    struct fuse_rename2_in move = {.newdir = folder, .flags = RENAME_NOREPLACE};
    assert_int_equal(send_names(f, FUSE_RENAME2, 1, &move, sizeof(move), "a", "hard"), -EEXIST);
    move.flags = 1u << 7;
    assert_int_equal(send_names(f, FUSE_RENAME2, 1, &move, sizeof(move), "a", "hard"), -EINVAL);
    struct fuse_rename_in plain = {.newdir = folder};
    assert_int_equal(send_names(f, FUSE_RENAME, 1, &plain, sizeof(plain), "d", "moved"), 0);
    assert_int_equal(fstatat(f->dir, "new/moved/b", &st, 0), 0);
    assert_int_equal(send_name(f, FUSE_RMDIR, folder, "moved"), -ENOTEMPTY);
    assert_int_equal(send_name(f, FUSE_UNLINK, folder, "pipe"), 0);
    teardown(f);
}

static void files_are_created(void **state)
{
    struct fixture *f = setup();
    const struct fuse_open_out *out = (void *)(f->reply + sizeof(struct fuse_entry_out));
    const struct fuse_entry_out *entry = (void *)f->reply;
    struct fuse_create_in in = {.flags = O_WRONLY | O_CREAT, .mode = 0666, .umask = 022};
    struct stat st;

    assert_int_equal(send_names(f, FUSE_CREATE, 1, &in, sizeof(in), "new", NULL), 0);
    assert_int_equal(entry->attr.mode, S_IFREG | 0644);
    uint64_t node = entry->nodeid, fh = out->fh;
    assert_int_equal(write_text(f, node, fh, 0, 0, "text"), 0);
    assert_int_equal(read_at(f, node, fh, 0, 4), -EBADF); /* it is not open for reading */
    in.flags |= O_EXCL;
    assert_int_equal(send_names(f, FUSE_CREATE, 1, &in, sizeof(in), "new", NULL), -EEXIST);
    in.flags = O_RDWR | O_CREAT | O_TRUNC;
    assert_int_equal(send_names(f, FUSE_CREATE, 1, &in, sizeof(in), "new", NULL), 0);
    assert_int_equal(entry->nodeid, node);
    assert_int_equal(fstatat(f->dir, "new", &st, 0), 0);
    assert_int_equal(st.st_size, 0);
    /* what cannot be opened is not, also by this way */
    in.flags = O_RDWR | O_CREAT;
    assert_int_equal(send_names(f, FUSE_CREATE, 1, &in, sizeof(in), "fifo", NULL), -ENXIO);
    assert_int_equal(send_names(f, FUSE_CREATE, 1, &in, sizeof(in), "up-file", NULL), -ENXIO);
    assert_int_equal(send_names(f, FUSE_CREATE, 1, &in, sizeof(in), "d", NULL), -EISDIR);
    assert_int_equal(send_names(f, FUSE_CREATE, node, &in, sizeof(in), "x", NULL), -ENOTDIR);
    teardown(f);
}

/* All entries, in pages of `room` bytes; for READDIRPLUS the look-ups are given back. */
static unsigned list(struct fixture *f, uint64_t node, uint32_t opcode, uint32_t room)
{
    struct fuse_open_in open_in = {0};
    struct fuse_read_in in = {.size = room};
    unsigned count = 0;

    assert_int_equal(send(f, FUSE_OPENDIR, node, &open_in, sizeof(open_in)), 0);
    in.fh = ((struct fuse_open_out *)f->reply)->fh;
    for (;;) {
        static uint8_t page[REPLY_MAX];
        assert_int_equal(send(f, opcode, node, &in, sizeof(in)), 0);
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
                forget(f, entry->nodeid, 1);
        }
    }
    assert_int_equal(release(f, FUSE_RELEASEDIR, node, in.fh), 0);
    return count;
}

static void folders_are_listed(void **state)
{
    struct fixture *f = setup();
    uint64_t node = look_up(f, 1, "d");
    unsigned before = count_descriptors();
    char name[32];

    for (unsigned i = 0; i < 300; i++) {
        snprintf(name, sizeof(name), "d/%0*u", (int)(1 + i % 20), i);
        put_file(f, name, "x");
    }
    for (uint32_t room = 512; room <= 65536; room *= 8) {
        assert_int_equal(list(f, node, FUSE_READDIR, room), 303);
        assert_int_equal(list(f, node, FUSE_READDIRPLUS, room), 303);
    }
    assert_int_equal(list(f, 1, FUSE_READDIR, 4096), 8);
    assert_int_equal(count_descriptors(), before);
    /* no room for one entry: an error, not an end */
    struct fuse_open_in open_in = {0};
    assert_int_equal(send(f, FUSE_OPENDIR, node, &open_in, sizeof(open_in)), 0);
    struct fuse_read_in in = {.fh = ((struct fuse_open_out *)f->reply)->fh, .size = 16};
    assert_int_equal(send(f, FUSE_READDIR, node, &in, sizeof(in)), -EINVAL);
    assert_int_equal(read_at(f, node, in.fh, 0, 10), -EISDIR);
    teardown(f);
}

static void extended_attributes(void **state)
{
    struct fixture *f = setup();
    uint64_t node = look_up(f, 1, "a");
    struct fuse_getxattr_in get = {.size = 100};
    uint8_t set[64] = {5};

    strcpy((char *)set + 8, "user.k");
    memcpy(set + 15, "value", 5);
    if (send(f, FUSE_SETXATTR, node, set, 20) == -EOPNOTSUPP) {
        teardown(f); /* the file system here has none */
        skip();
    }
    assert_int_equal(f->error, 0);
    assert_int_equal(send_names(f, FUSE_GETXATTR, node, &get, sizeof(get), "user.k", NULL), 0);
    assert_int_equal(f->reply_size, 5);
    assert_memory_equal(f->reply, "value", 5);
    get.size = 4;
    assert_int_equal(send_names(f, FUSE_GETXATTR, node, &get, sizeof(get), "user.k", NULL),
                     -ERANGE);
    get.size = 0;
    assert_int_equal(send_names(f, FUSE_GETXATTR, node, &get, sizeof(get), "user.k", NULL), 0);
    assert_int_equal(load_le32(f->reply), 5);
    assert_int_equal(
        send_names(f, FUSE_GETXATTR, node, &get, sizeof(get), "security.capability", NULL),
        -EOPNOTSUPP);
    get.size = 100;
    assert_int_equal(send(f, FUSE_LISTXATTR, node, &get, sizeof(get)), 0);
    assert_int_equal(f->reply_size, 7);
    assert_int_equal(send_name(f, FUSE_REMOVEXATTR, node, "user.k"), 0);
    assert_int_equal(send(f, FUSE_SETXATTR, node, set, 19), -EINVAL); /* a byte is missing */
    strcpy((char *)set + 8, "trusted.k");
    assert_int_equal(send(f, FUSE_SETXATTR, node, set, 8 + 10 + 5), -EOPNOTSUPP);
    teardown(f);
}

/* As root, files are whose the guest says; as anybody else, that user's. */
static void owners(void **state)
{
    struct fixture *f = setup();
    bool keeps = geteuid() == 0;
    struct {
        struct fuse_in_header header;
        struct fuse_mkdir_in in;
        char name[4];
    } m = {.header = {.len = sizeof(m), .opcode = FUSE_MKDIR, .nodeid = 1, .uid = 1234, .gid = 56},
           .in = {.mode = 0700},
           .name = "dir"};
    struct iovec in = {&m, sizeof(m)}, out = {f->answer, sizeof(f->answer)};
    struct stat st;

    submit(f, &in, 1, &out, 1);
    assert_int_equal(((struct fuse_out_header *)f->answer)->error, 0);
    assert_int_equal(fstatat(f->dir, "dir", &st, 0), 0);
    assert_int_equal(st.st_uid, keeps ? 1234 : geteuid());
    assert_int_equal(st.st_gid, keeps ? 56 : getegid());

    /* a write by one who is not root takes the set-user-ID bit away, and only such a one */
    uint64_t node = look_up(f, 1, "a"), fh = open_node(f, node, O_RDWR);
    struct fuse_setattr_in set = {.valid = FATTR_MODE, .mode = 04755};
    assert_int_equal(send(f, FUSE_SETATTR, node, &set, sizeof(set)), 0);
    assert_int_equal(write_text(f, node, fh, 0, 0, "x"), 0);
    assert_int_equal(fstatat(f->dir, "a", &st, 0), 0);
    assert_int_equal(st.st_mode & 07777, keeps ? 04755 : 0755);
    assert_int_equal(send(f, FUSE_SETATTR, node, &set, sizeof(set)), 0);
    assert_int_equal(write_text(f, node, fh, 0, FUSE_WRITE_KILL_SUIDGID, "x"), 0);
    assert_int_equal(fstatat(f->dir, "a", &st, 0), 0);
    assert_int_equal(st.st_mode & 07777, 0755);
    teardown(f);
}

/* ---- against the rules ---- */

static void nothing_leads_outside(void **state)
{
    static const char *const names[] = {"..",  ".",         "",   "/",   "/etc",
                                        "d/b", "../secret", "a/", "d/.."};
    struct fixture *f = setup();
    struct fuse_open_in open_in = {0};
    struct fuse_mkdir_in mkdir_in = {.mode = 0755};
    struct fuse_create_in create = {.flags = O_RDWR | O_CREAT, .mode = 0644};

    for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
        struct fuse_rename_in move = {.newdir = 1};
        const char *n = names[i];
        assert_int_equal(send_name(f, FUSE_LOOKUP, 1, n), -EINVAL);
        assert_int_equal(send_name(f, FUSE_UNLINK, 1, n), -EINVAL);
        assert_int_equal(send_name(f, FUSE_RMDIR, 1, n), -EINVAL);
        assert_int_equal(send_names(f, FUSE_MKDIR, 1, &mkdir_in, sizeof(mkdir_in), n, NULL),
                         -EINVAL);
        assert_int_equal(send_names(f, FUSE_CREATE, 1, &create, sizeof(create), n, NULL), -EINVAL);
        assert_int_equal(send_names(f, FUSE_SYMLINK, 1, "", 0, n, "x"), -EINVAL);
        assert_int_equal(send_names(f, FUSE_RENAME, 1, &move, sizeof(move), "a", n), -EINVAL);
        assert_int_equal(send_names(f, FUSE_RENAME, 1, &move, sizeof(move), n, "b"), -EINVAL);
    }
    static const char *const links[] = {"etc", "up", "up-file", "fifo"};
    for (unsigned i = 0; i < ARRAY_SIZE(links); i++) {
        uint64_t node = look_up(f, 1, links[i]);
        assert_int_equal(send_name(f, FUSE_LOOKUP, node, "passwd"), -ENOTDIR);
        assert_int_equal(send_name(f, FUSE_UNLINK, node, "file"), -ENOTDIR);
        assert_int_equal(send_names(f, FUSE_MKDIR, node, &mkdir_in, sizeof(mkdir_in), "x", NULL),
                         -ENOTDIR);
        assert_int_equal(send_names(f, FUSE_CREATE, node, &create, sizeof(create), "x", NULL),
                         -ENOTDIR);
        assert_int_equal(send(f, FUSE_OPEN, node, &open_in, sizeof(open_in)), -ENXIO);
        assert_int_equal(send(f, FUSE_OPENDIR, node, &open_in, sizeof(open_in)), -ENOTDIR);
        struct fuse_setattr_in set = {.valid = FATTR_SIZE};
        assert_int_equal(send(f, FUSE_SETATTR, node, &set, sizeof(set)), -ENXIO);
    }
    /* the mode of a link is not that of what it names */
    struct fuse_setattr_in set = {.valid = FATTR_MODE, .mode = 0777};
    assert_int_equal(send(f, FUSE_SETATTR, look_up(f, 1, "up-file"), &set, sizeof(set)),
                     -EOPNOTSUPP);
    teardown(f);
}

struct racer {
    int dir;
    _Atomic bool is_stopping;
};

/* A folder and a link to the secret change places, again and again. */
static void *race(void *ctx)
{
    struct racer *r = ctx;

    while (!atomic_load(&r->is_stopping))
        renameat2(r->dir, "d", r->dir, "up", RENAME_EXCHANGE);
    return NULL;
}

static void renames_race(void **state)
{
    struct fixture *f = setup();
    struct racer racer = {.dir = f->dir};
    struct fuse_create_in create = {.flags = O_RDWR | O_CREAT, .mode = 0644};
    struct stat secret;
    pthread_t thread;
    unsigned folders = 0, links = 0;

    assert_int_equal(fstatat(f->dir, "../secret", &secret, 0), 0);
    assert_int_equal(pthread_create(&thread, NULL, race, &racer), 0);
    for (unsigned i = 0; i < 20000 && (i < 1000 || folders < 100 || links < 100); i++) {
        if (send_name(f, FUSE_LOOKUP, 1, i & 1 ? "d" : "up") != 0)
            continue;
        struct fuse_entry_out entry = *(struct fuse_entry_out *)f->reply;
        assert_int_not_equal(entry.attr.ino, secret.st_ino);
        bool is_folder = S_ISDIR(entry.attr.mode);
        *(is_folder ? &folders : &links) += 1;
        int error = send_name(f, FUSE_LOOKUP, entry.nodeid, is_folder ? "b" : "file");
        assert_int_equal(error, is_folder ? 0 : -ENOTDIR);
        if (is_folder)
            forget(f, ((struct fuse_entry_out *)f->reply)->nodeid, 1);
        error = send_names(f, FUSE_CREATE, entry.nodeid, &create, sizeof(create), "made", NULL);
        assert_int_equal(error, is_folder ? 0 : -ENOTDIR);
        if (is_folder) {
            uint64_t fh = ((struct fuse_open_out *)(f->reply + sizeof(entry)))->fh;
            uint64_t made = ((struct fuse_entry_out *)f->reply)->nodeid;
            assert_int_equal(release(f, FUSE_RELEASE, made, fh), 0);
            forget(f, made, 1);
            assert_int_equal(send_name(f, FUSE_UNLINK, entry.nodeid, "made"), 0);
        }
        forget(f, entry.nodeid, 1);
    }
    atomic_store(&racer.is_stopping, true);
    pthread_join(thread, NULL);
    assert_true(folders >= 100 && links >= 100);
    assert_int_equal(faccessat(f->dir, "../secret/made", F_OK, 0), -1);
    teardown(f);
}

static void numbers_of_nothing(void **state)
{
    struct fixture *f = setup();
    struct fuse_getattr_in get = {0};
    uint64_t node = look_up(f, 1, "a");

    for (uint64_t n = 0; n < 2000; n++)
        if (n != 1 && n != node)
            assert_int_equal(send(f, FUSE_GETATTR, n, &get, sizeof(get)), -ESTALE);
    assert_int_equal(send(f, FUSE_GETATTR, UINT64_MAX, &get, sizeof(get)), -ESTALE);
    assert_int_equal(look_up(f, 1, "a"), node);
    forget(f, node, 1);
    assert_int_equal(send(f, FUSE_GETATTR, node, &get, sizeof(get)), 0);
    forget(f, node, UINT64_MAX); /* more than there were */
    assert_int_equal(send(f, FUSE_GETATTR, node, &get, sizeof(get)), -ESTALE);
    forget(f, node, 1);
    forget(f, 1, UINT64_MAX);
    assert_int_equal(send(f, FUSE_GETATTR, 1, &get, sizeof(get)), 0);

    /* a list that claims to be longer than it is */
    node = look_up(f, 1, "a");
    struct {
        struct fuse_in_header header;
        struct fuse_batch_forget_in in;
        struct fuse_forget_one one;
    } m = {.header = {.len = sizeof(m), .opcode = FUSE_BATCH_FORGET},
           .in = {.count = UINT32_MAX},
           .one = {.nodeid = node, .nlookup = 1}};
    struct iovec in = {&m, sizeof(m)};
    assert_int_equal(submit(f, &in, 1, NULL, 0), 0);
    assert_int_equal(send(f, FUSE_GETATTR, node, &get, sizeof(get)), -ESTALE);
    teardown(f);
}

static void handles_of_others(void **state)
{
    struct fixture *f = setup();
    uint64_t a = look_up(f, 1, "a"), d = look_up(f, 1, "d"), b = look_up(f, d, "b");
    uint64_t fh = open_node(f, a, O_RDWR);

    assert_int_equal(read_at(f, b, fh, 0, 1), -EBADF);
    assert_int_equal(write_text(f, b, fh, 0, 0, "x"), -EBADF);
    assert_int_equal(release(f, FUSE_RELEASE, b, fh), -EBADF);
    for (uint64_t n = 0; n < 100; n++)
        if (n != fh)
            assert_int_equal(read_at(f, a, n, 0, 1), -EBADF);
    struct fuse_setattr_in set = {.valid = FATTR_SIZE | FATTR_FH, .fh = fh};
    assert_int_equal(send(f, FUSE_SETATTR, b, &set, sizeof(set)), -EBADF);
    struct fuse_copy_file_range_in copy = {.fh_in = fh, .nodeid_out = b, .fh_out = fh, .len = 2};
    assert_int_equal(send(f, FUSE_COPY_FILE_RANGE, a, &copy, sizeof(copy)), -EBADF);
    struct fuse_read_in in = {.fh = fh, .size = 4096};
    assert_int_equal(send(f, FUSE_READDIR, a, &in, sizeof(in)), -ENOTDIR);
    assert_int_equal(send(f, FUSE_READDIR, d, &in, sizeof(in)), -EBADF);
    /* an open file outlives the number it was opened by, but needs it */
    forget(f, a, 1);
    assert_int_equal(read_at(f, a, fh, 0, 1), -ESTALE);
    assert_int_equal(look_up(f, 1, "a"), a);
    assert_int_equal(read_at(f, a, fh, 0, 1), 0);
    assert_int_equal(release(f, FUSE_RELEASE, a, fh), 0);
    assert_int_equal(release(f, FUSE_RELEASE, a, fh), -EBADF);
    assert_int_equal(read_at(f, a, fh, 0, 1), -EBADF);
    teardown(f);
}

static void messages_cut_short(void **state)
{
    struct fixture *f = setup();
    uint8_t buf[256] = {0};
    struct fuse_in_header *header = (void *)buf;
    struct iovec out = {f->answer, sizeof(f->answer)};

    for (unsigned size = 0; size < sizeof(*header); size++) {
        struct iovec in = {buf, size};
        assert_int_equal(submit(f, &in, 1, &out, 1), 0);
    }
    assert_int_equal(submit(f, NULL, 0, NULL, 0), 0);
    /* every operation, known or not, with every length of arguments from none on */
    for (uint32_t opcode = 0; opcode < 60; opcode++)
        for (unsigned size = sizeof(*header); size <= sizeof(buf); size += 1 + size / 16) {
            struct iovec in = {buf, size};
            *header = (struct fuse_in_header){.len = size, .opcode = opcode, .nodeid = 1};
            submit(f, &in, 1, &out, 1);
            header->len = size + 1;
            assert_int_equal(submit(f, &in, 1, &out, 1), 16);
            assert_int_equal(((struct fuse_out_header *)f->answer)->error, -EINVAL);
            out.iov_len = size % 16;
            header->len = size;
            assert_int_equal(submit(f, &in, 1, &out, 1), 0);
            out.iov_len = sizeof(f->answer);
        }
    assert_int_equal(init(f, 7, 36), 0); /* one of them was DESTROY */
    assert_int_equal(send(f, 9999, 1, "", 0), -ENOSYS);
    assert_int_equal(send(f, FUSE_GETLK, 1, buf, 100), -ENOSYS);
    assert_int_equal(send(f, FUSE_LOOKUP, 1, "abc", 3), -EINVAL); /* no end */
    memset(buf, 'x', sizeof(buf));
    assert_int_equal(send(f, FUSE_LOOKUP, 1, buf, sizeof(buf)), -EINVAL);
    buf[255] = 0;
    assert_int_equal(send(f, FUSE_LOOKUP, 1, buf, sizeof(buf)), -ENOENT);
    char name[300];
    memset(name, 'x', sizeof(name));
    name[299] = '\0';
    assert_int_equal(send_name(f, FUSE_LOOKUP, 1, name), -ENAMETOOLONG);
    /* nothing is done when there is no room to say what came of it */
    struct fuse_mkdir_in mkdir_in = {.mode = 0755};
    memcpy(buf, &mkdir_in, sizeof(mkdir_in));
    strcpy((char *)buf + sizeof(mkdir_in), "dir");
    assert_int_equal(send_room(f, FUSE_MKDIR, 1, buf, sizeof(mkdir_in) + 4, 127), -EINVAL);
    assert_int_equal(faccessat(f->dir, "dir", F_OK, 0), -1);
    uint64_t a = look_up(f, 1, "a"), fh = open_node(f, a, O_RDWR);
    struct fuse_write_in write_in = {.fh = fh, .size = 100};
    assert_int_equal(send(f, FUSE_WRITE, a, &write_in, sizeof(write_in)), -EINVAL);
    write_in.size = 0;
    assert_int_equal(send(f, FUSE_WRITE, a, &write_in, sizeof(write_in)), 0);
    struct fuse_read_in read_in = {.fh = fh, .size = UINT32_MAX};
    assert_int_equal(send_room(f, FUSE_READ, a, &read_in, sizeof(read_in), 3), 0);
    assert_int_equal(f->reply_size, 3);
    teardown(f);
}

static void read_only(void **state)
{
    struct fixture *f = setup_with(true, 1000);
    uint64_t a = look_up(f, 1, "a");
    struct fuse_open_in open_in = {.flags = O_RDWR};
    struct fuse_setattr_in set = {.valid = FATTR_MODE, .mode = 0777};
    struct fuse_mkdir_in mkdir_in = {.mode = 0755};
    struct fuse_mknod_in node_in = {.mode = S_IFREG | 0644};
    struct fuse_create_in create = {.flags = O_RDONLY | O_CREAT, .mode = 0644};
    struct fuse_rename2_in move = {.newdir = 1};
    struct fuse_link_in link_in = {.oldnodeid = a};

    assert_int_equal(send(f, FUSE_OPEN, a, &open_in, sizeof(open_in)), -EROFS);
    open_in.flags = O_WRONLY;
    assert_int_equal(send(f, FUSE_OPEN, a, &open_in, sizeof(open_in)), -EROFS);
    open_in.flags = O_RDONLY | O_TRUNC;
    assert_int_equal(send(f, FUSE_OPEN, a, &open_in, sizeof(open_in)), -EROFS);
    uint64_t fh = open_node(f, a, O_RDONLY);
    assert_int_equal(read_at(f, a, fh, 0, 10), 0);
    assert_int_equal(f->reply_size, 5);
    assert_int_equal(write_text(f, a, fh, 0, 0, "x"), -EROFS);
    assert_int_equal(send(f, FUSE_SETATTR, a, &set, sizeof(set)), -EROFS);
    assert_int_equal(send_name(f, FUSE_UNLINK, 1, "a"), -EROFS);
    assert_int_equal(send_name(f, FUSE_RMDIR, 1, "d"), -EROFS);
    assert_int_equal(send_names(f, FUSE_MKDIR, 1, &mkdir_in, sizeof(mkdir_in), "x", NULL), -EROFS);
    assert_int_equal(send_names(f, FUSE_MKNOD, 1, &node_in, sizeof(node_in), "x", NULL), -EROFS);
    assert_int_equal(send_names(f, FUSE_SYMLINK, 1, "", 0, "x", "y"), -EROFS);
    assert_int_equal(send_names(f, FUSE_RENAME2, 1, &move, sizeof(move), "a", "x"), -EROFS);
    assert_int_equal(send_names(f, FUSE_RENAME, 1, &move, 8, "a", "x"), -EROFS);
    assert_int_equal(send_names(f, FUSE_LINK, 1, &link_in, sizeof(link_in), "x", NULL), -EROFS);
    assert_int_equal(send_name(f, FUSE_REMOVEXATTR, a, "user.x"), -EROFS);
    assert_int_equal(send(f, FUSE_SETXATTR, a, "\0\0\0\0\0\0\0\0user.x", 15), -EROFS);
    assert_int_equal(send_names(f, FUSE_CREATE, 1, &create, sizeof(create), "x", NULL), -EROFS);
    assert_int_equal(send_names(f, FUSE_CREATE, 1, &create, sizeof(create), "a", NULL), 0);
    create.flags = O_RDWR | O_CREAT;
    assert_int_equal(send_names(f, FUSE_CREATE, 1, &create, sizeof(create), "a", NULL), -EROFS);
    struct fuse_fallocate_in more = {.fh = fh, .length = 4096};
    assert_int_equal(send(f, FUSE_FALLOCATE, a, &more, sizeof(more)), -EROFS);
    struct fuse_copy_file_range_in copy = {.fh_in = fh, .nodeid_out = a, .fh_out = fh, .len = 2};
    assert_int_equal(send(f, FUSE_COPY_FILE_RANGE, a, &copy, sizeof(copy)), -EROFS);
    struct fuse_access_in access_in = {.mask = W_OK};
    assert_int_equal(send(f, FUSE_ACCESS, a, &access_in, sizeof(access_in)), -EROFS);
    assert_int_equal(list(f, 1, FUSE_READDIR, 4096), 8);
    struct stat st;
    assert_int_equal(fstatat(f->dir, "a", &st, 0), 0);
    assert_int_equal(st.st_size, 5);
    assert_int_equal(st.st_mode & 0777, 0644);
    teardown(f);
}

static void descriptors_are_bounded(void **state)
{
    struct fixture *f = setup_with(false, 40); /* 30 inodes, 10 files */
    unsigned before = count_descriptors(), known = 0, opened = 0;
    uint64_t a = look_up(f, 1, "a"), nodes[64];
    struct fuse_open_in open_in = {0};
    char name[32];

    for (unsigned i = 0; i < 64; i++) {
        snprintf(name, sizeof(name), "n%u", i);
        put_file(f, name, "x");
        if (send_name(f, FUSE_LOOKUP, 1, name) == 0)
            nodes[known++] = ((struct fuse_entry_out *)f->reply)->nodeid;
        else
            assert_int_equal(f->error, -ENFILE);
    }
    assert_int_equal(known, 30 - 2); /* the root, a */
    while (send(f, FUSE_OPEN, a, &open_in, sizeof(open_in)) == 0)
        opened++;
    assert_int_equal(f->error, -ENFILE);
    assert_int_equal(opened, 10);
    assert_true(count_descriptors() <= before + 40);
    /* what can be listed is, without look-ups; a file that could not be opened is not known */
    forget(f, nodes[0], 1);
    struct fuse_create_in create = {.flags = O_RDWR | O_CREAT, .mode = 0644};
    assert_int_equal(send_names(f, FUSE_CREATE, 1, &create, sizeof(create), "new", NULL), -ENFILE);
    look_up(f, 1, "n63");
    share_reset(f->share);
    assert_int_equal(count_descriptors(), before);
    teardown(f);
}

struct held {
    struct waiting w;
    pthread_mutex_t gate;
};

/* Holds its thread until the gate opens. */
static void held_done(struct share_request *share, uint32_t written)
{
    struct held *h = CONTAINER_OF(share, struct held, w.share);

    pthread_mutex_lock(&h->w.lock);
    h->w.is_done = true;
    pthread_cond_signal(&h->w.changed);
    pthread_mutex_unlock(&h->w.lock);
    pthread_mutex_lock(&h->gate);
    pthread_mutex_unlock(&h->gate);
}

static void wait_done(struct waiting *w)
{
    pthread_mutex_lock(&w->lock);
    while (!w->is_done)
        pthread_cond_wait(&w->changed, &w->lock);
    pthread_mutex_unlock(&w->lock);
}

static void submit_one(struct fixture *f, struct waiting *w, struct iovec *in, struct iovec *out,
                       bool is_urgent, void (*done)(struct share_request *share, uint32_t written))
{
    *w = (struct waiting){.share = {.in = in,
                                    .in_count = 1,
                                    .in_size = in->iov_len,
                                    .out = out,
                                    .out_count = 1,
                                    .out_size = out->iov_len,
                                    .is_urgent = is_urgent,
                                    .done = done},
                          .lock = PTHREAD_MUTEX_INITIALIZER,
                          .changed = PTHREAD_COND_INITIALIZER};
    share_submit(f->share, &w->share);
}

#define THREADS 4
#define WAITING 5

static void waiting_requests_are_interrupted(void **state)
{
    struct fixture *f = setup();
    struct {
        struct fuse_in_header header;
        uint8_t args[16];
    } get = {.header = {.len = sizeof(get), .opcode = FUSE_GETATTR, .unique = 77, .nodeid = 1}},
      stop = {.header = {.len = 48, .opcode = FUSE_INTERRUPT, .unique = 78}, .args = {77}};
    struct iovec get_in = {&get, sizeof(get)}, stop_in = {&stop, 48};
    uint8_t to[THREADS + WAITING + 1][256];
    struct iovec out[THREADS + WAITING + 1];
    struct held held[THREADS];
    struct waiting waiting[WAITING], stopping;

    for (unsigned i = 0; i < ARRAY_SIZE(out); i++)
        out[i] = (struct iovec){to[i], sizeof(to[i])};
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_mutex_init(&held[i].gate, NULL);
        pthread_mutex_lock(&held[i].gate);
        submit_one(f, &held[i].w, &get_in, &out[i], false, held_done);
        wait_done(&held[i].w);
    }
    /* no thread is left for these; the last goes first when there is one */
    for (unsigned i = 0; i < WAITING; i++)
        submit_one(f, &waiting[i], &get_in, &out[THREADS + i], false, request_done);
    submit_one(f, &stopping, &stop_in, &out[THREADS + WAITING], true, request_done);
    pthread_mutex_unlock(&held[0].gate);
    wait_done(&stopping);
    assert_int_equal(((struct fuse_out_header *)to[THREADS + WAITING])->error, 0);
    for (unsigned i = 0; i < WAITING; i++) {
        wait_done(&waiting[i]);
        assert_int_equal(((struct fuse_out_header *)to[THREADS + i])->error, -EINTR);
    }
    for (unsigned i = 1; i < THREADS; i++)
        pthread_mutex_unlock(&held[i].gate);
    teardown(f);
}

static void folders_that_are_none(void **state)
{
    struct share_config config = {.path = "/etc/passwd", .descriptors_max = 100};
    struct share *share;
    struct err e;

    assert_int_equal(share_open(&config, &share, &e), -ENOTDIR);
    assert_non_null(strstr(e.msg, "/etc/passwd"));
    config.path = "/nowhere";
    assert_int_equal(share_open(&config, &share, &e), -ENOENT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sessions),
        cmocka_unit_test(files_are_read_and_written),
        cmocka_unit_test(pieces),
        cmocka_unit_test(names_are_made_and_moved),
        cmocka_unit_test(files_are_created),
        cmocka_unit_test(folders_are_listed),
        cmocka_unit_test(extended_attributes),
        cmocka_unit_test(owners),
        cmocka_unit_test(nothing_leads_outside),
        cmocka_unit_test(renames_race),
        cmocka_unit_test(numbers_of_nothing),
        cmocka_unit_test(handles_of_others),
        cmocka_unit_test(messages_cut_short),
        cmocka_unit_test(read_only),
        cmocka_unit_test(descriptors_are_bounded),
        cmocka_unit_test(waiting_requests_are_interrupted),
        cmocka_unit_test(folders_that_are_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
