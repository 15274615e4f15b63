/*
 * unixsock.c - Unix stream sockets by path
 */
#include "os/unixsock.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static int make_addr(const char *path, struct sockaddr_un *addr, const char *verb, struct err *e)
{
    *addr = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(addr->sun_path))
        return err_set(e, ENAMETOOLONG, "%s '%s' (at most %zu bytes)", verb, path,
                       sizeof(addr->sun_path) - 1);
    strcpy(addr->sun_path, path);
    return 0;
}

static int make_socket(struct err *e)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    return fd >= 0 ? fd : err_set(e, errno, "create a socket");
}

int unixsock_connect(const char *path, struct err *e)
{
    struct sockaddr_un addr;
    int rc = make_addr(path, &addr, "connect to", e);

    if (rc != 0)
        return rc;
    int fd = make_socket(e);
    if (fd >= 0 && connect(fd, (const struct sockaddr *)&addr, sizeof(addr)) != 0) {
        int code = errno;
        close(fd);
        return err_set(e, code, "connect to '%s'", path);
    }
    return fd;
}

/* Remove a socket that nobody listens on; leave anything else alone. */
static int clear_stale(const char *path, struct err *e)
{
    struct stat st;

    if (lstat(path, &st) != 0)
        return errno == ENOENT ? 0 : err_set(e, errno, "look at '%s'", path);
    if (!S_ISSOCK(st.st_mode))
        return err_set(e, EEXIST, "listen on '%s'", path);
    int fd = unixsock_connect(path, e);
    if (fd >= 0)
        close(fd);
    if (fd != -ECONNREFUSED)
        return err_set(e, EADDRINUSE, "listen on '%s'", path);
    if (unlink(path) != 0)
        return err_set(e, errno, "remove the old socket '%s'", path);
    return 0;
}

int unixsock_listen(const char *path, int backlog, struct err *e)
{
    struct sockaddr_un addr;
    int rc = make_addr(path, &addr, "listen on", e);

    if (rc == 0)
        rc = clear_stale(path, e);
    if (rc != 0)
        return rc;
    int fd = make_socket(e);
    if (fd < 0)
        return fd;
    /* who connects is as good as the guest's root: its owner's only. bind(2) takes the mode over */
    fchmod(fd, 0600);
    if (bind(fd, (const struct sockaddr *)&addr, sizeof(addr)) != 0) {
        int code = errno;
        close(fd);
        return err_set(e, code, "listen on '%s'", path);
    }
    if (listen(fd, backlog) != 0) {
        int code = errno;
        unlink(path);
        close(fd);
        return err_set(e, code, "listen on '%s'", path);
    }
    return fd;
}
