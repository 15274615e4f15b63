/*
 * share_test.c - the FUSE server against a driver that plays by the rules
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/share/testing.h"
#include "base/bits.h"

static void sessions(void **state)
{
    struct fs_test *f = fs_setup();
    const struct fuse_init_out *out = (const void *)f->reply;

    assert_int_equal(out->major, 7);
    assert_int_equal(out->minor, 36);
    assert_int_equal(out->max_write, 1 << 20);
    assert_int_equal(out->max_pages, 256);
    assert_true(out->flags & FUSE_MAX_PAGES);
    assert_false(out->flags & (FUSE_WRITEBACK_CACHE | FUSE_POSIX_LOCKS | FUSE_POSIX_ACL));
    uint64_t node = fs_look_up(f, 1, "a");
    assert_int_equal(fs_send(f, FUSE_DESTROY, 0, "", 0), 0);
    assert_int_equal(fs_send_name(f, FUSE_LOOKUP, 1, "a"), -EIO);
    assert_int_equal(fs_init(f, 8, 0), 0); /* the driver begins again */
    assert_int_equal(out->major, 7);
    assert_int_equal(fs_send_name(f, FUSE_LOOKUP, 1, "a"), -EIO);
    assert_int_equal(fs_init(f, 7, 30), -EPROTO);
    assert_int_equal(fs_init(f, 6, 40), -EPROTO);
    assert_int_equal(fs_init(f, 7, 99), 0);
    assert_int_equal(out->minor, FUSE_KERNEL_MINOR_VERSION);
    struct fuse_getattr_in get = {0};
    assert_int_equal(fs_send(f, FUSE_GETATTR, node, &get, sizeof(get)), -ESTALE);
    assert_int_not_equal(fs_look_up(f, 1, "a"), node); /* numbers never come back */
    fs_teardown(f);
}

static void files_are_read_and_written(void **state)
{
    struct fs_test *f = fs_setup();
    uint64_t node = fs_look_up(f, 1, "a");
    uint64_t fh = fs_open_node(f, node, O_RDWR);

    assert_int_equal(fs_read_at(f, node, fh, 1, 100), 0);
    assert_int_equal(f->reply_size, 4);
    assert_memory_equal(f->reply, "ello", 4);
    assert_int_equal(fs_write_text(f, node, fh, 3, 0, "p, help"), 0);
    assert_int_equal(((struct fuse_write_out *)f->reply)->size, 7);
    assert_int_equal(fs_read_at(f, node, fh, 0, 100), 0);
    assert_memory_equal(f->reply, "help, help", 10);
    assert_int_equal(fs_read_at(f, node, fh, 10, 100), 0);
    assert_int_equal(f->reply_size, 0);
    assert_int_equal(fs_read_at(f, node, fh, UINT64_MAX, 100), -EINVAL);
    assert_int_equal(fs_write_text(f, node, fh, UINT64_MAX, 0, "x"), -EINVAL);

    struct fuse_fsync_in fsync_in = {.fh = fh};
    assert_int_equal(fs_send(f, FUSE_FSYNC, node, &fsync_in, sizeof(fsync_in)), 0);
    struct fuse_flush_in flush = {.fh = fh};
    assert_int_equal(fs_send(f, FUSE_FLUSH, node, &flush, sizeof(flush)), 0);
    struct fuse_fallocate_in more = {.fh = fh, .length = 4096};
    assert_int_equal(fs_send(f, FUSE_FALLOCATE, node, &more, sizeof(more)), 0);
    struct fuse_lseek_in seek = {.fh = fh, .offset = 1, .whence = SEEK_HOLE};
    assert_int_equal(fs_send(f, FUSE_LSEEK, node, &seek, sizeof(seek)), 0);
    assert_int_equal(((struct fuse_lseek_out *)f->reply)->offset, 4096);
    seek.whence = SEEK_SET;
    assert_int_equal(fs_send(f, FUSE_LSEEK, node, &seek, sizeof(seek)), -EINVAL);

    struct fuse_setattr_in set = {.valid = FATTR_SIZE | FATTR_FH | FATTR_MODE, .fh = fh};
    set.size = 4;
    set.mode = 0604;
    assert_int_equal(fs_send(f, FUSE_SETATTR, node, &set, sizeof(set)), 0);
    assert_int_equal(((struct fuse_attr_out *)f->reply)->attr.size, 4);
    assert_int_equal(((struct fuse_attr_out *)f->reply)->attr.mode, S_IFREG | 0604);
    set = (struct fuse_setattr_in){
        .valid = FATTR_MTIME | FATTR_SIZE, .mtime = 1000, .mtimensec = 5, .size = 2};
    assert_int_equal(fs_send(f, FUSE_SETATTR, node, &set, sizeof(set)), 0);
    assert_int_equal(((struct fuse_attr_out *)f->reply)->attr.mtime, 1000);
    assert_int_equal(((struct fuse_attr_out *)f->reply)->attr.mtimensec, 5);
    set.mtimensec = UINT32_MAX;
    assert_int_equal(fs_send(f, FUSE_SETATTR, node, &set, sizeof(set)), -EINVAL);

    struct fuse_copy_file_range_in copy = {
        .fh_in = fh, .nodeid_out = node, .fh_out = fh, .off_out = 2, .len = 2};
    assert_int_equal(fs_send(f, FUSE_COPY_FILE_RANGE, node, &copy, sizeof(copy)), 0);
    assert_int_equal(fs_read_at(f, node, fh, 0, 100), 0);
    assert_memory_equal(f->reply, "hehe", 4);

    /* taken away, it is still there for who has it open */
    assert_int_equal(fs_send_name(f, FUSE_UNLINK, 1, "a"), 0);
    assert_int_equal(fs_look_up(f, 1, "a"), 0);
    assert_int_equal(fs_write_text(f, node, fh, 0, 0, "H"), 0);
    set = (struct fuse_setattr_in){.valid = FATTR_MODE, .mode = 0600};
    assert_int_equal(fs_send(f, FUSE_SETATTR, node, &set, sizeof(set)), 0);
    assert_int_equal(((struct fuse_attr_out *)f->reply)->attr.nlink, 0);
    assert_int_equal(fs_release(f, FUSE_RELEASE, node, fh), 0);
    fs_teardown(f);
}

