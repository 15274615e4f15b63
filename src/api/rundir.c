/*
 * rundir.c - names of running machines: lock files and sockets in a folder of the user's
 *
 * Invariants: what is in the folder is changed only by the holder of the lock it belongs to; a
 * lock file is removed only while it is locked, and whoever gets a lock checks that the file is
 * still the one under its name. The kernel lets go of locks when a process dies, however it dies.
 * Spec: flock(2), unix(7), XDG Base Directory Specification 0.8 (XDG_RUNTIME_DIR).
 */
#include "api/rundir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/log.h"

#define RUNDIR_LOCK ".lock"
#define RUNDIR_SOCKET ".sock"
/* Somebody who looks whether an entry is stale holds its lock for a moment. */
#define RUNDIR_LOCK_TRIES 20
#define RUNDIR_LOCK_WAIT_NS 5000000
#define RUNDIR_BACKLOG 128

int rundir_check_name(const char *name, struct err *e)
{
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    size_t len = strlen(name);
    if (len == 0 || strchr(letters, name[0]) == NULL)
        return err_set(e, 0, "'%.80s' cannot be a name: it has to begin with a letter or a digit",
                       name);
    for (const char *c = name; *c != '\0'; c++)
        if (strchr(letters, *c) == NULL && strchr("._-", *c) == NULL)
            return err_set(e, 0,
                           "'%.80s' cannot be a name: it may have letters, digits, '.', '_' and "
                           "'-' only",
                           name);
    if (len > RUNDIR_NAME_MAX)
        return err_set(e, 0, "the name '%.20s...' is too long: %d characters at most", name,
                       RUNDIR_NAME_MAX);
    return 0;
}

/* ---- the folder ---- */

/* Is it a folder, no symbolic link, and the effective user's? */
static bool rundir_is_own_folder(const char *path, struct stat *st)
{
    return lstat(path, st) == 0 && S_ISDIR(st->st_mode) && st->st_uid == geteuid();
}

static int rundir_folder_path(char *buf, size_t size)
{
    const char *xdg = getenv("XDG_RUNTIME_DIR");
    unsigned uid = geteuid();
    char user[64];
    struct stat st;
    snprintf(user, sizeof(user), "/run/user/%u", uid);
    /* Relative: invalid and to be ignored, says the specification. Not ours: as after sudo. */
    if (xdg != NULL && xdg[0] == '/' && rundir_is_own_folder(xdg, &st))
        return snprintf(buf, size, "%s/doppel", xdg);
    if (uid == 0)
        return snprintf(buf, size, "/run/doppel");
    if (rundir_is_own_folder(user, &st))
        return snprintf(buf, size, "%s/doppel", user);
    return snprintf(buf, size, "/tmp/doppel-%u", uid);
}

/* Its path, once it is known to be private. -ENOENT: it is not there, and is not to be made. */
static int rundir_folder(char buf[RUNDIR_PATH_MAX], bool must_make, struct err *e)
{
    struct stat st;
    if (rundir_folder_path(buf, RUNDIR_PATH_MAX) >= RUNDIR_PATH_MAX)
        return err_set(e, ENAMETOOLONG, "use $XDG_RUNTIME_DIR for the files of running machines");
    if (must_make && mkdir(buf, 0700) != 0 && errno != EEXIST)
        return err_set(e, errno,
                       "make the folder '%s' for the files of running machines; a "
                       "writable XDG_RUNTIME_DIR, or --control PATH, helps",
                       buf);
    if (lstat(buf, &st) != 0)
        return err_set(e, errno, "look at the folder of running machines, '%s'", buf);
    if (!rundir_is_own_folder(buf, &st))
        return err_set(e, 0,
                       "'%s' should be your folder for running machines, but is not a folder or "
                       "belongs to another user: remove it, or set XDG_RUNTIME_DIR",
                       buf);
    if ((st.st_mode & 077) != 0 && chmod(buf, 0700) != 0)
        return err_set(e, errno, "make the folder '%s' private (mode 0700)", buf);
    return 0;
}

