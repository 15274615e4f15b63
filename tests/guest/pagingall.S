/*
 * pagingall.S - 4-level paging, enumerated: every combination of an entry's bits at every level
 *
 * Three sweeps, each under every combination of CR0.WP, EFER.NXE, CR4.SMEP, CR4.SMAP and
 * RFLAGS.AC, with a read, a write and a fetch from ring 0 and ring 3:
 *   bits   P, W, U, PS, G, A, D, NX and a reserved bit of the entry of one level, all 512
 *   rights W, U and NX of all four levels together, all 4096
 *   single each of the 64 bits of each level's entry inverted, for a table and a large page
 * `expect` says what must happen, from the rules of the manual only: fault and error code, CR2,
 * RIP, which entries get A and D, and that nothing else in them changes. What differs is shown
 * as got and wanted error (ffff: none, fffe: wrong CR2 or RIP, fffd: wrong entries) with a line
 * of the case.
 *
 * Spec: Intel SDM vol. 3, 4.5 (tables 4-14 to 4-20), 4.6, 4.7, 4.8; AMD64 APM vol. 2, 5.3 to 5.6.
 */
#include "guest.h"

#define FRAME (SCRATCH + 0x3000)
/* PML4 entry 2; the rest makes 4 KiB, 2 MiB and 1 GiB pages all lead to FRAME */
#define TEST (0x10000000000 + FRAME)
#define PML4E (pml4 + 2 * 8)
#define PDPTE (sweep_pdpt)
#define PDE (sweep_pd + (FRAME >> 21) * 8)
#define PTE (sweep_pt + (FRAME >> 12 & 511) * 8)

#define BIT_P 1
#define BIT_W 2
#define BIT_U 4
#define BIT_A 0x20
#define BIT_D 0x40
#define BIT_PS 0x80
#define BIT_G 0x100

#define MODE_WP 1
#define MODE_NXE 2
#define MODE_SMEP 4
#define MODE_SMAP 8
#define MODE_AC 16
#define MODE_END 32

#define ACCESS_WRITE 1
#define ACCESS_FETCH 2
#define ACCESS_USER 4

#define NO_FAULT 0xffff
#define WRONG_ADDRESS 0xfffe
#define WRONG_ENTRIES 0xfffd

#define CR4_SMEP 0x100000
#define CR4_SMAP 0x200000

    .text
    .code64
    .globl main64
main64:
    call learn
    call set_gates
    xor %r12d, %r12d                    /* R12: mode */
1:  call set_mode
    jc 2f
    call sweep_bits
    call sweep_rights
    call sweep_single
2:  inc %r12d
    cmp $MODE_END, %r12d
    jne 1b
    mov $MODE_WP | MODE_NXE, %r12d
    call set_mode
    check64 "cases that went wrong", failures, $0
    mov cases, %rax
    shr $16, %rax                       /* at least half a million, whatever the model offers */
    cmp $8, %rax
    check_that ae, "cases were run"
    ret

/* What the processor has: reserved bits of each level, SMEP, SMAP, 1 GiB pages. */
learn:
    mov $0x80000008, %eax
    cpuid
    movzbl %al, %ecx
    mov $1, %eax
    shl %cl, %rax
    neg %rax                            /* bits from MAXPHYADDR up */
    movabs $0x000fffffffffffff, %rdx
    and %rdx, %rax
    mov %rax, high_bits
    xor %eax, %eax
    cpuid
    xor %esi, %esi
    cmp $0x68747541, %ebx               /* "Auth": bit 8 of the PML4E is reserved */
    sete %sil
    mov %esi, is_amd
    mov $0x80000001, %eax
    cpuid
    bt $26, %edx
    setc has_1g
    mov $7, %eax
    xor %ecx, %ecx
    cpuid
    mov %ebx, features7
    mov high_bits, %rax
    mov $reserved_table, %edi
    mov $4, %ecx
    rep stosq
    mov $reserved_large, %edi
    mov $4, %ecx
    rep stosq
    orq $BIT_PS, reserved_table         /* there is no page of 512 GiB */
    cmpl $0, is_amd
    je 1f
    orq $BIT_G, reserved_table