/* Answers and data may be cut into pieces anywhere. */
static void pieces(void **state)
{
    struct fs_test *f = fs_setup();
    uint64_t node = fs_look_up(f, 1, "a"), fh = fs_open_node(f, node, O_RDWR);
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
        assert_int_equal(fs_submit(f, in, 2, out, 2), 24);
        assert_int_equal(((struct fuse_out_header *)to)->error, 0);
        assert_int_equal(load_le32(to + 16), 5);
        struct fuse_read_in get = {.fh = fh, .size = 5};
        struct fuse_in_header header = {
            .len = sizeof(header) + sizeof(get), .opcode = FUSE_READ, .nodeid = node};
        struct iovec asks[] = {{&header, sizeof(header)}, {&get, sizeof(get)}};
        struct iovec gets[] = {{to, cut % 20 + 1}, {to + cut % 20 + 1, 40}};
        memset(to, 0, sizeof(to));
        assert_int_equal(fs_submit(f, asks, 2, gets, 2), 16 + 5);
        assert_memory_equal(to + 16, "HELLO", 5);
    }
    fs_teardown(f);
}

static void names_are_made_and_moved(void **state)
{
    struct fs_test *f = fs_setup();
    struct fuse_mkdir_in mkdir_in = {.mode = 0777, .umask = 027};
    struct fuse_mknod_in node_in = {.mode = S_IFIFO | 0666, .umask = 077};
    struct stat st;

    assert_int_equal(fs_send_names(f, FUSE_MKDIR, 1, &mkdir_in, sizeof(mkdir_in), "new", NULL), 0);
    uint64_t folder = ((struct fuse_entry_out *)f->reply)->nodeid;
    assert_int_equal(fstatat(f->dir, "new", &st, 0), 0);
    assert_int_equal(st.st_mode, S_IFDIR | 0750);
    assert_int_equal(fs_send_names(f, FUSE_MKNOD, folder, &node_in, sizeof(node_in), "pipe", NULL),
                     0);
    assert_int_equal(fstatat(f->dir, "new/pipe", &st, 0), 0);
    assert_int_equal(st.st_mode, S_IFIFO | 0600);
    node_in = (struct fuse_mknod_in){.mode = S_IFBLK | 0666, .rdev = 0x800};
    assert_int_equal(fs_send_names(f, FUSE_MKNOD, folder, &node_in, sizeof(node_in), "disk", NULL),
                     -EPERM);
    node_in = (struct fuse_mknod_in){.mode = S_IFCHR | 0666, .rdev = 0x103};
    assert_int_equal(fs_send_names(f, FUSE_MKNOD, folder, &node_in, sizeof(node_in), "null", NULL),
                     -EPERM);
    assert_int_equal(fs_send_names(f, FUSE_SYMLINK, folder, "", 0, "link", "../../secret"), 0);
    assert_int_equal(((struct fuse_entry_out *)f->reply)->attr.mode & S_IFMT, S_IFLNK);
    assert_int_equal(fs_send(f, FUSE_READLINK, ((struct fuse_entry_out *)f->reply)->nodeid, "", 0),
                     0);
    assert_int_equal(f->reply_size, 12);
    assert_memory_equal(f->reply, "../../secret", 12);

    struct fuse_link_in link_in = {.oldnodeid = fs_look_up(f, 1, "a")};
    assert_int_equal(fs_send_names(f, FUSE_LINK, folder, &link_in, sizeof(link_in), "hard", NULL),
                     0);
    assert_int_equal(((struct fuse_entry_out *)f->reply)->nodeid, link_in.oldnodeid);
    assert_int_equal(((struct fuse_entry_out *)f->reply)->attr.nlink, 2);
    struct fuse_rename2_in move = {.newdir = folder, .flags = RENAME_NOREPLACE};
    assert_int_equal(fs_send_names(f, FUSE_RENAME2, 1, &move, sizeof(move), "a", "hard"), -EEXIST);
    move.flags = 1u << 7;
    assert_int_equal(fs_send_names(f, FUSE_RENAME2, 1, &move, sizeof(move), "a", "hard"), -EINVAL);
    struct fuse_rename_in plain = {.newdir = folder};
    assert_int_equal(fs_send_names(f, FUSE_RENAME, 1, &plain, sizeof(plain), "d", "moved"), 0);
    assert_int_equal(fstatat(f->dir, "new/moved/b", &st, 0), 0);
    assert_int_equal(fs_send_name(f, FUSE_RMDIR, folder, "moved"), -ENOTEMPTY);
    assert_int_equal(fs_send_name(f, FUSE_UNLINK, folder, "pipe"), 0);
    fs_teardown(f);
}

