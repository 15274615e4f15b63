/*
 * native.c - a test case on the host CPU, in this process
 *
 * The registers are loaded from `frame`, the code jumped to, and the first signal ends it: the
 * kernel tells the vector, the error code and CR2 with it. 32-bit code runs through the
 * compatibility-mode code segment that Linux keeps at selector 0x23.
 */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "diff.h"
#include "os/fault.h"

#define USER_CS32 0x23
#define USER_CS64 0x33
#define USER_DS 0x2b

/* What native_enter reads and saves; addressed by its symbol. */
struct native_frame {
    uint64_t gpr[16];
    uint64_t rflags;
    uint32_t target; /* with selector: a far pointer; AMD has none with 64 bits */
    uint16_t selector;
    uint16_t pad[5];
    uint64_t host_rsp;
    uint64_t xsave_mask;
    uint8_t xsave[CPU_XSAVE_SIZE] __attribute__((aligned(64)));
};

struct native_frame native_frame;
extern char native_exit[];
void native_enter(void);

_Static_assert(offsetof(struct native_frame, rflags) == 128, "native_enter");
_Static_assert(offsetof(struct native_frame, target) == 136, "native_enter");
_Static_assert(offsetof(struct native_frame, host_rsp) == 152, "native_enter");
_Static_assert(offsetof(struct native_frame, xsave_mask) == 160, "native_enter");
_Static_assert(offsetof(struct native_frame, xsave) == 192, "native_enter");

__asm__(".text\n"
        ".globl native_enter\n"
        "native_enter:\n"
        "  push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
        "  mov %rsp, native_frame+152(%rip)\n"
        "  mov $0x2b, %eax; mov %eax, %ds; mov %eax, %es\n"
        "  mov native_frame+160(%rip), %eax\n"
        "  mov native_frame+164(%rip), %edx\n"
        "  xrstor64 native_frame+192(%rip)\n"
        "  pushq native_frame+128(%rip); popfq\n"
        "  mov native_frame+0(%rip), %rax\n"
        "  mov native_frame+8(%rip), %rcx\n"
        "  mov native_frame+16(%rip), %rdx\n"
        "  mov native_frame+24(%rip), %rbx\n"
        "  mov native_frame+32(%rip), %rsp\n"
        "  mov native_frame+40(%rip), %rbp\n"
        "  mov native_frame+48(%rip), %rsi\n"
        "  mov native_frame+56(%rip), %rdi\n"
        "  mov native_frame+64(%rip), %r8\n"
        "  mov native_frame+72(%rip), %r9\n"
        "  mov native_frame+80(%rip), %r10\n"
        "  mov native_frame+88(%rip), %r11\n"
        "  mov native_frame+96(%rip), %r12\n"
        "  mov native_frame+104(%rip), %r13\n"
        "  mov native_frame+112(%rip), %r14\n"
        "  mov native_frame+120(%rip), %r15\n"
        "  ljmpl *native_frame+136(%rip)\n"
        ".globl native_exit\n"
        "native_exit:\n"
        "  xor %eax, %eax; mov %eax, %ds; mov %eax, %es\n"
        "  fninit\n"
        "  pushq $0x1f80; ldmxcsr (%rsp); pop %rax\n"
        "  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
        "  ret\n");

static const uint8_t greg_of[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                    REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                    REG_R12, REG_R13, REG_R14, REG_R15};

static bool native_hook(void *ctx, int sig, siginfo_t *info, ucontext_t *uc)
{
    /* Linux leaves AC as the test case had it, and C may access what is misaligned */
    __asm__ volatile(
        "lea -128(%%rsp), %%rsp; pushfq; andl %0, (%%rsp); popfq; lea 128(%%rsp), %%rsp"
        :
        : "i"(~(int)RFLAGS_AC)
        : "cc", "memory");
    struct diff_state *after = *(struct diff_state **)ctx;
    greg_t *regs = uc->uc_mcontext.gregs;

    if (after == NULL)
        return false;
    for (unsigned i = 0; i < 16; i++)
        after->gpr[i] = (uint64_t)regs[greg_of[i]];
    after->rip = (uint64_t)regs[REG_RIP];
    after->rflags = (uint64_t)regs[REG_EFL];
    after->vector = (uint32_t)regs[REG_TRAPNO];
    after->error = (uint32_t)regs[REG_ERR];
    after->cr2 = after->vector == VEC_PF ? (uint64_t)regs[REG_CR2] : 0;
    memcpy(after->xsave, uc->uc_mcontext.fpregs, sizeof(after->xsave));

    regs[REG_RIP] = (greg_t)(uintptr_t)native_exit;
    regs[REG_RSP] = (greg_t)native_frame.host_rsp;
    regs[REG_EFL] = 0x202;
    regs[REG_CSGSFS] = (regs[REG_CSGSFS] & ~0xffff) | USER_CS64;
    return true;
}

static struct diff_state *native_after; /* where the hook puts its result */

static int map_fixed(uint64_t addr, uint64_t size, int prot, struct err *e)
{
    void *p = mmap((void *)(uintptr_t)addr, size, prot,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (p != (void *)(uintptr_t)addr)
        return err_set(e, errno, "map %#llx for native test cases", (unsigned long long)addr);
    return 0;
}

int diff_native_open(const struct cpu_model *model, struct err *e)
{
    int r = map_fixed(DIFF_CODE, DIFF_CODE_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC, e);
    if (r == 0)
        r = map_fixed(DIFF_DATA, DIFF_WINDOW, PROT_READ | PROT_WRITE, e);
    if (r == 0)
        r = map_fixed(DIFF_STACK, DIFF_WINDOW, PROT_READ | PROT_WRITE, e);
    native_frame.xsave_mask = model->xcr0_valid;
    return r != 0 ? r : fault_init(e);
}

void diff_native_run(const struct diff_case *c, struct diff_state *after)
{
    struct err e;

    memcpy((void *)(uintptr_t)c->before.rip, c->code, c->code_size);
    memcpy((void *)(uintptr_t)DIFF_DATA, c->before.data, DIFF_WINDOW);
    memcpy((void *)(uintptr_t)DIFF_STACK, c->before.stack, DIFF_WINDOW);
    memcpy(native_frame.gpr, c->before.gpr, sizeof(native_frame.gpr));
    memcpy(native_frame.xsave, c->before.xsave, sizeof(native_frame.xsave));
    native_frame.rflags = c->before.rflags;
    native_frame.target = (uint32_t)c->before.rip;
    native_frame.selector = c->mode == 8 ? USER_CS64 : USER_CS32;
    native_after = after;
    if (fault_thread_enter(native_hook, &native_after, &e) == 0) {
        native_enter();
        fault_thread_exit();
    }
    native_after = NULL;
    memcpy(after->data, (void *)(uintptr_t)DIFF_DATA, DIFF_WINDOW);
    memcpy(after->stack, (void *)(uintptr_t)DIFF_STACK, DIFF_WINDOW);
}