1:  cmpb $0, has_1g
    jne 1f
    orq $BIT_PS, reserved_table + 8
1:  orq $0x3fffe000, reserved_large + 8 /* 29:13 of a 1 GiB page */
    orq $0x1fe000, reserved_large + 16  /* 20:13 of a 2 MiB page */
    movb $0xc3, FRAME                   /* RET, where fetches land */
    movl $0x12345678, FRAME + 8
    ret

/* Handlers of their own for #PF and #UD: millions of cases go through them. */
set_gates:
    mov $on_page_fault, %eax
    mov $idt64 + 14 * 16, %edi
    call 1f
    mov $on_ud, %eax
    mov $idt64 + 6 * 16, %edi
1:  mov %ax, (%rdi)
    shr $16, %eax
    mov %ax, 6(%rdi)
    ret

/* Control registers for mode R12; carry if the processor lacks something of it. */
set_mode:
    test $MODE_SMEP, %r12d
    jz 1f
    btl $7, features7
    jnc 9f
1:  test $MODE_SMAP, %r12d
    jz 1f
    btl $20, features7
    jnc 9f
1:  mov %cr0, %rax
    and $~0x10000, %rax
    test $MODE_WP, %r12d
    jz 1f
    or $0x10000, %rax
1:  mov %rax, %cr0
    mov %cr4, %rax
    and $~(CR4_SMEP | CR4_SMAP), %rax
    test $MODE_SMEP, %r12d
    jz 1f
    or $CR4_SMEP, %rax
1:  test $MODE_SMAP, %r12d
    jz 1f
    or $CR4_SMAP, %rax
1:  mov %rax, %cr4
    mov $0xc0000080, %ecx
    rdmsr
    and $~0x800, %eax
    test $MODE_NXE, %r12d
    jz 1f
    or $0x800, %eax
1:  wrmsr
    movq $2, access_rflags
    test $MODE_AC, %r12d
    jz 1f
    movq $0x40002, access_rflags
1:  clc
    ret
9:  stc
    ret

/* ------------------------------------------------------------------ sweeps */

/*
 * An entry in RAX for level index RCX (0 PML4E .. 3 PTE) from its flags: the address is that of
 * the next table, or of the page where PS makes it one.
 */
place_entry:
    or place_table(, %rcx, 8), %rax
    test $BIT_PS, %eax
    jz 1f
    xor place_table(, %rcx, 8), %rax
    or place_large(, %rcx, 8), %rax
1:  ret

/* Entries that allow everything, A and D clear. */
plain_entries:
    xor %ecx, %ecx
1:  mov place_table(, %rcx, 8), %rax
    or $BIT_P | BIT_W | BIT_U, %rax
    mov %rax, entries(, %rcx, 8)
    inc %ecx
    cmp $4, %ecx
    jne 1b
    ret

/* All 512 settings of nine bits in one entry. */
sweep_bits:
    xor %ebp, %ebp                      /* level */
1:  xor %ebx, %ebx                      /* setting: P W U A D PS G, NX, reserved */
2:  call plain_entries
    mov %ebx, %eax
    and $7, %eax
    mov %ebx, %edx
    and $0x78, %edx
    shl $2, %edx
    or %rdx, %rax
    mov %ebp, %ecx
    /* AMD's manual has not always said what bit 8 of a PDPTE with a table is: never set there */
    cmp $1, %ecx
    jne 3f
    test $BIT_PS, %eax
    jnz 3f
    and $~BIT_G, %eax
3:  call place_entry
    btl $7, %ebx
    jnc 3f
    bts $63, %rax
3:  btl $8, %ebx
    jnc 3f
    call some_reserved_bit
    or %rdx, %rax
3:  mov %rax, entries(, %rbp, 8)
    mov $1, %r11d
    call all_accesses
    inc %ebx
    cmp $512, %ebx
    jne 2b
    inc %ebp
    cmp $4, %ebp
    jne 1b
    ret

/* RDX = one of the bits 51..MAXPHYADDR, each in turn. */
some_reserved_bit:
    mov high_bits, %rdx
    mov reserved_turn, %rcx
    neg %rcx
    and %rcx, %rdx                      /* those from the last one up */
    jnz 1f
    mov high_bits, %rdx
1:  mov %rdx, %rcx
    neg %rcx
    and %rcx, %rdx                      /* the lowest */
    lea (%rdx, %rdx), %rcx
    mov %rcx, reserved_turn
    ret

/* W, U and NX of all four levels. */
sweep_rights:
    xor %ebx, %ebx                      /* three bits a level */
1:  xor %ebp, %ebp
    mov %ebx, %r8d
2:  mov place_table(, %rbp, 8), %rax
    mov %r8d, %edx
    and $3, %edx
    lea 1(, %rdx, 2), %edx
    or %rdx, %rax
    btl $2, %r8d
    jnc 3f
    bts $63, %rax
3:  mov %rax, entries(, %rbp, 8)
    shr $3, %r8d
    inc %ebp
    cmp $4, %ebp
    jne 2b
    mov $2, %r11d
    call all_accesses
    inc %ebx
    cmp $4096, %ebx
    jne 1b
    ret

/* Each bit of each entry inverted, as a table and as a page. */
sweep_single:
    xor %ebp, %ebp
1:  xor %ebx, %ebx                      /* bit, and bit 6: large */
2:  mov %ebx, %ecx
    and $63, %ecx
    cmp $12, %ecx                       /* an address that stays reserved-free leads elsewhere: */
    jb 3f                               /* only bits that are no address, or reserved ones */
    bt %rcx, high_bits
    jc 3f
    cmp $52, %ecx
    jae 3f
    btl $6, %ebx
    jnc 5f
    bt %rcx, reserved_large(, %rbp, 8)
    jnc 5f
3:  call plain_entries
    mov $BIT_P | BIT_W | BIT_U, %eax
    btl $6, %ebx
    jnc 3f
    or $BIT_PS, %eax
3:  mov %ebp, %ecx
    call place_entry
    mov %ebx, %ecx
    and $63, %ecx
    btc %rcx, %rax
    cmp $7, %ecx                        /* PS inverted: the address would be wrong */
    je 5f
    cmp $8, %ecx
    jne 4f
    cmp $1, %ebp
    jne 4f
    btl $6, %ebx
    jnc 5f
4:  mov %rax, entries(, %rbp, 8)
    mov $3, %r11d
    call all_accesses
5:  inc %ebx
    cmp $128, %ebx
    jne 2b
    inc %ebp
    cmp $4, %ebp
    jne 1b
    ret

/* ------------------------------------------------------------------ one case */

/* The entries at `entries`, with each kind of access. Keeps RBX, RBP, R12. */
all_accesses:
    xor %r13d, %r13d                    /* R13: access */
1:  mov %r13d, %eax
    and $3, %eax
    cmp $3, %eax
    je 2f
    call expect
    call one_access
    call judge
2:  inc %r13d
    cmp $8, %r13d
    jne 1b
    ret

/*
 * What the manual says: R14 = error code or NO_FAULT, `want` = the entries afterwards. Level by
 * level: not present ends the walk, then reserved bits; the rights of all levels together.
 */
expect:
    mov entries, %rax
    mov %rax, want
    mov entries + 8, %rax
    mov %rax, want + 8
    mov entries + 16, %rax
    mov %rax, want + 16
    mov entries + 24, %rax
    mov %rax, want + 24
    mov %r13d, %r14d
    and $ACCESS_USER, %r14d             /* U/S is bit 2 in both */
    test $ACCESS_WRITE, %r13d
    jz 1f
    or $2, %r14d
