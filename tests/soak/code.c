/*
 * code.c - rounds of code that is made, changed and run
 *
 * Functions of random arithmetic, whose results C computes beside; instructions that change the
 * ones behind them; the same bytes written through another mapping; and a second thread that runs
 * what the first one writes, as the manuals allow it (Intel SDM vol. 3, "Handling Self- and
 * Cross-Modifying Code").
 */
#include <cpuid.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "soak.h"

enum { CODE_BYTES = 65536, OPS_MAX = 60, FUNCTION_MAX = 1024, TIMES = 300, HANDOVERS = 200 };

typedef uint32_t function(uint32_t);

struct emitter {
    uint8_t *at; /* through which bytes are written */
    uint64_t state;
};

static void emit(struct emitter *e, const void *bytes, size_t size)
{
    memcpy(e->at, bytes, size);
    e->at += size;
}

static void emit8(struct emitter *e, uint8_t byte)
{
    *e->at++ = byte;
}

static void emit32(struct emitter *e, uint32_t value)
{
    emit(e, &value, 4);
}

static uint32_t rotate_left(uint32_t x, unsigned n)
{
    n &= 31;
    return n ? x << n | x >> (32 - n) : x;
}

/* One instruction on EAX; returns what it makes of `x`. */
static uint32_t emit_op(struct emitter *e, uint32_t x)
{
    uint32_t imm = (uint32_t)next_random(&e->state);
    switch (next_random(&e->state) % 9) {
    case 0: /* add eax, imm */
        emit8(e, 0x05), emit32(e, imm);
        return x + imm;
    case 1: /* xor eax, imm */
        emit8(e, 0x35), emit32(e, imm);
        return x ^ imm;
    case 2: /* imul eax, eax, imm */
        emit(e, "\x69\xc0", 2), emit32(e, imm | 1);
        return x * (imm | 1);
    case 3: /* rol eax, n */
        emit(e, "\xc1\xc0", 2), emit8(e, imm & 31);
        return rotate_left(x, imm);
    case 4: /* not eax */
        emit(e, "\xf7\xd0", 2);
        return ~x;
    case 5: /* bswap eax */
        emit(e, "\x0f\xc8", 2);
        return __builtin_bswap32(x);
    case 6: /* lea eax, [rax + rax * 2 + disp] */
        emit(e, "\x8d\x84\x40", 3), emit32(e, imm);
        return x + 2 * x + imm;
    case 7: /* cmp eax, imm; sbb eax, imm: the carry */
        emit8(e, 0x3d), emit32(e, imm), emit8(e, 0x1d), emit32(e, imm);
        return x - imm - (x < imm);
    default: /* test eax, eax; jns +5; add eax, imm: a branch */
        emit(e, "\x85\xc0\x79\x05", 4), emit8(e, 0x05), emit32(e, imm);
        return (int32_t)x < 0 ? x + imm : x;
    }
}

/*
 * mov dword [rip + 1], imm; add eax, OTHER: the first writes what the second adds, right before
 * it runs.
 */
static uint32_t emit_self_change(struct emitter *e, uint32_t x)
{
    uint32_t imm = (uint32_t)next_random(&e->state);
    emit(e, "\xc7\x05", 2), emit32(e, 1), emit32(e, imm);
    emit8(e, 0x05), emit32(e, ~imm);
    return x + imm;
}

/* Writes a function at `at`; returns its result for `x`. */
static uint32_t make_function(uint8_t *at, uint64_t seed, uint32_t x, int can_write)
{
    struct emitter e = {.at = at, .state = seed};
    unsigned ops = 4 + (unsigned)(next_random(&e.state) % OPS_MAX);

    emit(&e, "\x89\xf8", 2); /* mov eax, edi */
    for (unsigned i = 0; i < ops; i++)
        x = can_write && next_random(&e.state) % 8 == 0 ? emit_self_change(&e, x) : emit_op(&e, x);
    emit8(&e, 0xc3);
    return x;
}

