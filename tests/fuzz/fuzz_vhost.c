/*
 * fuzz_vhost.c - arbitrary bytes from a vhost-user back end
 *
 * The input is all that the back end ever says; then it hangs up. What must hold: every call comes
 * back with success or an error that has a message, and descriptors are not lost.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backend/vhost/vhost_user.h"
#include "base/bits.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define INPUT_MAX 65536u /* what a socket's buffer takes */

static void check(int rc, const struct err *e)
{
    if (rc > 0 || (rc < 0 && e->msg[0] == '\0'))
        abort();
}

static void use(struct vhost_user *u)
{
    static uint8_t memory[4096] __attribute__((aligned(4096)));
    uint8_t config[VHOST_USER_CONFIG_MAX];
    struct vhost_user_region region = {.size = sizeof(memory), .host = memory, .fd = 0};
    struct vhost_user_ring ring = {
        .size = 4, .descriptors = memory, .avail = memory + 1024, .used = memory + 2048};
    struct err e = {0};

    if (vhost_user_queues_max(u) > 1024)
        abort();
    check(vhost_user_get_config(u, config, 60, &e), &e);
    check(vhost_user_set_features(u, 1, &e), &e);
    check(vhost_user_set_memory(u, &region, 1, &e), &e);
    check(vhost_user_start_ring(u, 0, &ring, &e), &e);
    check(vhost_user_stop_ring(u, 0, &e), &e);
    check(vhost_user_get_config(u, config, sizeof(config), &e), &e);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct vhost_user *u = NULL;
    struct err e = {0};
    int fds[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0)
        abort();
    size = MIN(size, INPUT_MAX);
    if (send(fds[1], data, size, MSG_NOSIGNAL) != (ssize_t)size)
        abort();
    shutdown(fds[1], SHUT_WR);
    int rc = vhost_user_open_fd(fds[0], "fuzz", &u, &e);
    check(rc, &e);
    if (rc == 0)
        use(u);
    vhost_user_close(rc == 0 ? u : NULL);
    close(fds[1]);
    /* the lowest free number is what it was */
    int fd = fcntl(0, F_DUPFD_CLOEXEC, 0);
    if (fd != MIN(fds[0], fds[1]))
        abort();
    close(fd);
    return 0;
}