1:  test $ACCESS_FETCH, %r13d
    jz 1f
    test $MODE_NXE | MODE_SMEP, %r12d   /* I/D means something only then */
    jz 1f
    or $16, %r14d
1:  mov $BIT_W | BIT_U, %r8d            /* AND of rights */
    xor %r9d, %r9d                      /* OR of NX */
    xor %ecx, %ecx
expect_level:
    mov entries(, %rcx, 8), %rax
    test $BIT_P, %al
    jz expect_fault
    mov reserved_table(, %rcx, 8), %rdx
    xor %r10d, %r10d                    /* leaf? */
    cmp $3, %ecx
    je 2f
    cmp $0, %ecx
    je 3f
    test $BIT_PS, %al
    jz 3f
    cmp $1, %ecx
    jne 1f
    cmpb $0, has_1g
    je 3f
1:  mov reserved_large(, %rcx, 8), %rdx
2:  inc %r10d
3:  test $MODE_NXE, %r12d
    jnz 4f
    bts $63, %rdx
4:  test %rdx, %rax
    jnz expect_reserved
    and %eax, %r8d
    btq $63, %rax
    adc $0, %r9d
    inc %ecx
    test %r10d, %r10d
    jz expect_level
    /* RCX entries are in use */
    test $ACCESS_USER, %r13d
    jnz expect_user
    test $ACCESS_FETCH, %r13d
    jnz expect_kernel_fetch
    test $BIT_U, %r8d
    jz 1f
    test $MODE_SMAP, %r12d
    jz 1f
    test $MODE_AC, %r12d
    jz expect_protection
1:  test $ACCESS_WRITE, %r13d
    jz expect_passes
    test $BIT_W, %r8d
    jnz expect_passes
    test $MODE_WP, %r12d
    jnz expect_protection
    jmp expect_passes
expect_kernel_fetch:
    test %r9d, %r9d
    jnz expect_protection
    test $BIT_U, %r8d
    jz expect_passes
    test $MODE_SMEP, %r12d
    jnz expect_protection
    jmp expect_passes
expect_user:
    test $BIT_U, %r8d
    jz expect_protection
    test $ACCESS_FETCH, %r13d
    jz 1f
    test %r9d, %r9d
    jnz expect_protection
1:  test $ACCESS_WRITE, %r13d
    jz expect_passes
    test $BIT_W, %r8d
    jz expect_protection
expect_passes:
    mov $NO_FAULT, %r14d
    xor %edx, %edx
1:  orq $BIT_A, want(, %rdx, 8)
    inc %edx
    cmp %ecx, %edx
    jne 1b
    test $ACCESS_WRITE, %r13d
    jz 1f
    orq $BIT_D, want - 8(, %rcx, 8)
1:  ret
expect_reserved:
    or $8, %r14d
expect_protection:
    or $1, %r14d
expect_fault:
    ret

/* Do it: R15 = error code or NO_FAULT. */
one_access:
    mov entries, %rax
    mov %rax, PML4E
    mov entries + 8, %rax
    mov %rax, PDPTE
    mov entries + 16, %rax
    mov %rax, PDE
    mov entries + 24, %rax
    mov %rax, PTE
    movabs $TEST, %rsi
    invlpg (%rsi)
    mov $NO_FAULT, %r15d
    mov %rsp, access_rsp
    xor %eax, %eax
    mov %rax, %cr2
    mov $0xc3, %al                      /* a write writes what is there */
    mov access_code(, %r13, 8), %rdx
    pushq access_rflags
    test $ACCESS_USER, %r13d
    jnz 1f
    popf
    jmp *%rdx
1:  add $8, %rsp
    mov $USER_WINDOW, %edi
    or %rdi, %rdx
    pushq $SEL_USER_DATA
    pushq user_rsp64
    pushq access_rflags
    pushq $SEL_USER_CODE64
    push %rdx
    iretq

    /* ring 0 comes back by itself; the read looks at what it got */
access_read:
    movzbl (%rsi), %eax
    cmp $0xc3, %al
    je access_done
    mov $WRONG_ADDRESS, %r15d
    jmp access_done
access_write:
    mov %al, (%rsi)
    jmp access_done
access_fetch:
    call *%rsi
access_done:
    pushq $2
    popf
    ret
access_user_read:
    movzbl (%rsi), %eax
    ud2
access_user_write:
    mov %al, (%rsi)
    ud2
access_user_fetch:
    call *%rsi
    ud2

on_page_fault:
    pop %r15
    and $0xffff, %r15d
    mov %cr2, %rdx
    cmp %rsi, %rdx
    jne 1f
    mov (%rsp), %rdx                    /* RIP: the instruction, or what could not be fetched */
    test $ACCESS_USER, %r13d
    jz 2f
    btr $31, %rdx
2:  cmp access_rip(, %r13, 8), %rdx
    je on_ud
1:  mov $WRONG_ADDRESS, %r15d
on_ud:
    mov access_rsp, %rsp
    mov $SEL_DATA, %eax
    mov %eax, %ss
    pushq $2
    popf
    ret

/* Compare R15 with R14, and the entries with `want`. */
judge:
    incq cases
    cmp %r14, %r15
    jne judge_differs
    mov PML4E, %rax
    mov %rax, now
    mov PDPTE, %rax
    mov %rax, now + 8
    mov PDE, %rax
    mov %rax, now + 16
    mov PTE, %rax
    mov %rax, now + 24
    xor %ecx, %ecx
1:  mov now(, %rcx, 8), %rax
    mov want(, %rcx, 8), %rdx
    cmp %rdx, %rax
    je 2f
    cmp $NO_FAULT, %r14d                /* with a fault, A may have been set on the way */
    je judge_entries
    or $BIT_A, %rdx
    cmp %rdx, %rax
    jne judge_entries
2:  inc %ecx
    cmp $4, %ecx
    jne 1b
    ret
judge_entries:
    mov $WRONG_ENTRIES, %r15d
judge_differs:
    incq failures
    cmpq $20, failures
    ja 1f
    say64 "mode, access (1 write, 2 fetch, 4 user), sweep, setting, level; entries"
    mov %r12, %rax
    call show
    mov %r13, %rax
    call show
    mov %r11, %rax
    call show
    mov %rbx, %rax
    call show
    mov %rbp, %rax
    call show
    mov entries, %rax
    call show
    mov entries + 8, %rax
    call show
    mov entries + 16, %rax
    call show
    mov entries + 24, %rax
    call show
    mov $'\n', %al
    call put_char64
    check64 "error code", %r15, %r14
1:  ret

show:
    call put_hex64
    mov $' ', %al
    jmp put_char64

    .data
    .balign 8
place_table:
    .quad sweep_pdpt, sweep_pd, sweep_pt, FRAME
place_large:                            /* PS of a PML4E is reserved, of a PTE it is PAT */
    .quad sweep_pdpt, 0, FRAME & ~0x1fffff, FRAME
access_code:
    .quad access_read, access_write, access_fetch, 0
    .quad access_user_read, access_user_write, access_user_fetch, 0
access_rip:
    .quad access_read, access_write, TEST, 0
    .quad access_user_read, access_user_write, TEST, 0
reserved_turn: .quad 0
access_rflags: .quad 2
access_rsp: .quad 0
cases: .quad 0
failures: .quad 0
high_bits: .quad 0
features7: .long 0
is_amd: .long 0
has_1g: .byte 0
    .balign 8
reserved_table: .quad 0, 0, 0, 0
reserved_large: .quad 0, 0, 0, 0
entries: .quad 0, 0, 0, 0
want: .quad 0, 0, 0, 0
now: .quad 0, 0, 0, 0

    .bss
    .balign 4096
sweep_pdpt: .skip 4096
sweep_pd: .skip 4096
sweep_pt: .skip 4096
