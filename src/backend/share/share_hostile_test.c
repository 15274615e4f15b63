/*
 * share_hostile_test.c - the FUSE server against a driver, and a host, that do not play by the
 * rules
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/share/testing.h"
#include "backend/share/waiting.h"
#include "base/bits.h"

static void nothing_leads_outside(void **state)
{
    static const char *const names[] = {"..",  ".",         "",   "/",   "/etc",
                                        "d/b", "../secret", "a/", "d/.."};
    struct fs_test *f = fs_setup();
    struct fuse_open_in open_in = {0};
    struct fuse_mkdir_in mkdir_in = {.mode = 0755};
    struct fuse_create_in create = {.flags = O_RDWR | O_CREAT, .mode = 0644};

    for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
        struct fuse_rename_in move = {.newdir = 1};
        const char *n = names[i];
        assert_int_equal(fs_send_name(f, FUSE_LOOKUP, 1, n), -EINVAL);
        assert_int_equal(fs_send_name(f, FUSE_UNLINK, 1, n), -EINVAL);
        assert_int_equal(fs_send_name(f, FUSE_RMDIR, 1, n), -EINVAL);
        assert_int_equal(fs_send_names(f, FUSE_MKDIR, 1, &mkdir_in, sizeof(mkdir_in), n, NULL),
                         -EINVAL);
        assert_int_equal(fs_send_names(f, FUSE_CREATE, 1, &create, sizeof(create), n, NULL),
                         -EINVAL);
        assert_int_equal(fs_send_names(f, FUSE_SYMLINK, 1, "", 0, n, "x"), -EINVAL);
        assert_int_equal(fs_send_names(f, FUSE_RENAME, 1, &move, sizeof(move), "a", n), -EINVAL);
        assert_int_equal(fs_send_names(f, FUSE_RENAME, 1, &move, sizeof(move), n, "b"), -EINVAL);
    }
    static const char *const links[] = {"etc", "up", "up-file", "fifo"};
    for (unsigned i = 0; i < ARRAY_SIZE(links); i++) {
        uint64_t node = fs_look_up(f, 1, links[i]);
        assert_int_equal(fs_send_name(f, FUSE_LOOKUP, node, "passwd"), -ENOTDIR);
        assert_int_equal(fs_send_name(f, FUSE_UNLINK, node, "file"), -ENOTDIR);
        assert_int_equal(fs_send_names(f, FUSE_MKDIR, node, &mkdir_in, sizeof(mkdir_in), "x", NULL),
                         -ENOTDIR);
        assert_int_equal(fs_send_names(f, FUSE_CREATE, node, &create, sizeof(create), "x", NULL),
                         -ENOTDIR);
        assert_int_equal(fs_send(f, FUSE_OPEN, node, &open_in, sizeof(open_in)), -ENXIO);
        assert_int_equal(fs_send(f, FUSE_OPENDIR, node, &open_in, sizeof(open_in)), -ENOTDIR);
        struct fuse_setattr_in set = {.valid = FATTR_SIZE};
        assert_int_equal(fs_send(f, FUSE_SETATTR, node, &set, sizeof(set)), -ENXIO);
    }
    /* the mode of a link is not that of what it names */
    struct fuse_setattr_in set = {.valid = FATTR_MODE, .mode = 0777};
    assert_int_equal(fs_send(f, FUSE_SETATTR, fs_look_up(f, 1, "up-file"), &set, sizeof(set)),
                     -EOPNOTSUPP);
    fs_teardown(f);
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
    struct fs_test *f = fs_setup();
    struct racer racer = {.dir = f->dir};
    struct fuse_create_in create = {.flags = O_RDWR | O_CREAT, .mode = 0644};
    struct stat secret;
    pthread_t thread;
    unsigned folders = 0, links = 0;

    assert_int_equal(fstatat(f->dir, "../secret", &secret, 0), 0);
    assert_int_equal(pthread_create(&thread, NULL, race, &racer), 0);
    for (unsigned i = 0; i < 20000 && (i < 1000 || folders < 100 || links < 100); i++) {
        if (fs_send_name(f, FUSE_LOOKUP, 1, i & 1 ? "d" : "up") != 0)
            continue;
        struct fuse_entry_out entry = *(struct fuse_entry_out *)f->reply;
        assert_int_not_equal(entry.attr.ino, secret.st_ino);
        bool is_folder = S_ISDIR(entry.attr.mode);
        *(is_folder ? &folders : &links) += 1;
        int error = fs_send_name(f, FUSE_LOOKUP, entry.nodeid, is_folder ? "b" : "file");
        assert_int_equal(error, is_folder ? 0 : -ENOTDIR);
        if (is_folder)
            fs_forget(f, ((struct fuse_entry_out *)f->reply)->nodeid, 1);
        error = fs_send_names(f, FUSE_CREATE, entry.nodeid, &create, sizeof(create), "made", NULL);
        assert_int_equal(error, is_folder ? 0 : -ENOTDIR);
        if (is_folder) {
            uint64_t fh = ((struct fuse_open_out *)(f->reply + sizeof(entry)))->fh;
            uint64_t made = ((struct fuse_entry_out *)f->reply)->nodeid;
            assert_int_equal(fs_release(f, FUSE_RELEASE, made, fh), 0);
            fs_forget(f, made, 1);
            assert_int_equal(fs_send_name(f, FUSE_UNLINK, entry.nodeid, "made"), 0);
        }
        fs_forget(f, entry.nodeid, 1);
    }
    atomic_store(&racer.is_stopping, true);
    pthread_join(thread, NULL);
    assert_true(folders >= 100 && links >= 100);
    assert_int_equal(faccessat(f->dir, "../secret/made", F_OK, 0), -1);
    fs_teardown(f);
}

