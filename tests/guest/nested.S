/*
 * nested.S - tasks that call tasks: chains, busy bits, back links, NT, recursion
 *
 * A calls B, B calls C, an interrupt in C enters D through a task gate; each returns by IRET, and
 * at every station the descriptors' busy bits, the back links and NT are looked at. Then what must
 * fault: calls to a task of the chain, IRET along a link that has been spoilt; and JMP out of a
 * nested task.
 *
 * Spec: Intel SDM vol. 3, 7.3 (tables 7-1, 7-2), 7.4.
 */
#include "guest.h"

#define SEL_B (SEL_FREE + 0)
#define SEL_C (SEL_FREE + 8)
#define SEL_D (SEL_FREE + 16)
#define VEC_D 0x70
#define FREE 0x89
#define BUSY 0x8b

#define TSS_EIP 0x20
#define TSS_EFLAGS 0x24
#define TSS_ESP 0x38
#define TSS_ES 0x48
#define TSS_CS 0x4c
#define TSS_SS 0x50
#define TSS_DS 0x54

/* check_busy "name": of A, B, C, D */
.macro check_busy name, a, b, c, d
    movzbl gdt + SEL_TSS32 + 5, %eax
    check32 "\name: A", %eax, $\a
    movzbl gdt + SEL_B + 5, %eax
    check32 "\name: B", %eax, $\b
    movzbl gdt + SEL_C + 5, %eax
    check32 "\name: C", %eax, $\c
    movzbl gdt + SEL_D + 5, %eax
    check32 "\name: D", %eax, $\d
.endm

.macro check_nt name, want
    pushf
    pop %eax
    shr $14, %eax
    and $1, %eax
    check32 "\name: NT", %eax, $\want
.endm

.macro check_link name, tss, want
    movzwl \tss, %eax
    check32 "\name: back link", %eax, $\want
.endm

.macro clear_nt
    pushf
    andl $~0x4000, (%esp)
    popf
.endm

.macro init_task tss, entry, stack
    mov $\tss, %edi
    mov $\entry, %eax
    mov $\stack, %edx
    call init
.endm

.macro tss_descriptor sel, tss
    mov $\tss, %eax
    mov $\sel, %ecx
    call describe
.endm

    .text
    .code32
    .globl main32
main32:
    clts
    call all_tasks
    call chain
    call all_tasks
    call recursion
    call all_tasks
    call bad_link
    call all_tasks
    call jump_out
    ret

describe:
    mov %eax, %edx
    and $0xffffff, %eax
    movw $0x67, gdt(%ecx)
    mov %eax, gdt + 2(%ecx)
    movb $FREE, gdt + 5(%ecx)
    movb $0, gdt + 6(%ecx)
    shr $24, %edx
    mov %dl, gdt + 7(%ecx)
    ret

init:
    push %edi
    push %eax
    xor %eax, %eax
    mov $0x68 / 4, %ecx
    rep stosl
    pop %eax
    pop %edi
    mov %eax, TSS_EIP(%edi)
    mov %edx, TSS_ESP(%edi)
    movl $2, TSS_EFLAGS(%edi)
    movl $SEL_DATA, TSS_ES(%edi)
    movl $SEL_CODE32, TSS_CS(%edi)
    movl $SEL_DATA, TSS_SS(%edi)
    movl $SEL_DATA, TSS_DS(%edi)
    movl $0x680000, 0x64(%edi)
    ret

all_tasks:
    tss_descriptor SEL_B, tss_b
    tss_descriptor SEL_C, tss_c
    tss_descriptor SEL_D, tss_d
    init_task tss_b, task_b, stack_b
    init_task tss_c, task_c, stack_c
    init_task tss_d, task_d, stack_d
    movl $0x00000000 + (SEL_D << 16), idt32 + VEC_D * 8
    movl $0x00008500, idt32 + VEC_D * 8 + 4
    ret

/* ------------------------------------------------------------------ a chain of four */

chain:
    lcall $SEL_B, $0
    check_busy "A again", BUSY, FREE, FREE, FREE
    check_nt "A again", 0
    check32 "the chain was walked", stations, $0xdcb
    ret

task_b:
    check_busy "in B", BUSY, BUSY, FREE, FREE
    check_nt "in B", 1
    check_link "B", tss_b, SEL_TSS32
    lcall $SEL_C, $0
    check_busy "B again", BUSY, BUSY, FREE, FREE
    check_nt "B again", 1
    check_link "B again", tss_b, SEL_TSS32
    mov stations, %eax
    shl $4, %eax
    or $0xb, %eax
    mov %eax, stations
    iret
    ud2

