/*
 * firmware.c - the firmware's files: its ROM, and the flash chip with its variables
 *
 * Files are hostile: sizes are checked before anything is mapped by them; what is in them only
 * the guest executes.
 */
#include "vm/firmware.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/log.h"
#include "vm/machine_map.h"

#define PAGE 4096u

/* What names stand for, best first: where Debian's packages put it. */
static const struct {
    const char *name, *package, *rom, *vars;
} known[] = {
    {"seabios", "seabios", "/usr/share/seabios/bios-256k.bin", NULL},
    {"ovmf", "ovmf", "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"},
    {"ovmf", "ovmf", "/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"},
};

/* ---- files ---- */

static int read_whole(int fd, uint8_t *to, size_t size)
{
    for (size_t done = 0; done < size;) {
        ssize_t n = pread(fd, to + done, size - done, (off_t)done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO; /* it was longer a moment ago */
        done += (size_t)n;
    }
    return 0;
}

/* A file as page-aligned memory. */
static int load_fd(int fd, const char *path, uint8_t **out, uint32_t *size, struct err *e)
{
    struct stat st;
    int ret;

    if (fstat(fd, &st) != 0)
        return err_set(e, errno, "read '%s'", path);
    if (!S_ISREG(st.st_mode))
        return err_set(e, 0, "read '%s': it is no regular file", path);
    if (st.st_size == 0 || st.st_size % PAGE != 0 || st.st_size > MAP_ROM_MAX / 2)
        return err_set(e, 0,
                       "read '%s': %" PRId64 " bytes are no firmware (whole 4 KiB, up to %u MiB)",
                       path, (int64_t)st.st_size, MAP_ROM_MAX / 2 >> 20);
    *out = aligned_alloc(PAGE, (size_t)st.st_size);
    if (*out == NULL)
        return err_set(e, ENOMEM, "read '%s'", path);
    ret = read_whole(fd, *out, (size_t)st.st_size);
    if (ret != 0) {
        free(*out);
        *out = NULL;
        return err_set(e, -ret, "read '%s'", path);
    }
    *size = (uint32_t)st.st_size;
    return 0;
}

static int load_file(const char *path, uint8_t **out, uint32_t *size, struct err *e)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC), ret;

    if (fd < 0)
        return err_set(e, errno, "open '%s'", path);
    ret = load_fd(fd, path, out, size, e);
    close(fd);
    return ret;
}

/* ---- variables ---- */

static int write_whole(int fd, const uint8_t *from, size_t size, off_t at)
{
    for (size_t done = 0; done < size;) {
        ssize_t n = pwrite(fd, from + done, size - done, at + (off_t)done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        done += (size_t)n;
    }
    return 0;
}

/* The file is there: use what it holds. `template_size` 0: any size. */
static int vars_load(struct firmware *fw, uint32_t template_size, struct err *e)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    int ret;

    if (fcntl(fw->vars_fd, F_OFD_SETLK, &lock) != 0)
        return err_set(e, errno, "lock '%s' (does another machine use it?)", fw->vars_path);
    free(fw->vars);
    fw->vars = NULL;
    ret = load_fd(fw->vars_fd, fw->vars_path, &fw->vars, &fw->vars_size, e);
    if (ret == 0 && template_size != 0 && fw->vars_size != template_size)
        ret = err_set(e, 0,
                      "'%s' has %u bytes, variables of this firmware have %u: it was made by "
                      "another one",
                      fw->vars_path, fw->vars_size, template_size);
    return ret;
}

/* The file is new: it begins with what came with the firmware. All of it is there, or no file. */
static int vars_make(struct firmware *fw, struct err *e)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    int ret = 0;

    if (fcntl(fw->vars_fd, F_OFD_SETLK, &lock) != 0)
        ret = -errno;
    if (ret == 0)
        ret = write_whole(fw->vars_fd, fw->vars, fw->vars_size, 0);
    if (ret == 0 && fsync(fw->vars_fd) != 0)
        ret = -errno;
    if (ret == 0)
        return 0;
    unlink(fw->vars_path);
    return err_set(e, -ret, "make '%s'", fw->vars_path);
}

static int vars_open(struct firmware *fw, struct err *e)
{
    fw->vars_fd = open(fw->vars_path, O_RDWR | O_CLOEXEC);
    if (fw->vars_fd >= 0)
        return vars_load(fw, fw->vars_size, e);
    if (errno != ENOENT)
        return err_set(e, errno, "open '%s'", fw->vars_path);
    if (fw->vars == NULL)
        return err_set(e, 0,
                       "'%s' is not there, and this firmware comes with no variables that it could "
                       "be made from",
                       fw->vars_path);
    fw->vars_fd = open(fw->vars_path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fw->vars_fd < 0)
        return err_set(e, errno, "make '%s'", fw->vars_path);
    return vars_make(fw, e);
}

int firmware_write_vars(struct firmware *fw, uint32_t offset, uint32_t size)
{
    int ret;

    if (fw->vars_fd < 0)
        return 0;
    ret = write_whole(fw->vars_fd, fw->vars + offset, size, offset);
    if (ret != 0 && log_limit_allows(&fw->warnings))
        log_warn("variables: write to '%s': %s", fw->vars_path, strerror(-ret));
    return ret;
}

/* ---- opening ---- */

/* By name: the first of its files that is there; the error is about the best one. */
static int open_known(const char *name, struct firmware *fw, struct err *e)
{
    int ret = -ENOENT;

    for (unsigned i = 0; ret == -ENOENT && i < ARRAY_SIZE(known); i++) {
        if (strcmp(known[i].name, name) != 0 ||
            (i > 0 && access(known[i].rom, F_OK) != 0 && strcmp(known[i - 1].name, name) == 0))
            continue;
        ret = load_file(known[i].rom, &fw->rom, &fw->rom_size, e);
        if (ret == 0 && known[i].vars != NULL)
            ret = load_file(known[i].vars, &fw->vars, &fw->vars_size, e);
        if (ret == -ENOENT)
            err_prefix(e, "firmware '%s' (Debian: apt-get install %s)", name, known[i].package);
    }
    return ret;
}

static bool is_known(const char *name)
{
    for (unsigned i = 0; i < ARRAY_SIZE(known); i++)
        if (strcmp(known[i].name, name) == 0)
            return true;
    return false;
}

static int open_parts(const char *name, struct firmware *fw, struct err *e)
{
    int ret =
        is_known(name) ? open_known(name, fw, e) : load_file(name, &fw->rom, &fw->rom_size, e);

    if (ret == 0 && fw->vars_path != NULL) {
        if (is_known(name) && fw->vars == NULL)
            return err_set(e, 0, "firmware '%s' has no variables to keep in '%s'", name,
                           fw->vars_path);
        ret = vars_open(fw, e);
    }
    return ret;
}

int firmware_open(const char *name, const char *vars, struct firmware *out, struct err *e)
{
    int ret;

    *out = (struct firmware){.vars_fd = -1, .vars_path = vars};
    ret = open_parts(name, out, e);
    if (ret != 0)
        firmware_close(out);
    return ret;
}

void firmware_close(struct firmware *fw)
{
    if (fw->rom == NULL && fw->vars == NULL)
        return;
    free(fw->rom);
    free(fw->vars);
    if (fw->vars_fd >= 0) {
        if (fsync(fw->vars_fd) != 0)
            log_warn("variables: write '%s' to its disk: %s", fw->vars_path, strerror(errno));
        close(fw->vars_fd);
    }
    *fw = (struct firmware){.vars_fd = -1};
}
