/*
 * guardian.c - a small process that cleans up when doppel is killed
 *
 * Invariants: the guardian is in a session of its own (os/survivor.h), so that job control does not
 * stop it from setting the terminal. It sets the terminal only when it finds it in exactly doppel's
 * raw mode: a shell that has already put its own back is left alone.
 */
#include "cli/guardian.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
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

/* Of the process that is guarded, as it was when the guardian was started. */
struct guardian_task {
    const struct tty *tty;
    const char *const *files;
    unsigned file_count;
};

static void guardian_run(void *ctx, int fd)
{
    const struct guardian_task *task = ctx;
    const struct tty *tty = task->tty;
    const char *const *files = task->files;
    unsigned count = task->file_count;
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
    struct guardian_task task = {.tty = tty, .files = files, .file_count = file_count};
    int tty_fd = tty != NULL ? tty->fd : -1;

    assert(file_count <= GUARDIAN_FILES_MAX);
    *guardian = (struct guardian){.files = files, .file_count = file_count};
    return survivor_start(&guardian->process, "doppel-guardian", &tty_fd, 1, guardian_run, &task,
                          e);
}

static void guardian_tell(struct guardian *guardian, const struct guardian_note *note)
{
    /* If somebody killed the guardian this fails, and nothing is lost but its service. */
    while (write(guardian->process.pipe_fd, note, sizeof(*note)) < 0 && errno == EINTR)
        ;
}

void guardian_note_file(struct guardian *guardian, const char *file)
{
    struct stat st;
    for (unsigned i = 0; guardian->process.pid > 0 && i < guardian->file_count; i++)
        if (guardian->files[i] == file && lstat(file, &st) == 0)
            guardian_tell(guardian, &(struct guardian_note){i, st.st_dev, st.st_ino});
}

void guardian_finish(struct guardian *guardian)
{
    if (guardian->process.pid <= 0)
        return;
    guardian_tell(guardian, &(struct guardian_note){.file = GUARDIAN_DONE});
    survivor_finish(&guardian->process);
}
