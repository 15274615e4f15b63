/*
 * paging32.S - two-level and PAE paging in 32-bit protected mode
 *
 * Intel SDM vol. 3, "32-Bit Paging", "PAE Paging".
 */
#include "guest.h"

#define TEST 0x40000000
#define FRAME0 SCRATCH
#define FRAME1 (SCRATCH + 0x1000)
#define CLEAN(entry) andl $~0x60, entry

    .text
    .code32
    .globl main32
main32:
    movb $0xc3, FRAME0
    movl $0xaaaa, FRAME0 + 16
    movl $0xbbbb, FRAME1 + 16
    call two_level
    call pae
    ret

set_cr0:
    mov %cr0, %ecx
    and $0x7ffeffff, %ecx
    or %ecx, %eax
    mov %eax, %cr0
    ret

/* ------------------------------------------------------------------ 32-bit paging */

two_level:
    mov $directory, %edi                /* 4 MiB pages, one to one */
    mov $0x83, %eax
    mov $1024, %ecx
1:  stosl
    add $0x400000, %eax
    loop 1b
    orl $4, directory                   /* ring 3 code lives here, too */
    movl $table + 7, directory + TEST / 0x400000 * 4
    movl $FRAME0 + 7, table
    mov %cr4, %eax
    or $0x10, %eax                      /* PSE */
    mov %eax, %cr4
    mov $directory, %eax
    mov %eax, %cr3
    mov $0x80000000, %eax
    call set_cr0
    mov $TEST, %ebx

    mov 16(%ebx), %eax
    check32 "translated", %eax, $0xaaaa
    mov table, %eax
    and $0x60, %eax
    check32 "a read sets A only", %eax, $0x20
    mov %al, 4(%ebx)
    mov table, %eax
    and $0x60, %eax
    check32 "a write sets D", %eax, $0x60
    mov directory + TEST / 0x400000 * 4, %eax
    and $0x20, %eax
    check32 "A in the PDE", %eax, $0x20
    mov directory, %eax
    and $0x60, %eax
    check32 "A and D in the PDE of a 4 MiB page", %eax, $0x60

    /* PDE and PTE permissions, CR0.WP */
    movl $FRAME0 + 5, table
    invlpg (%ebx)
    nofault32 "supervisor writes to read-only pages without WP", movb %al, (%ebx)
    user_fault32 "user write, read-only PTE", 14, 7, movb %al, (%ebx)
    user_ok32 "user read, read-only PTE", movb (%ebx), %al
    mov $0x80010000, %eax
    call set_cr0
    fault32 "supervisor write with WP", 14, 3, movb %al, (%ebx)
    movl $FRAME0 + 7, table
    movl $table + 5, directory + TEST / 0x400000 * 4
    invlpg (%ebx)
    fault32 "read-only PDE", 14, 3, movb %al, (%ebx)
    movl $table + 3, directory + TEST / 0x400000 * 4
    invlpg (%ebx)
    user_fault32 "supervisor PDE", 14, 5, movb (%ebx), %al
    user_fault32 "supervisor PDE, write", 14, 7, movb %al, (%ebx)
    movl $table + 7, directory + TEST / 0x400000 * 4
    movl $FRAME0 + 3, table
    invlpg (%ebx)
    user_fault32 "supervisor PTE", 14, 5, movb (%ebx), %al
    movl $FRAME0 + 6, table
    invlpg (%ebx)
    user_fault32 "user, not present", 14, 4, movb (%ebx), %al
    fault32 "not present, write", 14, 2, movb %al, 0x123(%ebx)
    check32 "CR2", exc_cr2, $TEST+0x123
    try32 1f
    call *%ebx
1:  movl $0, try_resume
    check32 "fetch, not present: no I bit without NX and SMEP", exc_error, $0
    movl $FRAME0 + 7, table
    invlpg (%ebx)

    /* 4 MiB pages */
    movl $SCRATCH + 0x87, directory + TEST / 0x400000 * 4
    invlpg (%ebx)
    mov 0x1010(%ebx), %eax
    check32 "4 MiB page", %eax, $0xbbbb
    movl $SCRATCH + 0x200087, directory + TEST / 0x400000 * 4
    invlpg (%ebx)
    fault32 "reserved bit 21 in a 4 MiB PDE", 14, 9, movb (%ebx), %al
    /* without PSE the bit has no meaning: the same entry leads to a page table */
    movl $table + 0x87, directory + TEST / 0x400000 * 4
    mov %cr0, %eax
    and $0x7fffffff, %eax
    mov %eax, %cr0
    mov $small_directory, %eax
    movl $small_table + 7, small_directory
    movl $table + 0x87, small_directory + TEST / 0x400000 * 4
    mov $small_table, %edi
    mov $7, %edx
    mov $1024, %ecx
2:  mov %edx, (%edi)
    add $0x1000, %edx
    add $4, %edi
    loop 2b
    mov %eax, %cr3
    mov %cr4, %eax
    and $~0x10, %eax
    mov %eax, %cr4
    mov $0x80010000, %eax
    call set_cr0
    mov 16(%ebx), %eax
    check32 "PS means nothing without CR4.PSE", %eax, $0xaaaa
    mov %cr0, %eax
    and $0x7fffffff, %eax
    mov %eax, %cr0
    ret

