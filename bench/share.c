/*
 * share.c - the benchmark's rows of a shared folder: a program for the guest, and for the host
 *
 * share ROW SECONDS FOLDER prints "row ROW figure unit", more is better. What the system keeps in
 * memory of the folder is dropped first where that can be done without harm to others, that is, in
 * a guest (DROP=1 in the environment): else the row would measure the guest's memory.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define MIB (1u << 20)
#define FILE_MIB 256u  /* of what is read */
#define WRITE_MIB 128u /* of what is written before it begins anew */
#define SMALL_SIZE 4096u
#define SMALL_FILES 500
#define TREE_FOLDERS 20
#define TREE_FILES 50 /* in each */

/* A row ends when what counts took that long, or all of it this many times as long. */
static double seconds, end;
#define PATIENCE 3
static const char *folder;
static char block[MIB];

static _Noreturn void fail(const char *what)
{
    printf("share: FAILED: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int is_over(double spent)
{
    if (end == 0) /* everything is prepared */
        end = now() + PATIENCE * seconds;
    return spent > 0 && (spent >= seconds || now() >= end);
}

/* A path in the folder; valid until two more were asked for. */
static const char *path(const char *format, ...)
{
    static char text[2][4096];
    static unsigned at;
    va_list args;

    at = !at;
    int n = snprintf(text[at], sizeof(text[at]), "%s/", folder);
    va_start(args, format);
    vsnprintf(text[at] + n, sizeof(text[at]) - (size_t)n, format, args);
    va_end(args);
    return text[at];
}

static int must_open(const char *name, int flags)
{
    int fd = open(name, flags, 0644);

    if (fd < 0)
        fail(name);
    return fd;
}

static void must_write(int fd, size_t size)
{
    if (write(fd, block, size) != (ssize_t)size)
        fail("write");
}

/* ---- what is in memory ---- */

static int drops;

static void drop(const char *what)
{
    if (!drops)
        return;
    int fd = must_open("/proc/sys/vm/drop_caches", O_WRONLY);
    if (write(fd, what, 1) != 1)
        fail("drop caches");
    close(fd);
}

static void drop_names(void)
{
    drop("2");
}

static void drop_all(void)
{
    drop("3");
}

/* ---- one large file ---- */

static int open_data(void)
{
    struct stat st;
    const char *name = path("data");

    if (stat(name, &st) != 0 || st.st_size != (off_t)FILE_MIB * MIB) {
        int fd = must_open(name, O_WRONLY | O_CREAT | O_TRUNC);
        for (unsigned i = 0; i < FILE_MIB; i++)
            must_write(fd, MIB);
        if (fsync(fd) != 0 || close(fd) != 0)
            fail(name);
    }
    drop_all();
    return must_open(name, O_RDONLY);
}

static double row_read(void)
{
    int fd = open_data();
    uint64_t count = 0;
    double spent = 0;

    while (!is_over(spent)) {
        drop_all();
        double start = now();
        for (unsigned i = 0; i < FILE_MIB; i++, count++)
            if (pread(fd, block, MIB, (off_t)i * MIB) != MIB)
                fail("read");
        spent += now() - start;
    }
    close(fd);
    return (double)count / spent;
}

/* Every page of the file once, in an order without a pattern, and then again. */
static double row_read4k(void)
{
    const uint32_t pages = FILE_MIB * (MIB / SMALL_SIZE);
    int fd = open_data();
    uint64_t count = 0;
    uint32_t at = 1;
    double spent = 0;

    if (posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM) != 0)
        fail("fadvise");
    while (!is_over(spent)) {
        if (count % pages == 0)
            drop_all();
        double start = now();
        for (unsigned i = 0; i < 256; i++, count++) {
            /* full period: the modulus is a power of two (Hull and Dobell) */
            at = (at * 1664525u + 1013904223u) % pages;
            if (pread(fd, block, SMALL_SIZE, (off_t)at * SMALL_SIZE) != SMALL_SIZE)
                fail("read");
        }
        spent += now() - start;
    }
    close(fd);
    return (double)count / spent;
}

static double row_write(int is_synced)
{
    uint64_t count = 0;
    double start = now(), spent = 0;

    while (!is_over(spent)) {
        int fd = must_open(path("written"), O_WRONLY | O_CREAT | O_TRUNC);
        for (unsigned i = 0; i < WRITE_MIB && !is_over(spent); i++, count++) {
            must_write(fd, MIB);
            if (is_synced && fsync(fd) != 0)
                fail("fsync");
            spent = now() - start;
        }
        if (close(fd) != 0)
            fail("close");
        spent = now() - start;
    }
    unlink(path("written"));
    return (double)count / spent;
}

static double row_write_plain(void)
{
    return row_write(0);
}

static double row_write_fsync(void)
{
    return row_write(1);
}

/* ---- small files ---- */

static void small_create(void)
{
    for (unsigned i = 0; i < SMALL_FILES; i++) {
        int fd = must_open(path("small/%u", i), O_WRONLY | O_CREAT | O_EXCL);
        must_write(fd, SMALL_SIZE);
        close(fd);
    }
}

static void small_stat(void)
{
    struct stat st;

    for (unsigned i = 0; i < SMALL_FILES; i++)
        if (stat(path("small/%u", i), &st) != 0 || st.st_size != SMALL_SIZE)
            fail("stat");
}

static void small_read(void)
{
    for (unsigned i = 0; i < SMALL_FILES; i++) {
        int fd = must_open(path("small/%u", i), O_RDONLY);
        if (read(fd, block, SMALL_SIZE) != SMALL_SIZE)
            fail("read");
        close(fd);
    }
}

static void small_unlink(void)
{
    for (unsigned i = 0; i < SMALL_FILES; i++)
        if (unlink(path("small/%u", i)) != 0)
            fail("unlink");
}

/* All four in turn; the time of `counted` counts. */
static double small(void (*counted)(void))
{
    void (*const steps[])(void) = {small_create, small_stat, small_read, small_unlink};
    uint64_t count = 0;
    double spent = 0;

    if (mkdir(path("small"), 0755) != 0)
        fail("mkdir");
    while (!is_over(spent)) {
        for (unsigned i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
            if (steps[i] == small_unlink && steps[i] != counted) {
                small_unlink();
                continue;
            }
            if (steps[i] != counted && steps[i] != small_create)
                continue;
            if (steps[i] == small_stat || steps[i] == small_read)
                drop_all();
            double start = now();
            steps[i]();
            if (steps[i] == counted) {
                spent += now() - start;
                count += SMALL_FILES;
            }
        }
    }
    if (rmdir(path("small")) != 0)
        fail("rmdir");
    return (double)count / spent;
}

static double row_create(void)
{
    return small(small_create);
}

static double row_stat(void)
{
    return small(small_stat);
}

static double row_small(void)
{
    return small(small_read);
}

static double row_unlink(void)
{
    return small(small_unlink);
}

/* ---- a tree ---- */

static void make_tree(void)
{
    if (mkdir(path("tree"), 0755) != 0)
        fail("mkdir");
    for (unsigned i = 0; i < TREE_FOLDERS; i++) {
        if (mkdir(path("tree/folder-%u", i), 0755) != 0)
            fail("mkdir");
        for (unsigned j = 0; j < TREE_FILES; j++) {
            int fd = must_open(path("tree/folder-%u/file-%u", i, j), O_WRONLY | O_CREAT | O_EXCL);
            must_write(fd, 100);
            close(fd);
        }
    }
}

static void remove_tree(void)
{
    for (unsigned i = 0; i < TREE_FOLDERS; i++) {
        for (unsigned j = 0; j < TREE_FILES; j++)
            unlink(path("tree/folder-%u/file-%u", i, j));
        rmdir(path("tree/folder-%u", i));
    }
    if (rmdir(path("tree")) != 0)
        fail("remove the tree");
}

/* Lists the folder and asks for each entry's attributes, those beneath too; returns how many. */
static unsigned walk(int at, const char *name)
{
    int fd = openat(at, name, O_RDONLY | O_DIRECTORY);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    unsigned count = 0;

    if (d == NULL)
        fail(name);
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        struct stat st;
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        if (fstatat(fd, e->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0)
            fail(e->d_name);
        count++;
        if (S_ISDIR(st.st_mode))
            count += walk(fd, e->d_name);
    }
    closedir(d);
    return count;
}

/* As `git status` or `make` do it of a tree that has not been looked at for a while. */
static double row_walk(void)
{
    uint64_t count = 0;
    double spent = 0;

    make_tree();
    while (!is_over(spent)) {
        drop_names();
        double start = now();
        unsigned n = walk(AT_FDCWD, path("tree"));
        spent += now() - start;
        if (n != TREE_FOLDERS * (TREE_FILES + 1))
            fail("the tree is not all there");
        count += n;
    }
    remove_tree();
    return (double)count / spent;
}

/* As `tar x` does it: folders and files in them, with owner, mode and time set. */
static double row_unpack(void)
{
    const struct timespec times[2] = {{.tv_sec = 1000000000}, {.tv_sec = 1000000000}};
    uint64_t count = 0;
    double spent = 0;

    while (!is_over(spent)) {
        double start = now();
        if (mkdir(path("tree"), 0700) != 0)
            fail("mkdir");
        for (unsigned i = 0; i < TREE_FOLDERS; i++) {
            if (mkdir(path("tree/folder-%u", i), 0700) != 0)
                fail("mkdir");
            for (unsigned j = 0; j < TREE_FILES; j++, count++) {
                int fd =
                    must_open(path("tree/folder-%u/file-%u", i, j), O_WRONLY | O_CREAT | O_EXCL);
                must_write(fd, 100 * j);
                if (futimens(fd, times) != 0 || fchown(fd, getuid(), getgid()) != 0 ||
                    fchmod(fd, 0755) != 0 || close(fd) != 0)
                    fail("unpack");
            }
            if (utimensat(AT_FDCWD, path("tree/folder-%u", i), times, 0) != 0 ||
                chmod(path("tree/folder-%u", i), 0755) != 0)
                fail("unpack");
        }
        spent += now() - start;
        remove_tree();
    }
    return (double)count / spent;
}

static const struct {
    const char *name, *unit;
    double (*run)(void);
} rows[] = {
    {"share-read", "MiB/s", row_read},         {"share-write", "MiB/s", row_write_plain},
    {"share-fsync", "MiB/s", row_write_fsync}, {"share-read4k", "IO/s", row_read4k},
    {"share-create", "files/s", row_create},   {"share-stat", "files/s", row_stat},
    {"share-small", "files/s", row_small},     {"share-unlink", "files/s", row_unlink},
    {"share-walk", "files/s", row_walk},       {"share-unpack", "files/s", row_unpack},
};

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--list") == 0) {
        for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
            printf("%s %s\n", rows[i].name, rows[i].unit);
        return 0;
    }
    if (argc != 4 || (seconds = atof(argv[2])) <= 0) {
        fputs("Usage: share ROW SECONDS FOLDER, or share --list\n", stderr);
        return 2;
    }
    folder = argv[3];
    drops = getenv("DROP") != NULL;
    memset(block, 'x', sizeof(block));
    for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        if (strcmp(rows[i].name, argv[1]) == 0) {
            printf("row %s %.6g %s\n", rows[i].name, rows[i].run(), rows[i].unit);
            return 0;
        }
    fprintf(stderr, "share: there is no row '%s'\n", argv[1]);
    return 2;
}