static void numbers_of_nothing(void **state)
{
    struct fs_test *f = fs_setup();
    struct fuse_getattr_in get = {0};
    uint64_t node = fs_look_up(f, 1, "a");

    for (uint64_t n = 0; n < 2000; n++)
        if (n != 1 && n != node)
            assert_int_equal(fs_send(f, FUSE_GETATTR, n, &get, sizeof(get)), -ESTALE);
    assert_int_equal(fs_send(f, FUSE_GETATTR, UINT64_MAX, &get, sizeof(get)), -ESTALE);
    assert_int_equal(fs_look_up(f, 1, "a"), node);
    fs_forget(f, node, 1);
    assert_int_equal(fs_send(f, FUSE_GETATTR, node, &get, sizeof(get)), 0);
    fs_forget(f, node, UINT64_MAX); /* more than there were */
    assert_int_equal(fs_send(f, FUSE_GETATTR, node, &get, sizeof(get)), -ESTALE);
    fs_forget(f, node, 1);
    fs_forget(f, 1, UINT64_MAX);
    assert_int_equal(fs_send(f, FUSE_GETATTR, 1, &get, sizeof(get)), 0);

    /* a list that claims to be longer than it is */
    node = fs_look_up(f, 1, "a");
    struct {
        struct fuse_in_header header;
        struct fuse_batch_forget_in in;
        struct fuse_forget_one one;
    } m = {.header = {.len = sizeof(m), .opcode = FUSE_BATCH_FORGET},
           .in = {.count = UINT32_MAX},
           .one = {.nodeid = node, .nlookup = 1}};
    struct iovec in = {&m, sizeof(m)};
    assert_int_equal(fs_submit(f, &in, 1, NULL, 0), 0);
    assert_int_equal(fs_send(f, FUSE_GETATTR, node, &get, sizeof(get)), -ESTALE);
    fs_teardown(f);
}

static void handles_of_others(void **state)
{
    struct fs_test *f = fs_setup();
    uint64_t a = fs_look_up(f, 1, "a"), d = fs_look_up(f, 1, "d"), b = fs_look_up(f, d, "b");
    uint64_t fh = fs_open_node(f, a, O_RDWR);

    assert_int_equal(fs_read_at(f, b, fh, 0, 1), -EBADF);
    assert_int_equal(fs_write_text(f, b, fh, 0, 0, "x"), -EBADF);
    assert_int_equal(fs_release(f, FUSE_RELEASE, b, fh), -EBADF);
    for (uint64_t n = 0; n < 100; n++)
        if (n != fh)
            assert_int_equal(fs_read_at(f, a, n, 0, 1), -EBADF);
    struct fuse_setattr_in set = {.valid = FATTR_SIZE | FATTR_FH, .fh = fh};
    assert_int_equal(fs_send(f, FUSE_SETATTR, b, &set, sizeof(set)), -EBADF);
    struct fuse_copy_file_range_in copy = {.fh_in = fh, .nodeid_out = b, .fh_out = fh, .len = 2};
    assert_int_equal(fs_send(f, FUSE_COPY_FILE_RANGE, a, &copy, sizeof(copy)), -EBADF);
    struct fuse_read_in in = {.fh = fh, .size = 4096};
    assert_int_equal(fs_send(f, FUSE_READDIR, a, &in, sizeof(in)), -ENOTDIR);
    assert_int_equal(fs_send(f, FUSE_READDIR, d, &in, sizeof(in)), -EBADF);
    /* an open file outlives the number it was opened by, but needs it */
    fs_forget(f, a, 1);
    assert_int_equal(fs_read_at(f, a, fh, 0, 1), -ESTALE);
    assert_int_equal(fs_look_up(f, 1, "a"), a);
    assert_int_equal(fs_read_at(f, a, fh, 0, 1), 0);
    assert_int_equal(fs_release(f, FUSE_RELEASE, a, fh), 0);
    assert_int_equal(fs_release(f, FUSE_RELEASE, a, fh), -EBADF);
    assert_int_equal(fs_read_at(f, a, fh, 0, 1), -EBADF);
    fs_teardown(f);
}