/* ------------------------------------------------------------------ PAE */

pae:
    mov $pae_directory, %edi            /* 2 MiB pages, 4 GiB, one to one */
    mov $0x83, %eax
    mov $2048, %ecx
1:  mov %eax, (%edi)
    movl $0, 4(%edi)
    add $0x200000, %eax
    add $8, %edi
    loop 1b
    orl $4, pae_directory
    movl $pae_directory + 0x0001, pae_pointers
    movl $pae_directory + 0x1001, pae_pointers + 8
    movl $pae_directory + 0x2001, pae_pointers + 16
    movl $pae_directory + 0x3001, pae_pointers + 24
    movl $pae_table + 7, pae_directory + TEST / 0x200000 * 8
    movl $FRAME0 + 7, pae_table
    mov $0xc0000080, %ecx
    rdmsr
    or $0x800, %eax                     /* NXE */
    wrmsr
    mov %cr4, %eax
    or $0x20, %eax
    mov %eax, %cr4
    mov $pae_pointers, %eax
    mov %eax, %cr3
    mov $0x80010000, %eax
    call set_cr0
    mov $TEST, %ebx

    mov 16(%ebx), %eax
    check32 "PAE: translated", %eax, $0xaaaa
    movb $0xc3, FRAME0
    nofault32 "PAE: executable", call *%ebx
    movl $0x80000000, pae_table + 4
    invlpg (%ebx)
    try32 1f
    call *%ebx
1:  movl $0, try_resume
    check32 "PAE: no-execute: error", exc_error, $0x11
    check32 "PAE: no-execute: EIP", exc_rip, %ebx
    nofault32 "PAE: but readable", movl (%ebx), %eax
    movl $0, pae_table + 4
    movl $FRAME0 + 5, pae_table
    invlpg (%ebx)
    fault32 "PAE: read-only", 14, 3, movb %al, (%ebx)
    user_fault32 "PAE: user write, read-only", 14, 7, movb %al, (%ebx)
    movl $FRAME0 + 7, pae_table
    movl $0x40000000, pae_table + 4
    invlpg (%ebx)
    fault32 "PAE: reserved bit 62 in the PTE", 14, 9, movb (%ebx), %al
    movl $0, pae_table + 4
    movl $pae_table + 3, pae_directory + TEST / 0x200000 * 8
    invlpg (%ebx)
    user_fault32 "PAE: supervisor PDE", 14, 5, movb (%ebx), %al
    movl $SCRATCH + 0x87, pae_directory + TEST / 0x200000 * 8
    invlpg (%ebx)
    mov 0x1010(%ebx), %eax
    check32 "PAE: 2 MiB page", %eax, $0xbbbb
    mov pae_directory + TEST / 0x200000 * 8, %eax
    and $0x60, %eax
    check32 "PAE: 2 MiB page: A", %eax, $0x20
    movl $pae_table + 7, pae_directory + TEST / 0x200000 * 8
    invlpg (%ebx)

    /* the four pointers are registers, loaded by mov to CR3 */
    mov pae_pointers + 8, %eax
    check32 "PAE: no A bit in the PDPTE", %eax, $pae_directory+0x1001
    movl $0, pae_pointers + 8
    invlpg (%ebx)
    mov 16(%ebx), %eax
    check32 "PAE: a PDPTE changed in memory is not looked at", %eax, $0xaaaa
    mov %cr3, %eax
    mov %eax, %cr3
    fault32 "PAE: before the next mov to CR3", 14, 0, movb (%ebx), %al
    movl $pae_directory + 0x1003, pae_pointers + 8
    fault32 "PAE: reserved bit 1 in a PDPTE", 13, 0, mov %eax, %cr3
    movl $pae_directory + 0x1001, pae_pointers + 8
    nofault32 "PAE: mov to CR3", mov %eax, %cr3
    mov 16(%ebx), %eax
    check32 "PAE: there again", %eax, $0xaaaa
    /* CR3 need be aligned to 32 bytes only */
    mov $pae_pointers, %esi
    mov $pae_pointers + 0x20, %edi
    mov $8, %ecx
    rep movsl
    mov $pae_pointers + 0x20, %eax
    nofault32 "PAE: pointers anywhere in 32 bytes", mov %eax, %cr3
    mov 16(%ebx), %eax
    check32 "PAE: translated from there", %eax, $0xaaaa
    mov %cr0, %eax
    and $0x7fffffff, %eax
    mov %eax, %cr0
    mov %cr4, %eax
    and $~0x20, %eax
    mov %eax, %cr4
    ret

    .bss
    .balign 4096
directory: .skip 4096
table: .skip 4096
small_directory: .skip 4096
small_table: .skip 4096
pae_pointers: .skip 4096
pae_table: .skip 4096
pae_directory: .skip 4 * 4096