/* Without truncation; -ENAMETOOLONG and a message otherwise. */
static int rundir_join(char *buf, size_t size, const char *a, const char *b, const char *c,
                       struct err *e)
{
    if ((size_t)snprintf(buf, size, "%s%s%s", a, b, c) < size)
        return 0;
    if (size == RUNDIR_SOCKET_MAX)
        return err_set(e, 0,
                       "the control socket's path '%s%s%s' is longer than the %d bytes that Unix "
                       "sockets allow: choose another with --control PATH or XDG_RUNTIME_DIR",
                       a, b, c, RUNDIR_SOCKET_MAX - 1);
    return err_set(e, ENAMETOOLONG, "use the path '%.100s%s%s'", a, b, c);
}

/* ---- lock files ---- */

/* Is the open file still what stands under its name? */
static bool rundir_is_current(int fd, const char *path)
{
    struct stat open_st, path_st;
    return fstat(fd, &open_st) == 0 && lstat(path, &path_st) == 0 &&
           open_st.st_dev == path_st.st_dev && open_st.st_ino == path_st.st_ino;
}

/* What its holder wrote: "PID\nSOCKET\n". Left alone what is not there yet. */
static void rundir_read_lock(int fd, struct rundir_entry *entry)
{
    char text[32 + RUNDIR_SOCKET_MAX];
    ssize_t n = pread(fd, text, sizeof(text) - 1, 0);
    if (n <= 0)
        return;
    text[n] = '\0';
    char *path = strchr(text, '\n');
    char *end = path != NULL ? strchr(path + 1, '\n') : NULL;
    long pid = strtol(text, NULL, 10);
    if (end == NULL || pid <= 0 || end - path > RUNDIR_SOCKET_MAX)
        return;
    *end = '\0';
    entry->pid = (pid_t)pid;
    strcpy(entry->socket, path + 1);
}

/* >= 0: locked. -EEXIST: somebody else has it; entry->pid says who. */
static int rundir_try_lock(const char *path, struct rundir_entry *entry, struct err *e)
{
    for (;;) {
        int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
        struct stat st;
        if (fd < 0)
            return err_set(e, errno, "make the lock file '%s'", path);
        if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_uid != geteuid()) {
            close(fd);
            return err_set(e, 0, "'%s' is no lock file of yours: remove it", path);
        }
        if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
            int code = errno;
            rundir_read_lock(fd, entry);
            close(fd);
            return code == EWOULDBLOCK ? -EEXIST : err_set(e, code, "lock '%s'", path);
        }
        if (rundir_is_current(fd, path))
            return fd;
        /* Removed between our two calls. */
        close(fd);
    }
}

static int rundir_lock(const char *path, const char *what, int *out, struct err *e)
{
    struct timespec wait = {.tv_nsec = RUNDIR_LOCK_WAIT_NS};
    struct rundir_entry entry = {0};
    int rc = -EEXIST;
    for (unsigned i = 0; i < RUNDIR_LOCK_TRIES && rc == -EEXIST; i++) {
        if (i > 0)
            nanosleep(&wait, NULL);
        rc = rundir_try_lock(path, &entry, e);
    }
    if (rc == -EEXIST && entry.pid != 0)
        return err_set(e, 0,
                       "%s is in use by a running machine (process %d); 'doppel ps' lists them",
                       what, (int)entry.pid);
    if (rc == -EEXIST)
        return err_set(e, 0, "%s is in use by a machine that is just starting", what);
    if (rc < 0)
        return rc;
    *out = rc;
    return 0;
}

static int rundir_write_lock(int fd, const char *path, const char *socket, struct err *e)
{
    char text[32 + RUNDIR_SOCKET_MAX];
    int len = snprintf(text, sizeof(text), "%d\n%s\n", (int)getpid(), socket);
    if (ftruncate(fd, 0) != 0 || pwrite(fd, text, (size_t)len, 0) != len)
        return err_set(e, errno, "write the lock file '%s'", path);
    return 0;
}