static void messages_cut_short(void **state)
{
    struct fs_test *f = fs_setup();
    uint8_t buf[256] = {0};
    struct fuse_in_header *header = (void *)buf;
    struct iovec out = {f->answer, sizeof(f->answer)};

    for (unsigned size = 0; size < sizeof(*header); size++) {
        struct iovec in = {buf, size};
        assert_int_equal(fs_submit(f, &in, 1, &out, 1), 0);
    }
    assert_int_equal(fs_submit(f, NULL, 0, NULL, 0), 0);
    /* every operation, known or not, with every length of arguments from none on */
    for (uint32_t opcode = 0; opcode < 60; opcode++)
        for (unsigned size = sizeof(*header); size <= sizeof(buf); size += 1 + size / 16) {
            struct iovec in = {buf, size};
            *header = (struct fuse_in_header){.len = size, .opcode = opcode, .nodeid = 1};
            fs_submit(f, &in, 1, &out, 1);
            header->len = size + 1;
            assert_int_equal(fs_submit(f, &in, 1, &out, 1), 16);
            assert_int_equal(((struct fuse_out_header *)f->answer)->error, -EINVAL);
            out.iov_len = size % 16;
            header->len = size;
            assert_int_equal(fs_submit(f, &in, 1, &out, 1), 0);
            out.iov_len = sizeof(f->answer);
        }
    assert_int_equal(fs_init(f, 7, 36), 0); /* one of them was DESTROY */
    assert_int_equal(fs_send(f, 9999, 1, "", 0), -ENOSYS);
    assert_int_equal(fs_send(f, FUSE_GETLK, 1, buf, 100), -ENOSYS);
    assert_int_equal(fs_send(f, FUSE_LOOKUP, 1, "abc", 3), -EINVAL); /* no end */
    memset(buf, 'x', sizeof(buf));
    assert_int_equal(fs_send(f, FUSE_LOOKUP, 1, buf, sizeof(buf)), -EINVAL);
    buf[255] = 0;
    assert_int_equal(fs_send(f, FUSE_LOOKUP, 1, buf, sizeof(buf)), 0);
    assert_int_equal(((struct fuse_entry_out *)f->reply)->nodeid, 0);
    char name[300];
    memset(name, 'x', sizeof(name));
    name[299] = '\0';
    assert_int_equal(fs_send_name(f, FUSE_LOOKUP, 1, name), -ENAMETOOLONG);
    /* nothing is done when there is no room to say what came of it */
    struct fuse_mkdir_in mkdir_in = {.mode = 0755};
    memcpy(buf, &mkdir_in, sizeof(mkdir_in));
    strcpy((char *)buf + sizeof(mkdir_in), "dir");
    assert_int_equal(fs_send_room(f, FUSE_MKDIR, 1, buf, sizeof(mkdir_in) + 4, 127), -EINVAL);
    assert_int_equal(faccessat(f->dir, "dir", F_OK, 0), -1);
    uint64_t a = fs_look_up(f, 1, "a"), fh = fs_open_node(f, a, O_RDWR);
    struct fuse_write_in write_in = {.fh = fh, .size = 100};
    assert_int_equal(fs_send(f, FUSE_WRITE, a, &write_in, sizeof(write_in)), -EINVAL);
    write_in.size = 0;
    assert_int_equal(fs_send(f, FUSE_WRITE, a, &write_in, sizeof(write_in)), 0);
    struct fuse_read_in read_in = {.fh = fh, .size = UINT32_MAX};
    assert_int_equal(fs_send_room(f, FUSE_READ, a, &read_in, sizeof(read_in), 3), 0);
    assert_int_equal(f->reply_size, 3);
    fs_teardown(f);
}

