/*
 * main.c - random instructions on bt, interp and the host CPU, compared bit by bit
 *
 * usage: diff [--cases N] [--seed S] [--jobs N] [--replay CASE_SEED] [--keep-going] [--without-ac]
 */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <Zydis/Zydis.h>

#include "base/log.h"
#include "diff.h"
#include "engine/engine.h"
#include "os/tsc.h"

#define DEFAULT_CASES 100000
#define LOOP_SHARE 6        /* each such case is a loop */
#define REGRESSION_RUNS 100 /* of each entry of the list */
/* Of so many cases one may differ on a processor that forgive.c does not know. */
#define UNEXAMINED_SHARE 1000
#define FLAGS_COMPARED (RFLAGS_STATUS | RFLAGS_DF | RFLAGS_RF | RFLAGS_TF | RFLAGS_AC)

static const char *const gpr_names[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                          "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};

static void print_case(const struct diff_case *c)
{
    ZydisDisassembledInstruction dis;
    ZydisMachineMode mode =
        c->mode == 8 ? ZYDIS_MACHINE_MODE_LONG_64 : ZYDIS_MACHINE_MODE_LONG_COMPAT_32;
    printf("case %" PRIu64 ", %u-bit code:\n", c->seed, c->mode * 8);
    for (unsigned at = 0; at < c->code_size - DIFF_TAIL;) {
        if (!ZYAN_SUCCESS(ZydisDisassembleIntel(mode, c->before.rip + at, c->code + at,
                                                c->code_size - at, &dis))) {
            printf("  %" PRIx64 "  not decoded:", c->before.rip + at);
            while (at < c->code_size - DIFF_TAIL)
                printf(" %02x", c->code[at++]);
            printf("\n");
            break;
        }
        printf("  %" PRIx64 "  ", c->before.rip + at);
        for (unsigned i = 0; i < dis.info.length; i++)
            printf("%02x", c->code[at + i]);
        printf("  %s\n", dis.text);
        at += dis.info.length;
    }
    for (unsigned i = 0; i < 16; i++)
        printf("  %-3s %016" PRIx64 "%s", gpr_names[i], c->before.gpr[i], i % 4 == 3 ? "\n" : "");
    printf("  rflags %" PRIx64 " mxcsr %x fcw %x\n", c->before.rflags,
           load_le32(c->before.xsave + 24), load_le16(c->before.xsave));
}

static bool differ(const char *what, const char *who, uint64_t got, uint64_t want, bool is_loud)
{
    if (got == want)
        return false;
    if (is_loud)
        printf("  %s: %s %016" PRIx64 ", CPU %016" PRIx64 "\n", who, what, got, want);
    return true;
}

static bool bytes_differ(const char *what, const char *who, const uint8_t *got, const uint8_t *want,
                         unsigned n, bool is_loud)
{
    unsigned count = 0;
    if (memcmp(got, want, n) == 0)
        return false;
    for (unsigned i = 0; i < n && is_loud; i++) {
        if (got[i] == want[i])
            continue;
        if (++count <= 4)
            printf("  %s: %s+%#x is %02x, CPU %02x\n", who, what, i, got[i], want[i]);
    }
    if (count > 4)
        printf("  %s: %s: %u bytes differ\n", who, what, count);
    return true;
}

/* Components that XSTATE_BV leaves out are in their initial state: zero, but for FCW. */
static void normalise(struct diff_state *st, const struct cpu_model *model)
{
    uint8_t *x = st->xsave;
    uint64_t bv = load_le64(x + 512);

    if (!(bv & XCR0_X87)) {
        memset(x, 0, 24);
        memset(x + 32, 0, 128);
        store_le16(x, 0x37f);
    }
    if (!(bv & XCR0_SSE))
        memset(x + 160, 0, 256);
    for (unsigned i = 2; i < 16; i++)
        if ((model->xcr0_valid >> i & 1) && !(bv >> i & 1))
            memset(x + model->xsave_offset[i], 0, model->xsave_component_size[i]);
    for (unsigned i = 0; i < 8; i++) /* the top 6 bytes of each ST register are reserved */
        memset(x + 32 + 16 * i + 10, 0, 6);
}

/* 32-bit code neither sees nor defines the upper halves (SDM vol. 1, 3.4.1.1). */
static void clear_upper_halves(struct diff_state *st)
{
    for (unsigned i = 0; i < CPU_GPR_COUNT; i++)
        st->gpr[i] = (uint32_t)st->gpr[i];
}

static bool states_differ(const char *who, const struct diff_state *got,
                          const struct diff_state *want, const struct cpu_model *model,
                          bool is_loud)
{
    bool any = false;
    any |= differ("vector", who, got->vector, want->vector, is_loud);
    any |= differ("error code", who, got->error, want->error, is_loud);
    any |= differ("cr2", who, got->cr2, want->cr2, is_loud);
    any |= differ("rip", who, got->rip, want->rip, is_loud);
    any |=
        differ("rflags", who, got->rflags & FLAGS_COMPARED, want->rflags & FLAGS_COMPARED, is_loud);
    for (unsigned i = 0; i < 16; i++)
        any |= differ(gpr_names[i], who, got->gpr[i], want->gpr[i], is_loud);
    any |= bytes_differ("data", who, got->data, want->data, DIFF_WINDOW, is_loud);
    any |= bytes_differ("stack", who, got->stack, want->stack, DIFF_WINDOW, is_loud);
    any |= bytes_differ("fcw/fsw/ftw", who, got->xsave, want->xsave, 5, is_loud);
    any |= bytes_differ("mxcsr", who, got->xsave + 24, want->xsave + 24, 4, is_loud);
    any |= bytes_differ("st/xmm", who, got->xsave + 32, want->xsave + 32, 128 + 256, is_loud);
    for (unsigned i = 2; i < 16; i++)
        if (model->xcr0_valid >> i & 1)
            any |= bytes_differ("extended state", who, got->xsave + model->xsave_offset[i],
                                want->xsave + model->xsave_offset[i],
                                model->xsave_component_size[i], is_loud);
    return any;
}

struct run {
    struct cpu_model model;
    struct diff_guest *interp, *bt;
    struct diff_case c;
    struct diff_state native, by_interp, by_bt;
    uint64_t left_open; /* cases where this processor goes its own way, as it may */
};

/* Run run->c on all three; true when they agree. */
static bool compare_case(struct run *run)
{
    struct diff_case *c = &run->c;
    diff_native_run(c, &run->native);
    bool interp_ok = diff_guest_run(run->interp, c, &run->by_interp);
    bool bt_ok = diff_guest_run(run->bt, c, &run->by_bt);
    if (interp_ok && bt_ok && run->by_interp.rip == run->by_bt.rip &&
        run->by_interp.vector == run->by_bt.vector &&
        diff_is_left_open(c, &run->native, &run->by_interp)) {
        run->left_open++;
        return true;
    }
    struct diff_state *states[] = {&run->native, &run->by_interp, &run->by_bt};
    for (unsigned i = 0; i < ARRAY_SIZE(states); i++) {
        diff_forgive(c, states[i], &run->native);
        if (run->c.mode == 4)
            clear_upper_halves(states[i]);
        normalise(states[i], &run->model);
    }
    if (interp_ok && bt_ok &&
        !states_differ("interp", &run->by_interp, &run->native, &run->model, false) &&
        !states_differ("bt", &run->by_bt, &run->native, &run->model, false))
        return true;
    print_case(c);
    if (!interp_ok)
        printf("  interp went astray\n");
    else
        states_differ("interp", &run->by_interp, &run->native, &run->model, true);
    if (!bt_ok)
        printf("  bt went astray\n");
    else
        states_differ("bt", &run->by_bt, &run->native, &run->model, true);
    return false;
}

static bool run_case(struct run *run, uint64_t seed)
{
    if (seed % LOOP_SHARE == 0)
        diff_generate_loop(&run->c, seed, &run->model);
    else
        diff_generate(&run->c, seed, &run->model);
    return compare_case(run);
}

/* The number of entries of the list that differ again. */
static unsigned run_regressions(struct run *run, uint64_t seed)
{
    unsigned failed = 0, ran = 0;

    for (unsigned i = 0; i < diff_regression_count; i++) {
        const struct diff_regression *g = &diff_regressions[i];
        bool is_good = true;
        for (unsigned n = 0; n < REGRESSION_RUNS && is_good; n++) {
            if (!diff_generate_for(&run->c, seed + n, &run->model, g->mode,
                                   (const uint8_t *)g->bytes, g->size))
                continue;
            ran++;
            is_good = compare_case(run);
        }
        if (!is_good) {
            printf("  of the list of regressions: %s\n", g->what);
            failed++;
        }
    }
    printf("%u cases of %u old differences ran, %u differ\n", ran, diff_regression_count, failed);
    return failed;
}

static int open_all(struct run *run, struct err *e)
{
    int r = cpu_model_create("host", 1, tsc_frequency_hz(), &run->model, e);
    if (r == 0)
        r = diff_native_open(&run->model, e);
    if (r == 0)
        r = diff_guest_open(&engine_interp, &run->model, &run->interp, e);
    if (r == 0)
        r = diff_guest_open(&engine_bt, &run->model, &run->bt, e);
    return r;
}

/* Run the cases `seed` to `seed + cases`; the process's exit status. */
static int run_range(struct run *run, uint64_t seed, uint64_t cases, bool is_replay,
                     bool keeps_going)
{
    uint64_t failed = 0, done = 0, allowed = 0;
    struct err e;

    if (open_all(run, &e) != 0) {
        fprintf(stderr, "diff: %s\n", e.msg);
        return 2;
    }
    printf("seed %" PRIu64 ", %" PRIu64 " cases%s\n", seed, cases, is_replay ? " (replay)" : "");
    if (!diff_is_examined_processor()) {
        allowed = cases / UNEXAMINED_SHARE;
        printf("this processor's ways are not known yet: up to %" PRIu64 " cases may differ\n",
               allowed);
    }
    unsigned regressed = is_replay ? 0 : run_regressions(run, seed);
    for (; done < cases && (failed <= allowed || (keeps_going && failed < 50)); done++)
        if (!run_case(run, seed + done))
            failed++;
    if (run->left_open != 0)
        printf("%" PRIu64 " cases not compared: processors may differ there, and this one does\n",
               run->left_open);
    printf("%" PRIu64 " cases ran, %" PRIu64 " differ%s\n", done, failed,
           failed != 0 ? "; run one again with --replay CASE" : "");
    diff_guest_close(run->interp);
    diff_guest_close(run->bt);
    return failed > allowed || (regressed != 0 && allowed == 0);
}

/* Split the range among processes. */
static int run_jobs(struct run *run, unsigned jobs, uint64_t seed, uint64_t cases, bool keeps_going)
{
    int worst = 0, status;

    for (unsigned i = 0; i < jobs; i++) {
        uint64_t first = cases * i / jobs;
        pid_t pid = fork();
        if (pid == 0)
            exit(run_range(run, seed + first, cases * (i + 1) / jobs - first, false, keeps_going));
        if (pid < 0) {
            perror("diff: fork");
            worst = 2;
            break;
        }
    }
    while (wait(&status) > 0) {
        int code = WIFEXITED(status) ? WEXITSTATUS(status) : 2;
        worst = code > worst ? code : worst;
    }
    return worst;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"cases", required_argument, NULL, 'c'},
                                            {"seed", required_argument, NULL, 's'},
                                            {"replay", required_argument, NULL, 'r'},
                                            {"keep-going", no_argument, NULL, 'k'},
                                            {"without-ac", no_argument, NULL, 'a'},
                                            {"jobs", required_argument, NULL, 'j'},
                                            {0}};
    static struct run run;
    uint64_t cases = DEFAULT_CASES, seed = (uint64_t)time(NULL) << 20, jobs = 1;
    bool keeps_going = false, is_replay = false;
    int opt;

    while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (opt) {
        case 'c':
            cases = strtoull(optarg, NULL, 0);
            break;
        case 'r':
            is_replay = true;
            cases = 1;
            seed = strtoull(optarg, NULL, 0);
            break;
        case 's':
            seed = strtoull(optarg, NULL, 0);
            break;
        case 'a': /* vendors and models check alignment of vector operands differently */
            run.c.is_without_ac = true;
            break;
        case 'k':
            keeps_going = true;
            break;
        case 'j':
            jobs = strtoull(optarg, NULL, 0);
            break;
        default:
            fprintf(stderr, "usage: diff [--cases N] [--seed S] [--jobs N] [--replay CASE] "
                            "[--keep-going] [--without-ac]\n");
            return 2;
        }
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (jobs > 1 && jobs <= 1024 && !is_replay)
        return run_jobs(&run, (unsigned)jobs, seed, cases, keeps_going);
    return run_range(&run, seed, cases, is_replay, keeps_going);
}