/* ---- claiming ---- */

/* The path of --control, whatever folder its reader is in. */
static int rundir_make_absolute(const char *path, char out[RUNDIR_SOCKET_MAX], struct err *e)
{
    const char *slash = strrchr(path, '/');
    const char *base = slash != NULL ? slash + 1 : path;
    char *folder = slash == path   ? strdup("/")
                   : slash != NULL ? strndup(path, (size_t)(slash - path))
                                   : strdup(".");
    char *real = folder != NULL ? realpath(folder, NULL) : NULL;
    int rc;
    if (real == NULL)
        rc = err_set(e, folder != NULL ? errno : ENOMEM, "use the control socket '%s': its folder",
                     path);
    else if (base[0] == '\0' || strcmp(base, ".") == 0 || strcmp(base, "..") == 0)
        rc = err_set(e, EISDIR, "use the control socket '%s'", path);
    else
        rc = rundir_join(out, RUNDIR_SOCKET_MAX, strcmp(real, "/") == 0 ? "" : real, "/", base, e);
    free(folder);
    free(real);
    return rc;
}

static bool rundir_answers(const char *path)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    strcpy(addr.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    /* EAGAIN: somebody listens, and is busy. */
    bool answers =
        fd >= 0 && (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0 || errno == EAGAIN);
    if (fd >= 0)
        close(fd);
    return answers;
}

/* We hold the lock: a socket there is a leftover, or not doppel's. */
static int rundir_clear_socket(const char *path, struct err *e)
{
    struct stat st;
    if (lstat(path, &st) != 0)
        return errno == ENOENT ? 0 : err_set(e, errno, "use the control socket '%s'", path);
    if (!S_ISSOCK(st.st_mode))
        return err_set(e, EEXIST, "make the control socket '%s'", path);
    if (rundir_answers(path))
        return err_set(e, 0, "the control socket '%s' is in use by another program", path);
    if (unlink(path) != 0)
        return err_set(e, errno, "remove the socket that was left behind at '%s'", path);
    return 0;
}

static void rundir_sweep_folder(const char *folder);

static int rundir_claim_name(const char *name, const char *path, struct rundir_claim *claim,
                             struct err *e)
{
    char folder[RUNDIR_PATH_MAX], what[RUNDIR_NAME_MAX + 16];
    int rc = rundir_check_name(name, e);
    if (rc == 0)
        rc = rundir_folder(folder, true, e);
    if (rc != 0)
        return rc;
    rundir_sweep_folder(folder);
    char base[RUNDIR_NAME_MAX + 8];
    snprintf(base, sizeof(base), "/%s", name);
    if (path == NULL)
        rc = rundir_join(claim->socket, sizeof(claim->socket), folder, base, RUNDIR_SOCKET, e);
    if (rc == 0)
        rc = rundir_join(claim->name_lock, sizeof(claim->name_lock), folder, base, RUNDIR_LOCK, e);
    snprintf(what, sizeof(what), "the name '%s'", name);
    if (rc == 0)
        rc = rundir_lock(claim->name_lock, what, &claim->name_fd, e);
    return rc;
}

int rundir_claim(const char *name, const char *path, struct rundir_claim *claim, struct err *e)
{
    char what[RUNDIR_SOCKET_MAX + 24];
    int rc = 0;
    *claim = (struct rundir_claim)RUNDIR_CLAIM_NONE;
    if (path != NULL)
        rc = rundir_make_absolute(path, claim->socket, e);
    if (rc == 0 && name != NULL)
        rc = rundir_claim_name(name, path, claim, e);
    if (rc == 0 && path != NULL) {
        rc = rundir_join(claim->socket_lock, sizeof(claim->socket_lock), claim->socket, RUNDIR_LOCK,
                         "", e);
        snprintf(what, sizeof(what), "the control socket '%s'", claim->socket);
        if (rc == 0)
            rc = rundir_lock(claim->socket_lock, what, &claim->socket_fd, e);
    }
    if (rc == 0)
        rc = rundir_clear_socket(claim->socket, e);
    if (rc == 0 && claim->name_fd >= 0)
        rc = rundir_write_lock(claim->name_fd, claim->name_lock, claim->socket, e);
    if (rc == 0 && claim->socket_fd >= 0)
        rc = rundir_write_lock(claim->socket_fd, claim->socket_lock, claim->socket, e);
    return rc;
}