static void call_and_check(const void *code, uint32_t x, uint32_t want, const char *who)
{
    uint32_t got = ((function *)(uintptr_t)code)(x);
    if (got != want)
        wrong("code, %s: %x, expected %x", who, got, want);
}

/* ---- one thread ---- */

static void write_and_run(uint64_t seed)
{
    uint8_t *code = mmap(NULL, CODE_BYTES, PROT_READ | PROT_WRITE | PROT_EXEC,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint64_t state = seed;

    if (code == MAP_FAILED)
        failed("mmap: %s", strerror(errno));
    for (int i = 0; i < TIMES; i++) {
        uint64_t r = next_random(&state);
        uint8_t *at = code + r % (CODE_BYTES - FUNCTION_MAX);
        uint32_t x = (uint32_t)(r >> 32);
        uint32_t want = make_function(at, r, x, 1);
        for (int n = 0; n < 3; n++)
            call_and_check(at, x, want, "self-modifying");
    }
    munmap(code, CODE_BYTES);
}

/* ---- an alias ---- */

static void write_through_alias(uint64_t seed)
{
    int fd = memfd_create("soak", 0);
    if (fd < 0 || ftruncate(fd, CODE_BYTES) != 0)
        failed("memfd: %s", strerror(errno));
    uint8_t *writable = mmap(NULL, CODE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    uint8_t *code = mmap(NULL, CODE_BYTES, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    uint64_t state = seed;

    if (writable == MAP_FAILED || code == MAP_FAILED)
        failed("mmap: %s", strerror(errno));
    for (int i = 0; i < TIMES; i++) {
        uint64_t r = next_random(&state);
        size_t offset = r % (CODE_BYTES - FUNCTION_MAX);
        uint32_t x = (uint32_t)(r >> 32), want = make_function(writable + offset, r, x, 0), eax = 0;
        uint32_t ebx, ecx, edx;
        __cpuid(eax, eax, ebx, ecx, edx); /* aliases need a serializing instruction */
        call_and_check(code + offset, x, want, "through an alias");
    }
    munmap(writable, CODE_BYTES);
    munmap(code, CODE_BYTES);
    close(fd);
}

/* ---- two threads ---- */

struct handover {
    uint8_t *code;
    uint64_t seed;
    _Atomic uint32_t ready, done; /* how many functions were written, run */
    uint32_t offset, x, want;
};

static void *run_others_code(void *arg)
{
    struct handover *h = arg;
    for (uint32_t n = 1; n <= HANDOVERS; n++) {
        uint32_t eax = 0, ebx, ecx, edx;
        while (atomic_load(&h->ready) != n)
            sched_yield();
        __cpuid(eax, eax, ebx, ecx, edx);
        call_and_check(h->code + h->offset, h->x, h->want, "another thread's");
        atomic_store(&h->done, n);
    }
    return NULL;
}

static void hand_over(uint64_t seed)
{
    struct handover h = {.seed = seed};
    pthread_t thread;
    uint64_t state = seed;

    h.code = mmap(NULL, CODE_BYTES, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS,
                  -1, 0);
    if (h.code == MAP_FAILED || pthread_create(&thread, NULL, run_others_code, &h) != 0)
        failed("no thread or no memory");
    for (uint32_t n = 1; n <= HANDOVERS; n++) {
        uint64_t r = next_random(&state);
        /* few places, so that the other has run code there before */
        h.offset = (uint32_t)(r % 8) * FUNCTION_MAX;
        h.x = (uint32_t)(r >> 32);
        h.want = make_function(h.code + h.offset, r, h.x, 1);
        atomic_store(&h.ready, n);
        while (atomic_load(&h.done) != n)
            sched_yield();
    }
    pthread_join(thread, NULL);
    munmap(h.code, CODE_BYTES);
}

void round_code(uint64_t seed)
{
    write_and_run(seed);
    write_through_alias(seed + 1);
    hand_over(seed + 2);
}
