/*
 * locks.c - run a command while a file, or a piece of it, is locked, in a guest
 *
 * locks FILE START SIZE r|w try|wait COMMAND...: a lock of fcntl's, or of flock's when START is
 * "all". The command's status, or 100 when the lock is somebody else's.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

static int take(int fd, char **argv)
{
    int is_write = strcmp(argv[4], "w") == 0, waits = strcmp(argv[5], "wait") == 0;
    struct flock lock = {.l_type = is_write ? F_WRLCK : F_RDLCK,
                         .l_whence = SEEK_SET,
                         .l_start = atol(argv[2]),
                         .l_len = atol(argv[3])};

    if (strcmp(argv[2], "all") == 0)
        return flock(fd, (is_write ? LOCK_EX : LOCK_SH) | (waits ? 0 : LOCK_NB));
    return fcntl(fd, waits ? F_SETLKW : F_SETLK, &lock);
}

int main(int argc, char **argv)
{
    int status;

    if (argc < 7)
        return 2;
    int fd = open(argv[1], O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0 || take(fd, argv) != 0) {
        if (fd >= 0 && errno == EAGAIN)
            return 100;
        perror(argv[1]);
        return 1;
    }
    pid_t child = fork();
    if (child == 0) {
        execvp(argv[6], argv + 6);
        perror(argv[6]);
        _exit(1);
    }
    if (child < 0 || waitpid(child, &status, 0) != child)
        return 1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
