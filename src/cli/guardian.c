/*
 * guardian.c - a small process that cleans up when doppel is killed
 *
 * Invariants: the guardian holds no descriptor but the pipe and the terminal, so that nobody
 * waits for it at the other end of standard output. It is in a session of its own: signals for
 * doppel's process group do not reach it, and job control does not stop it from setting the
 * terminal; until it is there, which may be after doppel's end, signals are blocked. It sets the
 * terminal only when it finds it in exactly doppel's raw mode: a shell that has already put its own
 * back is left alone.
 */
#include "cli/guardian.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/*
 * Which file there is now, or that there is nothing to do any more. Its inode too: the next doppel
 * may have put its own under that name before the guardian gets to work.
 */
struct guardian_note {
    unsigned file;
    dev_t dev;
    ino_t ino;
};
#define GUARDIAN_DONE ~0u
_Static_assert(sizeof(struct guardian_note) <= _POSIX_PIPE_BUF, "written and read as a whole");

static bool guardian_is_raw(const struct tty *tty)
{
    struct termios now;
    return tcgetattr(tty->fd, &now) == 0 && now.c_iflag == tty->raw.c_iflag &&
           now.c_oflag == tty->raw.c_oflag && now.c_lflag == tty->raw.c_lflag;
}

/* Close [first, last]; the kernel may be older than close_range (Linux 5.9). */
static void guardian_close_range(unsigned first, unsigned last)
{
    if (first > last)
        return;
    if (syscall(SYS_close_range, first, last, 0) == 0)
        return;
    for (unsigned fd = first; fd <= last && fd < 1024; fd++)
        close((int)fd);
}

static void guardian_main(int fd, const struct tty *tty, const char *const *files, unsigned count)
{
    struct guardian_note there[GUARDIAN_FILES_MAX] = {0};
    bool is_there[GUARDIAN_FILES_MAX] = {false};
    struct stat st;
    for (;;) {
        struct guardian_note note;
        ssize_t n = read(fd, &note, sizeof(note));
        if (n < 0 && errno == EINTR)
            continue;
        if (n != sizeof(note))
            break;
        if (note.file == GUARDIAN_DONE)
            return;
        if (note.file < count) {
            there[note.file] = note;
            is_there[note.file] = true;
        }
    }
    if (tty != NULL && guardian_is_raw(tty))
        tty_leave_raw(tty);
    for (unsigned i = 0; i < count; i++)
        if (is_there[i] && lstat(files[i], &st) == 0 && st.st_dev == there[i].dev &&
            st.st_ino == there[i].ino)
            unlink(files[i]);
}

int guardian_start(struct guardian *guardian, const struct tty *tty, const char *const *files,
                   unsigned file_count, struct err *e)
{
    int fds[2];
    assert(file_count <= GUARDIAN_FILES_MAX);
    if (pipe2(fds, O_CLOEXEC) != 0)
        return err_set(e, errno, "create a pipe");
    /*
     * Before there is a child: the end of a session's first process sends SIGHUP to the terminal's
     * foreground job, to which the child belongs until it has called setsid.
     */
    sigset_t all, old;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &old);
    pid_t pid = fork();
    int code = errno;
    if (pid != 0)
        sigprocmask(SIG_SETMASK, &old, NULL);
    if (pid < 0) {
        close(fds[0]);
        close(fds[1]);
        return err_set(e, code, "start the process that restores the terminal");
    }
    if (pid == 0) {
        /* Only async-signal-safe calls from here on. */
        setsid();
        prctl(PR_SET_NAME, "doppel-guardian");
        /* Keep two descriptors; 0 stays taken, so that the pipe is not moved onto it. */
        int tty_fd = tty != NULL ? tty->fd : fds[0];
        unsigned low = (unsigned)(fds[0] < tty_fd ? fds[0] : tty_fd);
        unsigned high = (unsigned)(fds[0] < tty_fd ? tty_fd : fds[0]);
        if (low > 0)
            guardian_close_range(0, low - 1);
        guardian_close_range(low + 1, high > 0 ? high - 1 : 0);
        guardian_close_range(high + 1, ~0u);
        guardian_main(fds[0], tty, files, file_count);
        _exit(0);
    }
    close(fds[0]);
    *guardian =
        (struct guardian){.pid = pid, .pipe_fd = fds[1], .files = files, .file_count = file_count};
    return 0;
}

static void guardian_tell(struct guardian *guardian, const struct guardian_note *note)
{
    /* If somebody killed the guardian this fails, and nothing is lost but its service. */
    while (write(guardian->pipe_fd, note, sizeof(*note)) < 0 && errno == EINTR)
        ;
}

void guardian_note_file(struct guardian *guardian, const char *file)
{
    struct stat st;
    for (unsigned i = 0; guardian->pid > 0 && i < guardian->file_count; i++)
        if (guardian->files[i] == file && lstat(file, &st) == 0)
            guardian_tell(guardian, &(struct guardian_note){i, st.st_dev, st.st_ino});
}

void guardian_finish(struct guardian *guardian)
{
    if (guardian->pid <= 0)
        return;
    guardian_tell(guardian, &(struct guardian_note){.file = GUARDIAN_DONE});
    close(guardian->pipe_fd);
    while (waitpid(guardian->pid, NULL, 0) < 0 && errno == EINTR)
        ;
    guardian->pid = 0;
}
