/*
 * trace.c - what was translated, for people: a perf map, and guest and host code side by side
 *
 * Both are plain files that grow as blocks are made; they cost nothing when not asked for.
 * Format of the map: linux/tools/perf/Documentation/jit-interface.txt (START SIZE symbol).
 */
#include <Zydis/Zydis.h>
#include <errno.h>
#include <inttypes.h>

#include "engine/bt/bt.h"

static FILE *trace_file(const char *path, const char *what, struct err *e)
{
    FILE *f = fopen(path, "w");
    if (f == NULL)
        err_set(e, errno, "create the %s '%s'", what, path);
    else
        setvbuf(f, NULL, _IOLBF, 0);
    return f;
}

int bt_trace_open(struct bt_engine *be, const struct engine_config *config, struct err *e)
{
    if (config->perf_map_path != NULL) {
        be->perf_map = trace_file(config->perf_map_path, "perf map", e);
        if (be->perf_map == NULL)
            return -e->code;
        fprintf(be->perf_map, "%" PRIxPTR " %zx doppel:stubs\n", (uintptr_t)be->rx, be->stubs_end);
    }
    if (config->dump_blocks_path != NULL) {
        be->dump = trace_file(config->dump_blocks_path, "block dump", e);
        if (be->dump == NULL)
            return -e->code;
    }
    return 0;
}

/* Print the instructions in [bytes, bytes + size), which will run at `addr`. */
static void dump_code(FILE *out, const char *indent, ZydisMachineMode mode, uint64_t addr,
                      const uint8_t *bytes, size_t size)
{
    ZydisDisassembledInstruction dis;
    size_t offset = 0;

    while (offset < size) {
        if (!ZYAN_SUCCESS(
                ZydisDisassembleIntel(mode, addr + offset, bytes + offset, size - offset, &dis))) {
            fprintf(out, "%s%" PRIx64 "  (not decoded: %02x)\n", indent, addr + offset,
                    bytes[offset]);
            return;
        }
        fprintf(out, "%s%" PRIx64 "  %s\n", indent, addr + offset, dis.text);
        offset += dis.info.length;
    }
}

void bt_trace_block(struct bt_engine *be, const struct bt_draft *block, const uint8_t *guest)
{
    size_t host_size = (size_t)(block->end - block->guard);

    if (be->perf_map != NULL)
        fprintf(be->perf_map, "%" PRIxPTR " %zx guest:%016" PRIx64 "\n", (uintptr_t)block->guard,
                host_size, block->rip);
    if (be->dump == NULL)
        return;

    ZydisMachineMode mode =
        block->mode & BT_MODE_SIZE ? ZYDIS_MACHINE_MODE_LONG_COMPAT_32 : ZYDIS_MACHINE_MODE_LONG_64;
    fprintf(be->dump,
            "block %016" PRIx64 " physical %" PRIx64 " mode %x: %u instructions, %u -> %zu bytes\n",
            block->rip, block->gpa, block->mode, block->insn_count, block->guest_len, host_size);
    dump_code(be->dump, "      ", ZYDIS_MACHINE_MODE_LONG_64, (uintptr_t)block->guard, block->guard,
              block->insn_count > 0 ? block->map[0].host : host_size);
    for (unsigned i = 0; i < block->insn_count; i++) {
        const struct bt_insn_map *m = &block->map[i];
        dump_code(be->dump, "  ", mode, block->rip + m->guest, guest + m->guest,
                  m[1].guest - (size_t)m->guest);
        dump_code(be->dump, "      ", ZYDIS_MACHINE_MODE_LONG_64,
                  (uintptr_t)(block->guard + m->host), block->guard + m->host,
                  m[1].host - (size_t)m->host);
    }
    const uint8_t *rest = block->guard + block->map[block->insn_count].host;
    fprintf(be->dump, "  exits and misses\n");
    dump_code(be->dump, "      ", ZYDIS_MACHINE_MODE_LONG_64, (uintptr_t)rest, rest,
              (size_t)(block->end - rest));
}

void bt_trace_close(struct bt_engine *be)
{
    if (be->perf_map != NULL)
        fclose(be->perf_map);
    if (be->dump != NULL)
        fclose(be->dump);
    be->perf_map = be->dump = NULL;
}