int rundir_listen(struct rundir_claim *claim, struct err *e)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    struct stat st;
    strcpy(addr.sun_path, claim->socket);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return err_set(e, errno, "make a Unix socket");
    /* Before bind: the file never has any other mode. */
    if (fchmod(fd, 0600) != 0 || bind(fd, (struct sockaddr *)&addr, sizeof(addr)) != 0) {
        int code = errno;
        close(fd);
        return err_set(e, code, "make the control socket '%s'", claim->socket);
    }
    claim->listen_fd = fd;
    if (lstat(claim->socket, &st) == 0) {
        claim->device = st.st_dev;
        claim->inode = st.st_ino;
    }
    if (listen(fd, RUNDIR_BACKLOG) != 0)
        return err_set(e, errno, "listen on the control socket '%s'", claim->socket);
    return 0;
}

void rundir_close_socket(struct rundir_claim *claim)
{
    struct stat st;
    if (claim->listen_fd < 0)
        return;
    /* Not if somebody replaced it. */
    if (lstat(claim->socket, &st) == 0 && st.st_dev == claim->device && st.st_ino == claim->inode)
        unlink(claim->socket);
    close(claim->listen_fd);
    claim->listen_fd = -1;
}

static void rundir_unlock(int *fd, const char *path)
{
    if (*fd < 0)
        return;
    if (rundir_is_current(*fd, path))
        unlink(path);
    close(*fd);
    *fd = -1;
}

void rundir_release(struct rundir_claim *claim)
{
    rundir_close_socket(claim);
    rundir_unlock(&claim->socket_fd, claim->socket_lock);
    rundir_unlock(&claim->name_fd, claim->name_lock);
}

/* ---- looking ---- */

/*
 * Fill in what the lock file says. False: nobody has it locked, and it is gone now. What another
 * user's file says is not acted upon: root would remove any socket for anybody.
 */
static bool rundir_look(struct rundir_entry *entry)
{
    struct stat lock_st;
    int fd = open(entry->lock, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0)
        return false;
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        rundir_read_lock(fd, entry);
        close(fd);
        return true;
    }
    if (fstat(fd, &lock_st) == 0 && lock_st.st_uid == geteuid() &&
        rundir_is_current(fd, entry->lock)) {
        struct stat st;
        rundir_read_lock(fd, entry);
        if (entry->socket[0] != '\0' && lstat(entry->socket, &st) == 0 && S_ISSOCK(st.st_mode) &&
            !rundir_answers(entry->socket))
            unlink(entry->socket);
        unlink(entry->lock);
    }
    close(fd);
    return false;
}

bool rundir_is_held(const struct rundir_entry *entry)
{
    struct rundir_entry copy = *entry;
    return rundir_look(&copy) && (copy.pid == entry->pid || entry->pid == 0);
}

/* -ESRCH, with that message. */
static int __attribute__((format(printf, 2, 3))) rundir_absent(struct err *e, const char *fmt, ...)
{
    char text[ERR_MSG_SIZE];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    err_set(e, 0, "%s", text);
    return -ESRCH;
}

