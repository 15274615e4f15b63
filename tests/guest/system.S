/*
 * system.S - system instructions that a translator has short ways for: STAC, CLAC, segment
 * bases, RDTSCP, moves from system registers, CLD; bit strings; short string instructions
 *
 * Each runs several times in the same place, so that a short way which is taken only from the
 * second time on is seen as well. Intel SDM vol. 2 at each instruction; vol. 3, 4.6 (SMAP).
 */
#include "guest.h"

#define CR4_FSGSBASE 0x10000
#define CR4_SMAP 0x200000
#define RFLAGS_AC 0x40000
#define MSR_TSC_AUX 0xc0000103
#define PAGES (SCRATCH + 0x10000)

    .text
    .code64
    .globl main64
main64:
    mov $7, %eax
    xor %ecx, %ecx
    cpuid
    mov %ebx, features
    call smap
    call bases
    call reads
    call bits
    call strings
    ret

/* Is bit \bit of CPUID.7.EBX clear? Then go to \label. */
.macro unless bit, label
    btl $\bit, features
    jnc \label
.endm

smap:
    unless 20, 9f
    mov %cr4, %rax
    or $CR4_SMAP, %rax
    mov %rax, %cr4
    movabs $USER_WINDOW + PAGES, %r8
    movl $0x1234, PAGES
    mov $4, %ebx
1:  clac
    fault64 "SMAP: closed", 14, 1, mov (%r8), %eax
    stc
    stac
    setc %dl
    mov (%r8), %eax                     /* open */
    pushfq
    pop %rsi
    stac                                /* open already */
    add $1, %eax
    std
    clac
    pushfq
    pop %rdi
    cld
    movzbl %dl, %edx
    check64 "STAC: CF is kept", %rdx, $1
    check64 "STAC: read", %rax, $0x1235
    and $RFLAGS_AC, %esi
    check64 "STAC: AC", %rsi, $RFLAGS_AC
    and $RFLAGS_AC + 0x400, %edi
    check64 "CLAC: AC; DF is kept", %rdi, $0x400
    stac
    call peek
    clac
    check64 "STAC: in a function", %rax, $0x1234
    call peek_closed
    dec %ebx
    jnz 1b
    mov %cr4, %rax
    and $~CR4_SMAP, %rax
    mov %rax, %cr4
    /* without SMAP they change AC and nothing else */
    clac
    mov (%r8), %eax
    check64 "CLAC without SMAP", %rax, $0x1234
    stac
    pushfq
    pop %rax
    and $RFLAGS_AC, %eax
    check64 "STAC without SMAP: AC", %rax, $RFLAGS_AC
    clac
9:  ret

peek:
    mov (%r8), %eax
    ret
peek_closed:
    fault64 "SMAP: closed in a function", 14, 1, mov (%r8), %eax
    ret

bases:
    unless 0, 9f
    fault64 "RDFSBASE without CR4.FSGSBASE", 6, 0, rdfsbase %rax
    mov %cr4, %rax
    or $CR4_FSGSBASE, %rax
    mov %rax, %cr4
    mov $3, %ebx
1:  movabs $0xffff8000deadbeef, %r10
    wrfsbase %r10
    rdfsbase %r11
    check64 "WRFSBASE r10, RDFSBASE r11", %r11, %r10
    rdfsbase %r15d
    mov $0xdeadbeef, %ecx
    check64 "RDFSBASE r15d", %r15, %rcx
    wrgsbase %r10d
    rdgsbase %rcx
    mov $0xdeadbeef, %eax
    check64 "WRGSBASE of 32 bits", %rcx, %rax
    mov $PAGES, %eax
    movl $0x77, PAGES + 0x20
    movl $0x88, PAGES + 0x120
    wrgsbase %rax
    mov %gs:0x20, %ecx
    add $0x100, %rax
    wrgsbase %rax
    mov %gs:0x20, %edx
    check64 "the base is used", %rcx, $0x77
    check64 "the new base is used", %rdx, $0x88
    movabs $0x800000000000, %rax
    fault64 "WRFSBASE: not canonical", 13, 0, wrfsbase %rax
    movabs $0xffff7fffffffffff, %rax
    fault64 "WRGSBASE: not canonical", 13, 0, wrgsbase %rax
    movabs $0x7fffffffffff, %rax
    wrfsbase %rax
    rdfsbase %rcx
    check64 "WRFSBASE: the last canonical one", %rcx, %rax
    dec %ebx
    jnz 1b
    xor %eax, %eax
    wrfsbase %rax
    wrgsbase %rax
    mov %cr4, %rax
    and $~CR4_FSGSBASE, %rax
    mov %rax, %cr4
    fault64 "WRGSBASE without CR4.FSGSBASE", 6, 0, wrgsbase %rax
9:  ret

reads:
    mov $3, %ebx