static void read_only(void **state)
{
    struct fs_test *f = fs_setup_with(true, 1000);
    uint64_t a = fs_look_up(f, 1, "a");
    struct fuse_open_in open_in = {.flags = O_RDWR};
    struct fuse_setattr_in set = {.valid = FATTR_MODE, .mode = 0777};
    struct fuse_mkdir_in mkdir_in = {.mode = 0755};
    struct fuse_mknod_in node_in = {.mode = S_IFREG | 0644};
    struct fuse_create_in create = {.flags = O_RDONLY | O_CREAT, .mode = 0644};
    struct fuse_rename2_in move = {.newdir = 1};
    struct fuse_link_in link_in = {.oldnodeid = a};

    assert_int_equal(fs_send(f, FUSE_OPEN, a, &open_in, sizeof(open_in)), -EROFS);
    open_in.flags = O_WRONLY;
    assert_int_equal(fs_send(f, FUSE_OPEN, a, &open_in, sizeof(open_in)), -EROFS);
    open_in.flags = O_RDONLY | O_TRUNC;
    assert_int_equal(fs_send(f, FUSE_OPEN, a, &open_in, sizeof(open_in)), -EROFS);
    uint64_t fh = fs_open_node(f, a, O_RDONLY);
    assert_int_equal(fs_read_at(f, a, fh, 0, 10), 0);
    assert_int_equal(f->reply_size, 5);
    assert_int_equal(fs_write_text(f, a, fh, 0, 0, "x"), -EROFS);
    assert_int_equal(fs_send(f, FUSE_SETATTR, a, &set, sizeof(set)), -EROFS);
    assert_int_equal(fs_send_name(f, FUSE_UNLINK, 1, "a"), -EROFS);
    assert_int_equal(fs_send_name(f, FUSE_RMDIR, 1, "d"), -EROFS);
    assert_int_equal(fs_send_names(f, FUSE_MKDIR, 1, &mkdir_in, sizeof(mkdir_in), "x", NULL),
                     -EROFS);
    assert_int_equal(fs_send_names(f, FUSE_MKNOD, 1, &node_in, sizeof(node_in), "x", NULL), -EROFS);
    assert_int_equal(fs_send_names(f, FUSE_SYMLINK, 1, "", 0, "x", "y"), -EROFS);
    assert_int_equal(fs_send_names(f, FUSE_RENAME2, 1, &move, sizeof(move), "a", "x"), -EROFS);
    assert_int_equal(fs_send_names(f, FUSE_RENAME, 1, &move, 8, "a", "x"), -EROFS);
    assert_int_equal(fs_send_names(f, FUSE_LINK, 1, &link_in, sizeof(link_in), "x", NULL), -EROFS);
    assert_int_equal(fs_send_name(f, FUSE_REMOVEXATTR, a, "user.x"), -EROFS);
    assert_int_equal(fs_send(f, FUSE_SETXATTR, a, "\0\0\0\0\0\0\0\0user.x", 15), -EROFS);
    assert_int_equal(fs_send_names(f, FUSE_CREATE, 1, &create, sizeof(create), "x", NULL), -EROFS);
    assert_int_equal(fs_send_names(f, FUSE_CREATE, 1, &create, sizeof(create), "a", NULL), 0);
    create.flags = O_RDWR | O_CREAT;
    assert_int_equal(fs_send_names(f, FUSE_CREATE, 1, &create, sizeof(create), "a", NULL), -EROFS);
    struct fuse_fallocate_in more = {.fh = fh, .length = 4096};
    assert_int_equal(fs_send(f, FUSE_FALLOCATE, a, &more, sizeof(more)), -EROFS);
    struct fuse_copy_file_range_in copy = {.fh_in = fh, .nodeid_out = a, .fh_out = fh, .len = 2};
    assert_int_equal(fs_send(f, FUSE_COPY_FILE_RANGE, a, &copy, sizeof(copy)), -EROFS);
    struct fuse_access_in access_in = {.mask = W_OK};
    assert_int_equal(fs_send(f, FUSE_ACCESS, a, &access_in, sizeof(access_in)), -EROFS);
    assert_int_equal(fs_list(f, 1, FUSE_READDIR, 4096), 8);
    struct stat st;
    assert_int_equal(fstatat(f->dir, "a", &st, 0), 0);
    assert_int_equal(st.st_size, 5);
    assert_int_equal(st.st_mode & 0777, 0644);
    fs_teardown(f);
}