task_c:
    check_busy "in C", BUSY, BUSY, BUSY, FREE
    check_nt "in C", 1
    check_link "C", tss_c, SEL_B
    int $VEC_D
    check_busy "C again", BUSY, BUSY, BUSY, FREE
    check_nt "C again", 1
    mov stations, %eax
    shl $4, %eax
    or $0xc, %eax
    mov %eax, stations
    iret
    ud2

task_d:
    check_busy "in D", BUSY, BUSY, BUSY, BUSY
    check_nt "in D", 1
    check_link "D", tss_d, SEL_C
    mov tss_c + TSS_EFLAGS, %eax
    shr $14, %eax
    and $1, %eax
    check32 "NT in the image of C", %eax, $1
    movl $0xd, stations
    iret
    ud2

/* ------------------------------------------------------------------ recursion */

/* Every task of the chain is busy: none can be entered again, by CALL, JMP, or gate. */
recursion:
    movl $recursion_b, tss_b + TSS_EIP
    movl $recursion_c, tss_c + TSS_EIP
    lcall $SEL_B, $0
    check_busy "after recursion", BUSY, FREE, FREE, FREE
    ret
recursion_b:
    fault32 "GP: B calls itself", 13, SEL_B, lcall $SEL_B, $0
    fault32 "GP: B calls A", 13, SEL_TSS32, lcall $SEL_TSS32, $0
    /* the runtime's handlers end in IRET with NT clear, so it is set again for the way back */
    lcall $SEL_C, $0
    pushf
    orl $0x4000, (%esp)
    popf
    iret
    ud2
recursion_c:
    fault32 "GP: C calls B", 13, SEL_B, lcall $SEL_B, $0
    fault32 "GP: C jumps to A", 13, SEL_TSS32, ljmp $SEL_TSS32, $0
    movw $SEL_B, idt32 + VEC_D * 8 + 2
    fault32 "GP: a gate to B, which is busy", 13, SEL_B, int $VEC_D
    pushf
    orl $0x4000, (%esp)
    popf
    iret
    ud2

/* ------------------------------------------------------------------ IRET along a bad link */

bad_link:
    movl $bad_link_b, tss_b + TSS_EIP
    lcall $SEL_B, $0
    check_busy "after bad links", BUSY, FREE, FREE, FREE
    ret
.macro iret_to name, vector, error, link
    movw $\link, tss_b
    pushf
    orl $0x4000, (%esp)
    popf
    fault32 "\name", \vector, \error, iret
    clear_nt
.endm
bad_link_b:
    iret_to "TS: a link to a task that is not busy", 10, SEL_C, SEL_C
    iret_to "TS: a null link", 10, 0, 0
    iret_to "TS: a link into the LDT", 10, (SEL_C + 4), (SEL_C + 4)
    iret_to "TS: a link beyond the GDT", 10, SEL_END, SEL_END
    iret_to "TS: a link to code", 10, SEL_CODE32, SEL_CODE32
    andb $0x7f, gdt + SEL_TSS32 + 5
    iret_to "NP: a link to a task that is not present", 11, SEL_TSS32, SEL_TSS32
    orb $0x80, gdt + SEL_TSS32 + 5
    check_busy "bad links change nothing", BUSY, BUSY, FREE, FREE
    movw $SEL_TSS32, tss_b
    pushf
    orl $0x4000, (%esp)
    popf
    iret
    ud2

/* ------------------------------------------------------------------ JMP out of a nested task */

/* JMP frees the task it leaves, keeps its NT and link, and gives the new one neither. */
jump_out:
    movl $jump_b, tss_b + TSS_EIP
    movl $jump_c, tss_c + TSS_EIP
    lcall $SEL_B, $0
    check_busy "A after the jump", BUSY, FREE, FREE, FREE
    ret
jump_b:
    ljmp $SEL_C, $0
    check_nt "B after the jump back", 1
    check_link "B after the jump back", tss_b, SEL_TSS32
    check_busy "B after the jump back", BUSY, BUSY, FREE, FREE
    iret
    ud2
jump_c:
    check_busy "in C by a jump", BUSY, FREE, BUSY, FREE
    check_nt "in C by a jump", 0
    check_link "C by a jump", tss_c, 0
    mov tss_b + TSS_EFLAGS, %eax
    shr $14, %eax
    and $1, %eax
    check32 "NT stays in the image of B", %eax, $1
    ljmp $SEL_B, $0
    ud2

    .data
    .balign 8
stations: .quad 0

    .bss
    .balign 128
tss_b: .skip 128
tss_c: .skip 128
tss_d: .skip 128
    .skip 2048
stack_b:
    .skip 2048
stack_c:
    .skip 2048
stack_d:
