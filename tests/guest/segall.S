/*
 * segall.S - every descriptor type, DPL and present bit against every instruction that looks
 *
 * In 32-bit protected mode, from ring 0 and ring 3, with every RPL: LAR, LSL, VERR, VERW, loads of
 * a data segment register and of SS, far JMP, LLDT, LTR, each on all 32 types (S included), four
 * DPLs, present and not. `expect` says what the manual says: vector and error code, ZF, the value,
 * the accessed bit. A difference shows as got and wanted (vector << 16 | error, ff0000: none; ZF
 * in bit 24; fe0000: wrong value or descriptor) with a line of the case.
 *
 * Spec: Intel SDM vol. 3, 5.2 to 5.8, 7.2 and 7.3; vol. 2 at each instruction; tables 3-52
 * (LAR), 3-61 (LSL).
 */
#include "guest.h"

#define SEL SEL_FREE
#define ENTRY (gdt + SEL)

#define OP_LAR 0
#define OP_LSL 1
#define OP_VERR 2
#define OP_VERW 3
#define OP_FS 4
#define OP_SS 5
#define OP_JMP 6
#define OP_LLDT 7
#define OP_LTR 8
#define OP_END 9

#define NONE 0xff0000
#define WRONG 0xfe0000
#define ZF_SHIFT 24

    .text
    .code32
    .globl main32
main32:
    call set_gates
    movl $0, ring
1:  movl $0, op
2:  xor %ebx, %ebx                      /* EBX: type 4:0, P 5, DPL 7:6, RPL 9:8 */
3:  call one
    inc %ebx
    cmp $1024, %ebx
    jne 3b
    incl op
    cmpl $OP_END, op
    jne 2b
    addl $3, ring
    cmpl $6, ring
    jne 1b
    call plain_gates
    check32 "cases that went wrong", failures, $0
    check32 "cases", cases, $(2*9*1024)
    ret

/* Vectors 6, 10 to 13 by handlers of their own. */
set_gates:
    mov $idt32, %esi
    mov $gates_saved, %edi
    mov $32 * 2, %ecx
    rep movsl
    mov $on_ud, %eax
    mov $6, %ecx
    call 1f
    mov $on_ts, %eax
    mov $10, %ecx
    call 1f
    mov $on_np, %eax
    mov $11, %ecx
    call 1f
    mov $on_ss, %eax
    mov $12, %ecx
    call 1f
    mov $on_gp, %eax
    mov $13, %ecx
1:  mov %ax, idt32(, %ecx, 8)
    shr $16, %eax
    mov %ax, idt32 + 6(, %ecx, 8)
    ret

plain_gates:
    mov $gates_saved, %esi
    mov $idt32, %edi
    mov $32 * 2, %ecx
    rep movsl
    ret

/* ------------------------------------------------------------------ one case */

one:
    incl cases
    /*
     * Flat, but: data that expands down has the limit 0 (in pages), so that a stack works; system
     * descriptors have base and limit 0, so that no task switch and no gate gets far.
     */
    mov %ebx, %eax
    and $31, %eax
    movl $0x0000ffff, %ecx
    movl $0x00cf0000, %edx
    test $0x10, %eax
    jnz 1f
    xor %ecx, %ecx
    xor %edx, %edx
    jmp 2f
1:  mov %eax, %esi
    and $0xc, %esi
    cmp $4, %esi
    jne 2f
    xor %ecx, %ecx
    movl $0x00c00000, %edx
2:  shl $8, %eax
    or %eax, %edx
    mov %ebx, %eax
    and $0x20, %eax
    shl $15 - 5, %eax
    or %eax, %edx
    mov %ebx, %eax
    and $0xc0, %eax
    shl $13 - 6, %eax
    or %eax, %edx
    mov %ecx, ENTRY
    mov %edx, ENTRY + 4
    mov %edx, wanted_high
    mov %ebx, %eax
    shr $8, %eax
    or $SEL, %eax
    mov %eax, selector
    mov %eax, far_pointer + 4
    call expect
    movl $NONE, seen
    movl $0x5a5a5a5a, value
    mov %esp, resume_esp
    mov op, %ecx
    cmpl $0, ring
    jne 3f
    mov ring0(, %ecx, 4), %eax
    mov $resumed, %edx
    mov %edx, far_pointer
    mov selector, %ecx
    mov $0x5a5a5a5a, %edx
    jmp *%eax
3:  mov ring3(, %ecx, 4), %eax
    movl $user_landed, far_pointer
    mov $SEL_USER_DATA, %edx
    mov %edx, %ds
    mov selector, %ecx
    mov $0x5a5a5a5a, %edx
    pushl $SEL_USER_DATA
    pushl user_rsp32
    pushl $2
    pushl $SEL_USER_CODE32
    push %eax
    iretl

ring0_lar:
    lar %ecx, %edx
    jmp ring0_looked
ring0_lsl:
    lsl %ecx, %edx
    jmp ring0_looked