static void descriptors_are_bounded(void **state)
{
    struct fs_test *f = fs_setup_with(false, 40); /* 30 inodes, 10 files */
    unsigned before = fs_count_descriptors(), known = 0, opened = 0;
    uint64_t a = fs_look_up(f, 1, "a"), nodes[64];
    struct fuse_open_in open_in = {0};
    char name[32];

    for (unsigned i = 0; i < 64; i++) {
        snprintf(name, sizeof(name), "n%u", i);
        fs_put_file(f, name, "x");
        if (fs_send_name(f, FUSE_LOOKUP, 1, name) == 0)
            nodes[known++] = ((struct fuse_entry_out *)f->reply)->nodeid;
        else
            assert_int_equal(f->error, -ENFILE);
    }
    assert_int_equal(known, 30 - 2); /* the root, a */
    while (fs_send(f, FUSE_OPEN, a, &open_in, sizeof(open_in)) == 0)
        opened++;
    assert_int_equal(f->error, -ENFILE);
    assert_int_equal(opened, 10);
    assert_true(fs_count_descriptors() <= before + 40);
    /* what can be listed is, without look-ups; a file that could not be opened is not known */
    fs_forget(f, nodes[0], 1);
    struct fuse_create_in create = {.flags = O_RDWR | O_CREAT, .mode = 0644};
    assert_int_equal(fs_send_names(f, FUSE_CREATE, 1, &create, sizeof(create), "new", NULL),
                     -ENFILE);
    fs_look_up(f, 1, "n63");
    share_reset(f->share);
    assert_int_equal(fs_count_descriptors(), before);
    fs_teardown(f);
}

struct held {
    struct share_waiting w;
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

static void submit_one(struct fs_test *f, struct share_waiting *w, struct iovec *in,
                       struct iovec *out, bool is_urgent,
                       void (*done)(struct share_request *share, uint32_t written))
{
    share_waiting_init(w, in, 1, out, 1);
    w->share.is_urgent = is_urgent;
    w->share.done = done;
    share_submit(f->share, &w->share);
}

#define THREADS 4
#define WAITING 5

static void waiting_requests_are_interrupted(void **state)
{
    struct fs_test *f = fs_setup();
    struct {
        struct fuse_in_header header;
        uint8_t args[16];
    } get = {.header = {.len = sizeof(get), .opcode = FUSE_GETATTR, .unique = 77, .nodeid = 1}},
      stop = {.header = {.len = 48, .opcode = FUSE_INTERRUPT, .unique = 78}, .args = {77}};
    struct iovec get_in = {&get, sizeof(get)}, stop_in = {&stop, 48};
    uint8_t to[THREADS + WAITING + 1][256];
    struct iovec out[THREADS + WAITING + 1];
    struct held held[THREADS];
    struct share_waiting waiting[WAITING], stopping;

    for (unsigned i = 0; i < ARRAY_SIZE(out); i++)
        out[i] = (struct iovec){to[i], sizeof(to[i])};
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_mutex_init(&held[i].gate, NULL);
        pthread_mutex_lock(&held[i].gate);
        submit_one(f, &held[i].w, &get_in, &out[i], false, held_done);
        share_waiting_end(&held[i].w);
    }
    /* no thread is left for these; the last goes first when there is one */
    for (unsigned i = 0; i < WAITING; i++)
        submit_one(f, &waiting[i], &get_in, &out[THREADS + i], false, share_waiting_done);
    submit_one(f, &stopping, &stop_in, &out[THREADS + WAITING], true, share_waiting_done);
    pthread_mutex_unlock(&held[0].gate);
    share_waiting_end(&stopping);
    assert_int_equal(((struct fuse_out_header *)to[THREADS + WAITING])->error, 0);
    for (unsigned i = 0; i < WAITING; i++) {
        share_waiting_end(&waiting[i]);
        assert_int_equal(((struct fuse_out_header *)to[THREADS + i])->error, -EINTR);
    }
    for (unsigned i = 1; i < THREADS; i++)
        pthread_mutex_unlock(&held[i].gate);
    fs_teardown(f);
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
