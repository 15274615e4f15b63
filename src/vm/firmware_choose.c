/*
 * firmware_choose.c - which firmware a disk is made for
 *
 * Boot code in the first sector is for a BIOS, and a disk that has it boots there whether or not
 * UEFI could boot it too. A disk without, but with an EFI system partition, is for UEFI.
 *
 * Spec: UEFI 2.10, chapter 5 (GUID partition table), 13.3.3 (system partition).
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "backend/block/block.h"
#include "base/bits.h"
#include "base/log.h"
#include "vm/firmware.h"
#include "vm/vm.h"

#define SECTOR BLOCK_SECTOR
#define BOOT_CODE_SIZE 440
#define MBR_PARTITIONS 446
#define MBR_ENTRY_SIZE 16
#define MBR_ENTRY_TYPE 4
#define MBR_TYPE_ESP 0xef
#define MBR_TYPE_GPT 0xee
#define GPT_ENTRIES_AT 72
#define GPT_ENTRY_SIZE_AT 84

/* As much of a disk as is looked at: where the first 128 entries are as a rule. */
#define LOOK_SECTORS 34u

/* C12A7328-F81F-11D2-BA4B-00A0C93EC93B */
static const uint8_t guid_esp[16] = {0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11,
                                     0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b};

/* ---- reading, and waiting for it ---- */

struct reading {
    struct block_request request;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool is_done;
    int result;
};

static void reading_done(struct block_request *request, int result)
{
    struct reading *r = request->ctx;

    pthread_mutex_lock(&r->lock);
    r->is_done = true;
    r->result = result;
    pthread_cond_signal(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

static int read_start(struct block *block, uint8_t *to, size_t size)
{
    struct iovec iov = {.iov_base = to, .iov_len = size};
    struct reading r = {
        .request = {.op = BLOCK_READ, .size = size, .iov = &iov, .iov_count = 1},
        .lock = PTHREAD_MUTEX_INITIALIZER,
        .changed = PTHREAD_COND_INITIALIZER,
    };

    r.request.done = reading_done;
    r.request.ctx = &r;
    block_submit(block, &r.request);
    pthread_mutex_lock(&r.lock);
    while (!r.is_done)
        pthread_cond_wait(&r.changed, &r.lock);
    pthread_mutex_unlock(&r.lock);
    return r.result;
}

/* ---- judging ---- */

static bool gpt_has_esp(const uint8_t *disk, size_t size)
{
    const uint8_t *header = disk + SECTOR;
    uint64_t at, entry_size;

    if (size < 2 * SECTOR || memcmp(header, "EFI PART", 8) != 0)
        return false;
    at = load_le64(header + GPT_ENTRIES_AT);
    entry_size = load_le32(header + GPT_ENTRY_SIZE_AT);
    if (entry_size < 128 || at > LOOK_SECTORS)
        return false;
    for (at *= SECTOR; range_fits(at, entry_size, size); at += entry_size)
        if (memcmp(disk + at, guid_esp, sizeof(guid_esp)) == 0)
            return true;
    return false;
}

bool firmware_is_uefi_disk(const uint8_t *disk, size_t size)
{
    if (size < SECTOR || load_le16(disk + SECTOR - 2) != 0xaa55)
        return false;
    for (unsigned i = 0; i < BOOT_CODE_SIZE; i++)
        if (disk[i] != 0)
            return false;
    for (unsigned i = 0; i < 4; i++) {
        uint8_t type = disk[MBR_PARTITIONS + i * MBR_ENTRY_SIZE + MBR_ENTRY_TYPE];
        if (type == MBR_TYPE_ESP || (type == MBR_TYPE_GPT && gpt_has_esp(disk, size)))
            return true;
    }
    return false;
}

const char *firmware_choose(const struct vm_disk *disks, unsigned count)
{
    struct block_config config = {.is_read_only = true};
    struct block *block;
    const char *name = "seabios";
    uint8_t *start;
    struct err e;
    size_t size;

    if (count == 0 || disks[0].is_vhost_user)
        return name;
    config.path = disks[0].path;
    config.format = disks[0].format;
    if (block_open(&config, &block, &e) != 0)
        return name;
    size = MIN(align_down(block_size(block), SECTOR), LOOK_SECTORS * SECTOR);
    start = calloc(1, MAX(size, (size_t)1));
    if (start != NULL && size != 0 && read_start(block, start, size) == 0 &&
        firmware_is_uefi_disk(start, size))
        name = "ovmf";
    free(start);
    block_close(block);
    log_info("firmware: %s, by the look of '%s'", name, disks[0].path);
    return name;
}
