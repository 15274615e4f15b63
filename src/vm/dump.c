/*
 * dump.c - a processor's registers as text, for a guest that died
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "cpu/pagewalk.h"
#include "mem/space.h"
#include "vm/machine.h"

struct dump {
    char *buf;
    size_t size, used;
};

__attribute__((format(printf, 2, 3))) static void dump_print(struct dump *d, const char *fmt, ...)
{
    va_list args;
    int n;

    if (d->used >= d->size)
        return;
    va_start(args, fmt);
    n = vsnprintf(d->buf + d->used, d->size - d->used, fmt, args);
    va_end(args);
    if (n > 0)
        d->used += (size_t)n;
}

static uint8_t *dump_find_entry(void *ctx, gpa_t addr, bool *is_writable)
{
    *is_writable = false; /* looking must not set accessed bits */
    return space_ram_ptr(ctx, addr, 8, false);
}

static void dump_entry_written(void *ctx, gpa_t addr)
{
}

/* Read a byte as an instruction fetch of this processor would find it. */
static bool dump_read_code(struct vcpu *vcpu, gva_t addr, uint8_t *byte)
{
    const struct cpu_state *st = &vcpu->state;
    struct space *memory = vcpu->vm->board.memory;
    struct pagewalk walk = {
        .cr0 = st->cr0,
        .cr3 = st->cr3,
        .cr4 = st->cr4,
        .efer = st->efer,
        .pae_pdpte = st->pae_pdpte,
        .phys_bits = vcpu->vm->model.phys_bits,
        .has_1g_pages = true,
        .has_pse36 = true,
        .entry = dump_find_entry,
        .entry_written = dump_entry_written,
        .ctx = memory,
    };
    gpa_t gpa = addr;
    const uint8_t *host;

    if (st->cr0 & CR0_PG) {
        struct pagewalk_result result;
        if (!pagewalk(&walk, addr, PAGEWALK_READ, false, true, &result))
            return false;
        gpa = result.gpa | (addr & 0xfff);
    }
    host = space_ram_ptr(memory, gpa, 1, false);
    if (host == NULL)
        return false;
    *byte = *host;
    return true;
}

static void dump_code(struct dump *d, struct vcpu *vcpu)
{
    const struct cpu_state *st = &vcpu->state;
    gva_t addr = st->rip + (cpu_is_64bit(st) ? 0 : st->seg[CPU_CS].base);

    if (!cpu_is_64bit(st))
        addr = (uint32_t)addr;
    dump_print(d, "code at rip:");
    for (unsigned i = 0; i < 16; i++) {
        uint8_t byte;
        if (!dump_read_code(vcpu, addr + i, &byte)) {
            dump_print(d, " (not readable)");
            break;
        }
        dump_print(d, " %02x", byte);
    }
    dump_print(d, "\n");
}

static void dump_segments(struct dump *d, const struct cpu_state *st)
{
    static const char *const names[CPU_SEG_COUNT] = {"es", "cs", "ss",   "ds",
                                                     "fs", "gs", "ldtr", "tr"};

    for (unsigned i = 0; i < CPU_SEG_COUNT; i++) {
        const struct cpu_seg *s = &st->seg[i];
        dump_print(d,
                   "%-4s %04x base %016" PRIx64 " limit %08" PRIx32 " attributes %05" PRIx32 "\n",
                   names[i], s->selector, s->base, s->limit, s->attr);
    }
    dump_print(d, "gdtr base %016" PRIx64 " limit %04x  idtr base %016" PRIx64 " limit %04x\n",
               st->gdtr.base, st->gdtr.limit, st->idtr.base, st->idtr.limit);
}

/* In shutdown the state holds the first of the exceptions that led there. */
static void dump_exception(struct dump *d, const struct cpu_state *st)
{
    static const char *const names[] = {
        [VEC_DE] = "#DE", [VEC_DB] = "#DB", [VEC_NMI] = "NMI", [VEC_BP] = "#BP", [VEC_OF] = "#OF",
        [VEC_BR] = "#BR", [VEC_UD] = "#UD", [VEC_NM] = "#NM",  [VEC_DF] = "#DF", [VEC_TS] = "#TS",
        [VEC_NP] = "#NP", [VEC_SS] = "#SS", [VEC_GP] = "#GP",  [VEC_PF] = "#PF", [VEC_MF] = "#MF",
        [VEC_AC] = "#AC", [VEC_MC] = "#MC", [VEC_XM] = "#XM",
    };
    unsigned vector = st->exception_vector;
    if (vector == CPU_VECTOR_UNKNOWN) {
        dump_print(d, "first exception: not known (on AMD processors KVM has lost the registers, "
                      "too; --engine bt has them)\n");
        return;
    }
    const char *name = vector < ARRAY_SIZE(names) && names[vector] != NULL ? names[vector] : "";

    dump_print(d, "first exception: vector %u %s", vector, name);
    if (st->exception_has_error)
        dump_print(d, ", error code 0x%" PRIx32, st->exception_error);
    dump_print(d, "\n");
}

void vcpu_dump(struct vcpu *vcpu, char *buf, size_t size)
{
    static const char *const names[CPU_GPR_COUNT] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp",
                                                     "rsi", "rdi", "r8",  "r9",  "r10", "r11",
                                                     "r12", "r13", "r14", "r15"};
    const struct cpu_state *st = &vcpu->state;
    struct dump d = {.buf = buf, .size = size};

    vcpu->vm->ops->pull(vcpu->engine, &vcpu->state, CPU_GROUP_ALL);
    for (unsigned i = 0; i < CPU_GPR_COUNT; i++)
        dump_print(&d, "%-3s %016" PRIx64 "%s", names[i], st->gpr[i], i % 4 == 3 ? "\n" : "  ");
    dump_print(&d, "rip %016" PRIx64 "  rflags %08" PRIx64 "  cpl %u\n", st->rip, st->rflags,
               cpu_cpl(st));
    dump_print(&d,
               "cr0 %08" PRIx64 "  cr2 %016" PRIx64 "  cr3 %016" PRIx64 "  cr4 %08" PRIx64
               "  efer %04" PRIx64 "\n",
               st->cr0, st->cr2, st->cr3, st->cr4, st->efer);
    dump_segments(&d, st);
    dump_exception(&d, st);
    dump_code(&d, vcpu);
}
