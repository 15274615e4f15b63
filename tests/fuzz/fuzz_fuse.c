/*
 * fuzz_fuse.c - arbitrary FUSE requests to the server of a shared folder
 *
 * The input is a list of requests: for each a byte for the operation, one for the node, one for
 * the handle, two for the length of the arguments, then these. Nodes and handles are those that
 * the server gave out last, or numbers as they are. What must hold: an answer is well formed and
 * fits its room, is never what lies beside the folder, and nothing there changes.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/share/share.h"
#include "backend/share/waiting.h"
#include "base/bits.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define KNOWN 8u
#define ROOM 4096u
#define ARGS_MAX 512u
#define FILE_SIZE_MAX (1 << 16) /* more than one input could fill a disk with */

static const char secret[] = "what lies beside the shared folder";

struct world {
    char top[64];
    int dir; /* of `top` */
    struct share *share;
    uint64_t nodes[KNOWN], handles[KNOWN];
    unsigned node_count, handle_count;
};

static void require(bool claim)
{
    if (!claim)
        abort();
}

static void put_file(int dir, const char *name, const char *text)
{
    int fd = openat(dir, name, O_WRONLY | O_CREAT | O_TRUNC, 0644);

    require(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    close(fd);
}

static void make_world(struct world *w, bool is_read_only)
{
    const char *tmp = getenv("TMPDIR");
    char folder[96];
    struct err e;

    snprintf(w->top, sizeof(w->top), "%.40s/doppel-fuzz-XXXXXX", tmp != NULL ? tmp : "/dev/shm");
    require(mkdtemp(w->top) != NULL);
    w->dir = open(w->top, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    put_file(w->dir, "secret", secret);
    require(mkdirat(w->dir, "folder", 0755) == 0 && mkdirat(w->dir, "folder/d", 0755) == 0);
    put_file(w->dir, "folder/a", "hello");
    put_file(w->dir, "folder/d/b", "there");
    require(symlinkat("../secret", w->dir, "folder/l") == 0 &&
            symlinkat("..", w->dir, "folder/d/u") == 0 && mkfifoat(w->dir, "folder/f", 0666) == 0);
    snprintf(folder, sizeof(folder), "%s/folder", w->top);
    struct share_config config = {.path = folder,
                                  .is_read_only = is_read_only,
                                  .cache = is_read_only ? SHARE_CACHE_AUTO : SHARE_CACHE_ALWAYS,
                                  .has_locks = true,
                                  .descriptors_max = 64};
    require(share_open(&config, &w->share, &e) == 0);
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    if (S_ISDIR(st->st_mode)) /* never of what a link names; a folder may be closed to its owner */
        chmod(path, 0700);
    return remove(path);
}

static void check_world(struct world *w)
{
    char text[sizeof(secret) + 1] = "";
    DIR *dir = fdopendir(dup(w->dir));
    unsigned count = 0;
    int fd = openat(w->dir, "secret", O_RDONLY);

    require(fd >= 0 && read(fd, text, sizeof(text)) == sizeof(secret) - 1);
    require(strcmp(text, secret) == 0);
    close(fd);
    rewinddir(dir);
    while (readdir(dir) != NULL)
        count++;
    require(count == 4);
    closedir(dir);
}

/* What the next requests may name. */
static void learn(struct world *w, uint32_t opcode, const uint8_t *reply, size_t size)
{
    const struct fuse_entry_out *entry = (const void *)reply;

    switch (opcode) {
    case FUSE_LOOKUP:
    case FUSE_MKDIR:
    case FUSE_MKNOD:
    case FUSE_SYMLINK:
    case FUSE_LINK:
    case FUSE_CREATE:
        require(size >= sizeof(*entry));
        if (opcode == FUSE_LOOKUP && entry->nodeid == 0) /* there is none, for a while */
            break;
        require(entry->nodeid > FUSE_ROOT_ID);
        w->nodes[w->node_count++ % KNOWN] = entry->nodeid;
        if (opcode == FUSE_CREATE)
            w->handles[w->handle_count++ % KNOWN] = load_le64(reply + sizeof(*entry));
        break;
    case FUSE_OPEN:
    case FUSE_OPENDIR:
        require(size == sizeof(struct fuse_open_out));
        w->handles[w->handle_count++ % KNOWN] = load_le64(reply);
        break;
    default:
        break;
    }
}

static void send(struct world *w, const uint8_t *message, size_t size)
{
    const struct fuse_in_header *header = (const void *)message;
    uint8_t answer[ROOM + 1];
    const struct fuse_out_header *out = (const void *)answer;
    struct iovec in = {(void *)message, size}, to = {answer, ROOM};
    struct share_waiting r;

    memset(answer, 0, sizeof(answer));
    share_waiting_submit(&r, w->share, &in, 1, &to, 1);
    if (header->opcode == FUSE_SETLKW) /* nobody else is there to let go of it */
        share_stop_waiting(w->share);
    share_waiting_end(&r);
    require(r.written == 0 || (r.written >= sizeof(*out) && r.written <= ROOM));
    if (r.written == 0)
        return;
    require(out->len == r.written && out->unique == header->unique);
    require(out->error <= 0 && (out->error == 0 || r.written == sizeof(*out)));
    require(memmem(answer, r.written, secret, sizeof(secret) - 1) == NULL);
    if (out->error == 0)
        learn(w, header->opcode, answer + sizeof(*out), r.written - sizeof(*out));
}

static uint64_t pick(const uint64_t known[KNOWN], unsigned count, uint8_t byte)
{
    return byte >= 0x80 && count != 0 ? known[byte % MIN(count, KNOWN)] : byte;
}

/* One request from the input; returns bytes used. */
static size_t take(struct world *w, const uint8_t *data, size_t size)
{
    uint8_t message[sizeof(struct fuse_in_header) + ARGS_MAX] __attribute__((aligned(8)));
    size_t len = MIN(load_le16(data + 3) % ARGS_MAX, size - 5);
    struct fuse_in_header header = {.len = (uint32_t)(sizeof(header) + len),
                                    .opcode = data[0],
                                    .unique = size,
                                    .nodeid = pick(w->nodes, w->node_count, data[1]),
                                    .uid = geteuid(),
                                    .gid = getegid()};

    memcpy(message, &header, sizeof(header));
    memcpy(message + sizeof(header), data + 5, len);
    /* where a handle is, it is in front */
    if (data[2] >= 0x80 && len >= 8)
        store_le64(message + sizeof(header), pick(w->handles, w->handle_count, data[2]));
    send(w, message, sizeof(header) + len);
    return 5 + len;
}

static void begin(struct world *w)
{
    struct {
        struct fuse_in_header header;
        struct fuse_init_in in;
    } m = {.header = {.len = sizeof(m), .opcode = FUSE_INIT},
           .in = {.major = 7, .minor = 36, .flags = FUSE_POSIX_LOCKS | FUSE_FLOCK_LOCKS}};

    send(w, (const uint8_t *)&m, sizeof(m));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct rlimit limit = {FILE_SIZE_MAX, FILE_SIZE_MAX}, before;
    struct world w = {0};

    if (size < 1)
        return 0;
    getrlimit(RLIMIT_FSIZE, &before);
    limit.rlim_max = before.rlim_max;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &limit);
    make_world(&w, data[0] & 1);
    begin(&w);
    for (size_t at = 1; size - at > 5;)
        at += take(&w, data + at, size - at);
    share_close(w.share);
    check_world(&w);
    nftw(w.top, remove_one, 16, FTW_PHYS); /* folders first, so that they can be entered */
    nftw(w.top, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    close(w.dir);
    setrlimit(RLIMIT_FSIZE, &before);
    return 0;
}