1:  mov $MSR_TSC_AUX, %ecx
    lea 0x100(%rbx), %eax
    xor %edx, %edx
    wrmsr
    rdtscp
    shl $32, %rdx
    lea (%rax, %rdx), %rsi
    lea 0x100(%rbx), %eax
    check64 "RDTSCP: ECX", %rcx, %rax
    rdtscp
    shl $32, %rdx
    add %rdx, %rax
    cmp %rsi, %rax
    check_that a, "RDTSCP: the time"
    mov $-1, %rax
    mov %ss, %eax
    mov $-1, %r15
    mov %ss, %r15
    check64 "MOV from SS, 32 bits", %rax, $SEL_DATA
    check64 "MOV from SS, 64 bits", %r15, $SEL_DATA
    mov %cs, %r10d
    check64 "MOV from CS", %r10, $SEL_CODE64
    mov $-1, %rcx
    mov %ds, %cx
    and $0xffff, %ecx
    check64 "MOV from DS, 16 bits", %rcx, $SEL_DATA
    mov $0x12345, %eax
    mov %rax, %cr2
    mov %cr2, %r11
    mov %cr2, %rcx
    check64 "MOV from CR2 to r11", %r11, $0x12345
    check64 "MOV from CR2 to rcx", %rcx, $0x12345
    mov %cr3, %r15
    mov $pml4, %eax
    check64 "MOV from CR3", %r15, %rax
    std
    cld
    pushfq
    pop %rax
    and $0x400, %eax
    check64 "CLD", %rax, $0
    cld
    dec %ebx
    jnz 1b
    ret

bits:
    mov $PAGES + 0x800, %r8d
    mov $PAGES, %edi
    mov $0x2000 / 8, %ecx
    xor %eax, %eax
    rep stosq
    mov $3, %ebx
1:  mov $-1, %rcx
    btsq %rcx, (%r8)                    /* the bit before */
    setc %al
    btq %rcx, (%r8)
    setc %dl
    movzbl %al, %eax
    movzbl %dl, %edx
    check64 "BTS: it was clear", %rax, $0
    check64 "BT: it is set", %rdx, $1
    movabs $0x8000000000000000, %rax
    check64 "BTS: of the word before", -8(%r8), %rax
    btcq %rcx, (%r8)
    check64 "BTC", -8(%r8), $0
    mov $0x12300000021, %r10            /* 32 bits of it count */
    lock btsl %r10d, (%r8)
    check64 "LOCK BTS of 32 bits", 4(%r8), $2
    mov $33, %r15d
    lock btrl %r15d, (%r8)
    check_that c, "LOCK BTR: it was set"
    check64 "LOCK BTR", (%r8), $0
    mov $-33, %r11d
    btsl %r11d, (%r8, %rbx, 8)
    mov $0x80000000, %eax
    lea (%r8, %rbx, 8), %rdx
    check64 "BTS of 32 bits, backwards", -8(%rdx), %rax
    btrl %r11d, (%r8, %rbx, 8)
    mov $0x800 * 8 + 7, %eax            /* in the next page */
    btsq %rax, (%r8)
    check64 "BTS in another page", PAGES + 0x1000, $0x80
    btrq %rax, (%r8)
    mov $0x7ff * 8, %eax                /* the operand crosses into it */
    btsq %rax, 4(%r8)
    movabs $0x100000000000000, %rcx
    check64 "BTS across pages", PAGES + 0xffc, %rcx
    check64 "BTS across pages, second half", PAGES + 0x1000, $0x1000000
    btrq %rax, 4(%r8)
    movabs $0x4000000000000000, %rax
    fault64 "BT: not canonical", 13, 0, btq %rax, (%r8)
    dec %ebx
    jnz 1b
    ret

strings:
    mov $4, %ebx
1:  mov $PAGES + 0xff8, %edi            /* up to the page's end */
    mov $0x5a, %eax
    mov $8, %ecx
    rep stosb
    check64 "STOSB: RDI at the page's end", %rdi, $PAGES + 0x1000
    check64 "STOSB: RCX", %rcx, $0
    movabs $0x5a5a5a5a5a5a5a5a, %rax
    check64 "STOSB: stored", PAGES + 0xff8, %rax
    mov $PAGES + 0xff8, %esi
    mov $PAGES + 0xffc, %edi            /* crosses into the next page */
    mov $2, %ecx
    rep movsl
    check64 "MOVSL: RSI", %rsi, $PAGES + 0x1000
    check64 "MOVSL: RDI", %rdi, $PAGES + 0x1004
    mov $0x5a5a5a5a, %ecx
    check64 "MOVSL: stored in the next page", PAGES + 0x1000, %rcx
    movl $0, PAGES + 0x1000
    mov $PAGES, %edi
    mov $512, %ecx
    lea (%rbx), %rax
    rep stosq                           /* a whole page */
    check64 "STOSQ: a page", PAGES + 0xff8, %rbx
    check64 "STOSQ: not beyond", PAGES + 0x1000, $0
    mov $PAGES, %edi
    xor %ecx, %ecx
    rep stosb                           /* nothing, at a page's start */
    check64 "STOSB of nothing: RDI", %rdi, $PAGES
    mov $PAGES, %esi
    mov $PAGES + 0x80, %edi
    movsq
    check64 "MOVSQ once: RDI", %rdi, $PAGES + 0x88
    check64 "MOVSQ once", PAGES + 0x80, %rbx
    mov $PAGES + 0x40, %edi
    mov $3, %ecx
    std
    rep stosw
    cld
    check64 "STOSW backwards: RDI", %rdi, $PAGES + 0x3a
    /* 2^61 elements of 8 bytes: the product is 0 */
    movabs $0x100000000000, %rdi
    movabs $0x2000000000000000, %rcx
    fault64 "STOSQ: a count whose product wraps", 14, 2, rep stosq
    movabs $0x2000000000000000, %rax
    check64 "STOSQ: RCX at the fault", %rcx, %rax
    stc
    mov $PAGES, %edi
    mov $16, %ecx
    rep stosb
    check_that c, "STOSB: CF is kept"
    dec %ebx
    jnz 1b
    ret

    .bss
features:
    .long 0