ring0_verr:
    verr %cx
    jmp ring0_looked
ring0_verw:
    verw %cx
ring0_looked:
    mov %edx, value
    jnz resumed
    orl $1 << ZF_SHIFT, seen
    jmp resumed
ring0_fs:
    mov %ecx, %fs
    jmp resumed
ring0_ss:
    mov %ecx, %ss
    jmp resumed
ring0_jmp:
    ljmp *far_pointer
ring0_lldt:
    lldt %cx
    jmp resumed
ring0_ltr:
    ltr %cx
    jmp resumed

user_lar:
    lar %ecx, %edx
    jmp user_looked
user_lsl:
    lsl %ecx, %edx
    jmp user_looked
user_verr:
    verr %cx
    jmp user_looked
user_verw:
    verw %cx
user_looked:
    setz %al
    ud2
user_fs:
    mov %ecx, %fs
    ud2
user_ss:
    mov %ecx, %ss
    ud2
user_jmp:
    ljmp *far_pointer
user_landed:
    ud2
user_lldt:
    lldt %cx
    ud2
user_ltr:
    ltr %cx
    ud2

on_ud:                                  /* where ring 3 ends when nothing went wrong */
    mov $SEL_DATA, %ecx
    mov %ecx, %ds
    mov %ecx, %ss
    cmpl $OP_VERW, op
    ja resumed
    mov %edx, value
    test $1, %al
    jz resumed
    orl $1 << ZF_SHIFT, seen
    jmp resumed
on_ts:
    mov $10 << 16, %eax
    jmp on_fault
on_np:
    mov $11 << 16, %eax
    jmp on_fault
on_ss:
    mov $12 << 16, %eax
    jmp on_fault
on_gp:
    mov $13 << 16, %eax
on_fault:
    mov $SEL_DATA, %ecx
    mov %ecx, %ds
    pop %ecx
    movzwl %cx, %ecx
    or %ecx, %eax
    mov %eax, seen
    mov $SEL_DATA, %ecx
    mov %ecx, %ss
resumed:
    mov $SEL_DATA, %ecx
    mov %ecx, %ds
    mov %ecx, %es
    mov %ecx, %ss
    mov resume_esp, %esp
    ljmp $SEL_CODE32, $1f
1:  xor %ecx, %ecx
    mov %ecx, %fs
    lldt %cx
    andb $0xfd, gdt + SEL_TSS32 + 5
    mov $SEL_TSS32, %ecx
    ltr %cx

    mov seen, %eax
    cmp wanted, %eax
    jne differs
    mov ENTRY + 4, %eax
    cmp wanted_high, %eax
    jne wrong
    cmpl $OP_LSL, op
    ja 2f
    mov value, %eax
    cmpl $OP_LAR, op
    jne 1f
    testl $1 << ZF_SHIFT, seen
    jz 1f
    and $0x00f0ff00, %eax               /* bits 19:16 are the vendor's choice */
1:  cmp wanted_value, %eax
    jne wrong
2:  ret
wrong:
    movl $WRONG, seen
differs:
    incl failures
    cmpl $20, failures
    ja 1f
    say32 "ring, instruction, type, P, DPL, RPL; descriptor, value, wanted"
    mov ring, %eax
    call show
    mov op, %eax
    call show
    mov %ebx, %eax
    and $31, %eax
    call show
    mov %ebx, %eax
    shr $5, %eax
    and $1, %eax
    call show
    mov %ebx, %eax
    shr $6, %eax
    and $3, %eax
    call show
    mov %ebx, %eax
    shr $8, %eax
    call show
    mov ENTRY + 4, %eax
    call show
    mov value, %eax
    call show
    mov wanted_value, %eax
    call show
    mov $'\n', %al
    call put_char32
    check32 "what happens", seen, wanted
1:  ret

show:
    call put_hex32
    mov $' ', %al
    jmp put_char32

/* ------------------------------------------------------------------ what the manual says */

/*
 * In: EBX the case. ESI = type (S in bit 4), EDI = DPL, EBP = RPL, ECX = the larger of CPL and
 * RPL. Out: wanted, wanted_value, wanted_high.
 */
expect:
    mov %ebx, %esi
    and $31, %esi
    mov %ebx, %edi
    shr $6, %edi
    and $3, %edi
    mov %ebx, %ebp
    shr $8, %ebp
    mov ring, %ecx
    cmp %ebp, %ecx
    jae 1f
    mov %ebp, %ecx
1:  movl $0x5a5a5a5a, wanted_value
    mov op, %eax
    jmp *expect_op(, %eax, 4)

.macro fault_with vector, error
    movl $(\vector << 16) + \error, wanted
    ret
.endm

gp_selector: fault_with 13, SEL
gp_0: fault_with 13, 0
np_selector: fault_with 11, SEL
ss_selector: fault_with 12, SEL
ts_selector: fault_with 10, SEL

goes_through:
    movl $NONE, wanted
    ret

/* ZF set or clear, no exception. */
says_yes:
    movl $NONE + (1 << ZF_SHIFT), wanted
    ret

