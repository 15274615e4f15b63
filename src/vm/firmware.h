/*
 * firmware.h - the firmware a machine starts with: its ROM, its variables, and what it is told
 *
 * A firmware file is copied into memory when it is opened. Variables of UEFI firmware stand in a
 * flash chip below the ROM; they are kept in a file when there is one, else they live as long as
 * the machine.
 */
#ifndef DOPPEL_VM_FIRMWARE_H
#define DOPPEL_VM_FIRMWARE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/log.h"

struct board;
struct vm_disk;

struct firmware {
    uint8_t *rom;      /* page-aligned; ends at 4 GiB */
    uint32_t rom_size; /* in whole pages */
    uint8_t *vars;     /* NULL: none; its place is below the ROM */
    uint32_t vars_size;
    int vars_fd; /* -1: not kept */
    const char *vars_path;
    struct log_limit warnings;
};

/*
 * Read firmware `name`: "seabios", "ovmf" or a file's name. `vars` names the file in which its
 * variables are kept; it is made, from the ones that come with "ovmf", when it is not there.
 * NULL: they are forgotten with the machine. `vars` outlives *out.
 */
int firmware_open(const char *name, const char *vars, struct firmware *out, struct err *e);

/*
 * firmware_choose.c: by what the first disk looks made for, "seabios" or "ovmf". A disk that cannot
 * be read is left to those who open it next, and their message.
 */
const char *firmware_choose(const struct vm_disk *disks, unsigned count);

/* The judgement alone: of the first `size` bytes of a disk, which may be anything. */
bool firmware_is_uefi_disk(const uint8_t *disk, size_t size);

/* Zeroed or closed is fine. */
void firmware_close(struct firmware *firmware);

/* Write a part of the variables to their file, if there is one. Returns 0 or -errno. Any thread. */
int firmware_write_vars(struct firmware *firmware, uint32_t offset, uint32_t size);

/* firmware_config.c: fill the board's fw_cfg with what firmware asks for. Set-up, all devices are
 * there. */
int firmware_describe(struct board *board, struct err *e);

#endif
