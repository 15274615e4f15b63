/*
 * fuzz_qcow2.c - arbitrary bytes as a qcow2 image: opened, read, written, checked, repaired
 *
 * What must hold whatever the bytes are: nothing is accessed that is not ours, everything ends;
 * an image that can be opened can be read or says -EIO; what was written to it is read back, as
 * long as nothing was found to be damaged; a repair that says that all is well is believed by
 * the next check.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "backend/block/image.h"
#include "backend/block/qcow2.h"
#include "base/bits.h"

#define FILE_MAX (UINT64_C(16) << 20)
#define PIECE 16384u
#define OPS 24

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int claim)
{
    if (!claim)
        abort();
}

static uint64_t draw(uint64_t *random, uint64_t limit)
{
    *random = *random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (*random >> 33) % limit;
}

static int open_image(const char *path, bool is_read_only, bool is_for_repair, struct image **out)
{
    /* alone: no name in the bytes leads to a file of the host; not locked: no process for each */
    struct image_config config = {.path = path,
                                  .format = BLOCK_FORMAT_QCOW2,
                                  .is_read_only = is_read_only,
                                  .is_alone = true,
                                  .is_unlocked = true,
                                  .is_for_repair = is_for_repair};
    struct err e = {0};
    int rc = image_open(&config, out, &e);

    require(rc == 0 || (rc < 0 && e.msg[0] != '\0'));
    if (rc == 0)
        require((*out)->size >= BLOCK_SECTOR && (*out)->size % BLOCK_SECTOR == 0);
    return rc;
}

static void read_all(struct image *image, uint8_t *buf)
{
    uint64_t at = 0;

    for (unsigned i = 0; i < 64 && at < image->size; i++) {
        uint64_t n = image->size - at;
        enum image_extent extent;
        if (image_map_chain(image, at, &n, &extent) != 0)
            n = 512;
        require(n != 0 && n <= image->size - at);
        uint64_t piece = MIN(n, PIECE);
        image_read(image, at, buf, piece);
        at += MIN(n, UINT64_C(1) << 30);
    }
    image_read(image, image->size - 512, buf, 512);
}

/* Offsets where something is, and the ends of tables. */
static uint64_t draw_offset(const struct image *image, uint64_t *random)
{
    uint64_t limit = draw(random, 2) != 0 ? MIN(image->size, UINT64_C(1) << 20) : image->size;
    uint64_t sector = draw(random, MIN(limit / 512, UINT32_MAX));

    return (draw(random, 8) == 0 ? image->size / 512 - 1 - sector % 64 % (image->size / 512)
                                 : sector) *
           512;
}

static void write_some(struct image *image, uint8_t *buf, uint64_t *random)
{
    static uint8_t back[PIECE];
    bool is_sound = true;

    for (unsigned i = 0; i < OPS; i++) {
        uint64_t at = draw_offset(image, random);
        uint64_t n = MIN(512 * (1 + draw(random, PIECE / 512)), image->size - at);
        int rc = 0;
        switch (draw(random, 6)) {
        case 0:
            rc = image->ops->discard(image, at, n);
            break;
        case 1:
            rc = image->ops->write_zeroes(image, at, n, i & 1);
            break;
        case 2:
            rc = image->ops->flush(image);
            break;
        default:
            memset(buf, (int)i + 1, n);
            rc = image_write(image, at, buf, n);
            is_sound &= rc == 0;
            if (rc == 0 && is_sound && image_read(image, at, back, n) == 0)
                require(memcmp(buf, back, n) == 0);
        }
        is_sound &= rc == 0;
    }
}

static void check(const char *path, enum qcow2_repair repair, struct qcow2_check *out,
                  bool *is_done)
{
    struct image *image;
    struct err e;

    *out = (struct qcow2_check){0};
    *is_done = false;
    if (open_image(path, repair == QCOW2_REPAIR_NONE, true, &image) != 0)
        return;
    *is_done = qcow2_check(image, repair, out, &e) == 0;
    require(out->errors_fixed <= out->errors && out->leaks_fixed <= out->leaks);
    image_close(image);
}

static void use(const char *path, uint64_t random)
{
    uint8_t *buf = malloc(PIECE);
    struct qcow2_check first, repaired, last;
    struct image *image;
    struct err e;
    bool is_done[3];

    if (open_image(path, true, false, &image) == 0) {
        read_all(image, buf);
        image_close(image);
    }
    check(path, QCOW2_REPAIR_NONE, &first, &is_done[0]);
    if (open_image(path, false, false, &image) == 0) {
        write_some(image, buf, &random);
        if (draw(&random, 4) == 0)
            image->ops->resize(image, (1 + draw(&random, 65536)) * 512, &e);
        read_all(image, buf);
        image_close(image);
    }
    check(path, QCOW2_REPAIR_ALL, &repaired, &is_done[1]);
    if (is_done[1] && repaired.errors == repaired.errors_fixed) {
        check(path, QCOW2_REPAIR_NONE, &last, &is_done[2]);
        require(is_done[2] && last.errors == 0);
    }
    free(buf);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static bool is_limited;
    uint64_t random = size;
    char path[32];

    if (!is_limited) {
        struct rlimit limit = {FILE_MAX, FILE_MAX};
        signal(SIGXFSZ, SIG_IGN); /* -EFBIG will do */
        setrlimit(RLIMIT_FSIZE, &limit);
        is_limited = true;
    }
    for (size_t i = 0; i < size; i++)
        random = (random ^ data[i]) * UINT64_C(0x100000001b3);
    int fd = memfd_create("qcow2", MFD_CLOEXEC);
    if (fd < 0 || size > FILE_MAX || write(fd, data, size) != (ssize_t)size) {
        close(fd);
        return 0;
    }
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    use(path, random);
    close(fd);
    return 0;
}