/* The privilege rule of data: everything but conforming code. Carry: not permitted. */
privilege:
    mov %esi, %eax
    and $0x1c, %eax
    cmp $0x1c, %eax                     /* S, code, conforming */
    je 1f
    cmp %ecx, %edi                      /* DPL below one of CPL, RPL */
    ret
1:  clc
    ret

expect_lar:
    mov $0x1a3e, %eax                   /* system types 1 to 5, 9, BH, CH */
    call looks_at
    jnc goes_through
    mov wanted_high, %eax
    and $0x00f0ff00, %eax
    mov %eax, wanted_value
    jmp says_yes
expect_lsl:
    mov $0x0a0e, %eax                   /* 1, 2, 3, 9, BH */
    call looks_at
    jnc goes_through
    xor %eax, %eax
    test $0x10, %esi
    jz 1f
    mov $0xffffffff, %eax
    mov %esi, %edx
    and $0xc, %edx
    cmp $4, %edx
    jne 1f
    mov $0xfff, %eax
1:  mov %eax, wanted_value
    jmp says_yes

/* Carry: LAR or LSL, with system types EAX, sees it. */
looks_at:
    test $0x10, %esi
    jnz 1f
    bt %esi, %eax
    jnc 2f
1:  call privilege
    cmc
2:  ret

expect_verr:
    test $0x10, %esi
    jz goes_through
    mov %esi, %eax
    and $0xa, %eax
    cmp $8, %eax                        /* code that cannot be read */
    je goes_through
    call privilege
    jc goes_through
    jmp says_yes
expect_verw:
    mov %esi, %eax
    and $0x1a, %eax
    cmp $0x12, %eax                     /* data that can be written */
    jne goes_through
    call privilege
    jc goes_through
    jmp says_yes

expect_fs:
    test $0x10, %esi
    jz gp_selector
    mov %esi, %eax
    and $0xa, %eax
    cmp $8, %eax
    je gp_selector
    call privilege
    jc gp_selector
    test $0x20, %ebx
    jz np_selector
    orl $0x100, wanted_high             /* accessed */
    jmp goes_through
expect_ss:
    cmp %ebp, ring
    jne gp_selector
    mov %esi, %eax
    and $0x1a, %eax
    cmp $0x12, %eax
    jne gp_selector
    cmp %edi, ring
    jne gp_selector
    test $0x20, %ebx
    jz ss_selector
    orl $0x100, wanted_high
    jmp goes_through

expect_jmp:
    test $0x10, %esi
    jz expect_jmp_system
    test $8, %esi
    jz gp_selector
    test $4, %esi
    jz 1f
    cmp ring, %edi                      /* conforming: DPL not above CPL */
    ja gp_selector
    jmp 2f
1:  cmp ring, %ebp                      /* else RPL not above, DPL equal */
    ja gp_selector
    cmp ring, %edi
    jne gp_selector
2:  test $0x20, %ebx
    jz np_selector
    orl $0x100, wanted_high
    jmp goes_through
expect_jmp_system:
    mov $0x1232, %eax                   /* 286 TSS, call gates, task gate, TSS: 1, 4, 5, 9, CH */
    bt %esi, %eax
    jnc gp_selector                     /* busy ones as well */
    cmp %ecx, %edi
    jb gp_selector
    test $0x20, %ebx
    jz np_selector
    mov $0x202, %eax
    bt %esi, %eax
    jc ts_selector                      /* the limit is too small for a TSS */
    jmp gp_0                            /* the gate leads to null */

expect_lldt:
    cmpl $0, ring
    jne gp_0
    cmp $2, %esi
    jne gp_selector
    test $0x20, %ebx
    jz np_selector
    jmp goes_through
expect_ltr:
    cmpl $0, ring
    jne gp_0
    mov $0x202, %eax                    /* available ones */
    bt %esi, %eax
    jnc gp_selector
    test $0x10, %esi
    jnz gp_selector
    test $0x20, %ebx
    jz np_selector
    orl $0x200, wanted_high             /* busy */
    jmp goes_through

    .data
    .balign 8
ring0:
    .long ring0_lar, ring0_lsl, ring0_verr, ring0_verw, ring0_fs, ring0_ss, ring0_jmp
    .long ring0_lldt, ring0_ltr
ring3:
    .long user_lar, user_lsl, user_verr, user_verw, user_fs, user_ss, user_jmp
    .long user_lldt, user_ltr
expect_op:
    .long expect_lar, expect_lsl, expect_verr, expect_verw, expect_fs, expect_ss, expect_jmp
    .long expect_lldt, expect_ltr
ring: .long 0
op: .long 0
selector: .long 0
far_pointer: .quad 0
seen: .long 0
wanted: .long 0
wanted_value: .long 0
wanted_high: .long 0
value: .long 0
resume_esp: .long 0
cases: .long 0
failures: .long 0

    .bss
    .balign 8
gates_saved: .skip 256
