/*
 * peer.c - sends and receives on TCP and vsock connections, for guests and with nothing but libc
 *
 * usage: peer send|recv tcp ADDRESS PORT MIB     connect, send or receive so much, say how fast
 *        peer echo vsock PORT COUNT              listen, give back what COUNT connections send
 *        peer talk vsock CID PORT                standard input to the other end, its answer to
 * ours
 */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

static char buf[256 * 1024];

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static double now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void write_all(int fd, const char *from, size_t size)
{
    while (size > 0) {
        ssize_t n = write(fd, from, size);
        if (n <= 0)
            fail("write");
        from += n;
        size -= (size_t)n;
    }
}

/* Until the end of file; returns bytes. */
static unsigned long long copy(int from, int to)
{
    unsigned long long total = 0;
    ssize_t n;

    while ((n = read(from, buf, sizeof(buf))) > 0) {
        if (to >= 0)
            write_all(to, buf, (size_t)n);
        total += (unsigned long long)n;
    }
    if (n < 0)
        fail("read");
    return total;
}

static int connect_tcp(const char *address, const char *port)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(port))};
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    inet_pton(AF_INET, address, &to.sin_addr);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof(to)) != 0)
        fail("connect");
    return fd;
}

static int flow(int is_send, char **argv)
{
    int fd = connect_tcp(argv[0], argv[1]);
    unsigned long long size = strtoull(argv[2], NULL, 10) << 20, done = 0;
    double start = now();

    if (is_send) {
        for (; done < size; done += sizeof(buf))
            write_all(fd, buf, sizeof(buf));
        shutdown(fd, SHUT_WR);
        /* the other end closes when it has all */
        copy(fd, -1);
    } else {
        done = copy(fd, -1);
        if (done != size)
            fprintf(stderr, "%llu bytes instead of %llu\n", done, size);
    }
    printf("%.1f\n", (double)done / 1e6 / (now() - start));
    return done != size;
}

static int echo(char **argv)
{
    struct sockaddr_vm at = {
        .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = (unsigned)atoi(argv[0])};
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);

    if (fd < 0 || bind(fd, (struct sockaddr *)&at, sizeof(at)) != 0 || listen(fd, 128) != 0)
        fail("listen");
    printf("listening\n");
    fflush(stdout);
    for (int left = atoi(argv[1]); left > 0; left--) {
        int peer = accept(fd, NULL, NULL);
        if (peer < 0)
            fail("accept");
        if (fork() == 0) {
            copy(peer, peer);
            shutdown(peer, SHUT_RDWR);
            _exit(0);
        }
        close(peer);
    }
    return 0;
}

static int talk(char **argv)
{
    struct sockaddr_vm to = {.svm_family = AF_VSOCK,
                             .svm_cid = (unsigned)atoi(argv[0]),
                             .svm_port = (unsigned)atoi(argv[1])};
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);

    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof(to)) != 0)
        fail("connect");
    if (fork() == 0) {
        copy(0, fd);
        shutdown(fd, SHUT_WR);
        _exit(0);
    }
    copy(fd, 1);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 6 && strcmp(argv[2], "tcp") == 0)
        return flow(strcmp(argv[1], "send") == 0, argv + 3);
    if (argc == 5 && strcmp(argv[1], "echo") == 0)
        return echo(argv + 3);
    if (argc == 5 && strcmp(argv[1], "talk") == 0)
        return talk(argv + 3);
    fprintf(stderr, "usage: see the source\n");
    return 1;
}