static void files_are_created(void **state)
{
    struct fs_test *f = fs_setup();
    const struct fuse_open_out *out = (void *)(f->reply + sizeof(struct fuse_entry_out));
    const struct fuse_entry_out *entry = (void *)f->reply;
    struct fuse_create_in in = {.flags = O_WRONLY | O_CREAT, .mode = 0666, .umask = 022};
    struct stat st;

    assert_int_equal(fs_send_names(f, FUSE_CREATE, 1, &in, sizeof(in), "new", NULL), 0);
    assert_int_equal(entry->attr.mode, S_IFREG | 0644);
    uint64_t node = entry->nodeid, fh = out->fh;
    assert_int_equal(fs_write_text(f, node, fh, 0, 0, "text"), 0);
    assert_int_equal(fs_read_at(f, node, fh, 0, 4), -EBADF); /* it is not open for reading */
    in.flags |= O_EXCL;
    assert_int_equal(fs_send_names(f, FUSE_CREATE, 1, &in, sizeof(in), "new", NULL), -EEXIST);
    in.flags = O_RDWR | O_CREAT | O_TRUNC;
    assert_int_equal(fs_send_names(f, FUSE_CREATE, 1, &in, sizeof(in), "new", NULL), 0);
    assert_int_equal(entry->nodeid, node);
    assert_int_equal(fstatat(f->dir, "new", &st, 0), 0);
    assert_int_equal(st.st_size, 0);
    /* what cannot be opened is not, also by this way */
    in.flags = O_RDWR | O_CREAT;
    assert_int_equal(fs_send_names(f, FUSE_CREATE, 1, &in, sizeof(in), "fifo", NULL), -ENXIO);
    assert_int_equal(fs_send_names(f, FUSE_CREATE, 1, &in, sizeof(in), "up-file", NULL), -ENXIO);
    assert_int_equal(fs_send_names(f, FUSE_CREATE, 1, &in, sizeof(in), "d", NULL), -EISDIR);
    assert_int_equal(fs_send_names(f, FUSE_CREATE, node, &in, sizeof(in), "x", NULL), -ENOTDIR);
    fs_teardown(f);
}