static int rundir_find_path(const char *path, struct rundir_entry *out, struct err *e)
{
    struct stat st;
    int rc = rundir_make_absolute(path, out->socket, e);
    if (rc == 0)
        rc = rundir_join(out->lock, sizeof(out->lock), out->socket, RUNDIR_LOCK, "", e);
    if (rc != 0)
        return rc == -ENOENT ? -ESRCH : rc;
    if (lstat(out->lock, &st) == 0 && st.st_uid == geteuid() && !rundir_look(out))
        return rundir_absent(e,
                             "no machine runs at '%s' any more: its doppel was killed, and what it "
                             "left behind has been removed",
                             path);
    if (out->pid != 0 || lstat(out->socket, &st) == 0)
        return 0;
    rc = err_set(e, errno, "find a machine's control socket at '%s'", path);
    return rc == -ENOENT ? -ESRCH : rc;
}

int rundir_find(const char *name, struct rundir_entry *out, struct err *e)
{
    char folder[RUNDIR_PATH_MAX], base[RUNDIR_NAME_MAX + 8];
    struct stat st;
    *out = (struct rundir_entry){0};
    if (strchr(name, '/') != NULL)
        return rundir_find_path(name, out, e);
    int rc = rundir_check_name(name, e);
    if (rc != 0)
        return rc;
    rc = rundir_folder(folder, false, e);
    if (rc != 0 && rc != -ENOENT)
        return rc;
    snprintf(out->name, sizeof(out->name), "%s", name);
    snprintf(base, sizeof(base), "/%s", name);
    if (rc == 0)
        rc = rundir_join(out->lock, sizeof(out->lock), folder, base, RUNDIR_LOCK, e);
    if (rc == 0)
        rc = rundir_join(out->socket, sizeof(out->socket), folder, base, RUNDIR_SOCKET, e);
    if (rc != 0 && rc != -ENOENT)
        return rc;
    if (rc == -ENOENT || lstat(out->lock, &st) != 0)
        return rundir_absent(e, "no machine named '%s' runs; 'doppel ps' lists those that do",
                             name);
    if (!rundir_look(out))
        return rundir_absent(e,
                             "the machine '%s' does not run any more: its doppel was killed, and "
                             "what it left behind has been removed",
                             name);
    return 0;
}

static int rundir_is_lock(const struct dirent *entry)
{
    size_t len = strlen(entry->d_name);
    return len > strlen(RUNDIR_LOCK) && len <= RUNDIR_NAME_MAX + strlen(RUNDIR_LOCK) &&
           entry->d_name[0] != '.' &&
           strcmp(entry->d_name + len - strlen(RUNDIR_LOCK), RUNDIR_LOCK) == 0;
}

static int rundir_visit(const char *folder, void (*fn)(void *ctx, const struct rundir_entry *entry),
                        void *ctx, struct err *e)
{
    struct dirent **names;
    int count = scandir(folder, &names, rundir_is_lock, alphasort);
    if (count < 0)
        return err_set(e, errno, "read the folder of running machines, '%s'", folder);
    for (int i = 0; i < count; i++) {
        struct rundir_entry entry = {0};
        size_t len = strlen(names[i]->d_name) - strlen(RUNDIR_LOCK);
        snprintf(entry.name, sizeof(entry.name), "%.*s", (int)len, names[i]->d_name);
        if (rundir_join(entry.lock, sizeof(entry.lock), folder, "/", names[i]->d_name, NULL) == 0 &&
            rundir_look(&entry) && fn != NULL)
            fn(ctx, &entry);
        free(names[i]);
    }
    free(names);
    return 0;
}

/* Looking at them is what removes the stale ones. */
static void rundir_sweep_folder(const char *folder)
{
    rundir_visit(folder, NULL, NULL, NULL);
}

int rundir_list(void (*fn)(void *ctx, const struct rundir_entry *entry), void *ctx, struct err *e)
{
    char folder[RUNDIR_PATH_MAX];
    int rc = rundir_folder(folder, false, e);
    if (rc == -ENOENT)
        return 0;
    return rc != 0 ? rc : rundir_visit(folder, fn, ctx, e);
}