static void folders_are_listed(void **state)
{
    struct fs_test *f = fs_setup();
    uint64_t node = fs_look_up(f, 1, "d");
    unsigned before = fs_count_descriptors();
    char name[32];

    for (unsigned i = 0; i < 300; i++) {
        snprintf(name, sizeof(name), "d/%0*u", (int)(1 + i % 20), i);
        fs_put_file(f, name, "x");
    }
    for (uint32_t room = 512; room <= 65536; room *= 8) {
        assert_int_equal(fs_list(f, node, FUSE_READDIR, room), 303);
        assert_int_equal(fs_list(f, node, FUSE_READDIRPLUS, room), 303);
    }
    assert_int_equal(fs_list(f, 1, FUSE_READDIR, 4096), 8);
    assert_int_equal(fs_count_descriptors(), before);
    /* no room for one entry: an error, not an end */
    struct fuse_open_in open_in = {0};
    assert_int_equal(fs_send(f, FUSE_OPENDIR, node, &open_in, sizeof(open_in)), 0);
    struct fuse_read_in in = {.fh = ((struct fuse_open_out *)f->reply)->fh, .size = 16};
    assert_int_equal(fs_send(f, FUSE_READDIR, node, &in, sizeof(in)), -EINVAL);
    assert_int_equal(fs_read_at(f, node, in.fh, 0, 10), -EISDIR);
    fs_teardown(f);
}

static void extended_attributes(void **state)
{
    struct fs_test *f = fs_setup();
    uint64_t node = fs_look_up(f, 1, "a");
    struct fuse_getxattr_in get = {.size = 100};
    uint8_t set[64] = {5};

    strcpy((char *)set + 8, "user.k");
    memcpy(set + 15, "value", 5);
    if (fs_send(f, FUSE_SETXATTR, node, set, 20) == -EOPNOTSUPP) {
        fs_teardown(f); /* the file system here has none */
        skip();
    }
    assert_int_equal(f->error, 0);
    assert_int_equal(fs_send_names(f, FUSE_GETXATTR, node, &get, sizeof(get), "user.k", NULL), 0);
    assert_int_equal(f->reply_size, 5);
    assert_memory_equal(f->reply, "value", 5);
    get.size = 4;
    assert_int_equal(fs_send_names(f, FUSE_GETXATTR, node, &get, sizeof(get), "user.k", NULL),
                     -ERANGE);
    get.size = 0;
    assert_int_equal(fs_send_names(f, FUSE_GETXATTR, node, &get, sizeof(get), "user.k", NULL), 0);
    assert_int_equal(load_le32(f->reply), 5);
    assert_int_equal(
        fs_send_names(f, FUSE_GETXATTR, node, &get, sizeof(get), "security.capability", NULL),
        -EOPNOTSUPP);
    get.size = 100;
    assert_int_equal(fs_send(f, FUSE_LISTXATTR, node, &get, sizeof(get)), 0);
    assert_int_equal(f->reply_size, 7);
    assert_int_equal(fs_send_name(f, FUSE_REMOVEXATTR, node, "user.k"), 0);
    assert_int_equal(fs_send(f, FUSE_SETXATTR, node, set, 19), -EINVAL); /* a byte is missing */
    strcpy((char *)set + 8, "trusted.k");
    assert_int_equal(fs_send(f, FUSE_SETXATTR, node, set, 8 + 10 + 5), -EOPNOTSUPP);
    fs_teardown(f);
}

/* As root, files are whose the guest says; as anybody else, that user's. */
static void owners(void **state)
{
    struct fs_test *f = fs_setup();
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

    fs_submit(f, &in, 1, &out, 1);
    assert_int_equal(((struct fuse_out_header *)f->answer)->error, 0);
    assert_int_equal(fstatat(f->dir, "dir", &st, 0), 0);
    assert_int_equal(st.st_uid, keeps ? 1234 : geteuid());
    assert_int_equal(st.st_gid, keeps ? 56 : getegid());

    /* a write by one who is not root takes the set-user-ID bit away, and only such a one */
    uint64_t node = fs_look_up(f, 1, "a"), fh = fs_open_node(f, node, O_RDWR);
    struct fuse_setattr_in set = {.valid = FATTR_MODE, .mode = 04755};
    assert_int_equal(fs_send(f, FUSE_SETATTR, node, &set, sizeof(set)), 0);
    assert_int_equal(fs_write_text(f, node, fh, 0, 0, "x"), 0);
    assert_int_equal(fstatat(f->dir, "a", &st, 0), 0);
    assert_int_equal(st.st_mode & 07777, keeps ? 04755 : 0755);
    assert_int_equal(fs_send(f, FUSE_SETATTR, node, &set, sizeof(set)), 0);
    assert_int_equal(fs_write_text(f, node, fh, 0, FUSE_WRITE_KILL_SUIDGID, "x"), 0);
    assert_int_equal(fstatat(f->dir, "a", &st, 0), 0);
    assert_int_equal(st.st_mode & 07777, 0755);
    fs_teardown(f);
}

/* ---- against the rules ---- */

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
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
