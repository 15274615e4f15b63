/*
 * fpu.S - exceptions of x87, MMX, SSE and AVX, and the state instructions
 *
 * Intel SDM vol. 1, chapters 8, 10, 11, 13; vol. 3, "System Programming for Streaming SIMD".
 */
#include "guest.h"

    .text
    .code64
    .globl main64
main64:
    mov %cr0, %rax
    and $~0xc, %rax                     /* EM, TS */
    or $0x22, %rax                      /* NE, MP */
    mov %rax, %cr0
    mov %cr4, %rax
    or $0x600, %rax                     /* OSFXSR, OSXMMEXCPT */
    mov %rax, %cr4
    call x87
    call ferr
    call mmx
    call sse
    call images
    call xsave_family
    ret

/* ------------------------------------------------------------------ x87 */

x87:
    fninit
    fnstcw word
    movzwl word, %eax
    check64 "fninit: control word", %rax, $0x37f
    fnstsw %ax
    movzwl %ax, %eax
    check64 "fninit: status word", %rax, $0
    /* masked: the default result and a flag */
    fld1
    fldz
    fdivrp
    fstpl quad
    movabs $0x7ff0000000000000, %rax
    check64 "1 / 0, masked: infinity", quad, %rax
    fnstsw %ax
    and $0x3f, %eax
    check64 "1 / 0, masked: ZE", %rax, $4
    fnclex
    fldz
    fldz
    fdivrp
    fstpl quad
    movabs $0xfff8000000000000, %rax
    check64 "0 / 0, masked: the indefinite", quad, %rax
    fnclex
    /* stack faults */
    fninit
    fstp %st(0)
    fnstsw %ax
    and $0x2ff, %eax
    check64 "stack underflow: IE, SF, C1 clear", %rax, $0x41
    fnclex
    .rept 9
    fld1
    .endr
    fnstsw %ax
    and $0x2ff, %eax
    check64 "stack overflow: IE, SF, C1", %rax, $0x241
    /* unmasked: the exception waits for the next waiting instruction */
    fninit
    movw $0x37b, word
    fldcw word
    fld1
    fldz
    nofault64 "division itself", fdivrp
    nofault64 "no-wait instructions do not fault", fnstsw %ax
    and $0x80bf, %eax
    check64 "ES and B set", %rax, $0x8084
    fault64 "MF: fwait", 16, 0, fwait
    fault64 "MF: fld1", 16, 0, fld1
    fault64 "MF: fldcw", 16, 0, fldcw word
    fault64 "MF: fstps", 16, 0, fstps quad
    fault64 "MF: an MMX instruction", 16, 0, movq %rax, %mm0
    nofault64 "SSE does not care", xorps %xmm0, %xmm0
    nofault64 "fnstenv", fnstenv area
    nofault64 "fnclex", fnclex
    nofault64 "and all is well", fwait
    /* unmasking a flag that is already set */
    fninit
    fld1
    fldz
    fdivrp
    movw $0x37b, word
    fldcw word
    fault64 "MF: after fldcw unmasks a pending one", 16, 0, fld1
    fnclex
    /* unmasked invalid operation leaves the operands */
    fninit
    movw $0x37e, word
    fldcw word
    fldz
    fldz
    fdivp
    fnclex
    fstl quad
    check64 "0 / 0, unmasked: operand kept", quad, $0
    fnstsw %ax
    shr $11, %eax
    and $7, %eax
    check64 "0 / 0, unmasked: nothing popped", %rax, $6
    /* precision */
    fninit
    fld1
    fldl three
    fdivrp
    fnstsw %ax
    and $0x3f, %eax
    check64 "1 / 3: PE", %rax, $0x20
    fstpt area
    movabs $0xaaaaaaaaaaaaaaab, %rax
    check64 "1 / 3 in 64 bits", area, %rax
    /* EFLAGS from a comparison */
    fninit
    fldz
    fld1
    fcomi %st(1), %st
    setz %al
    setc %ah
    movzwl %ax, %eax
    check64 "fcomi: 1 above 0", %rax, $0
    ret

/* With CR0.NE clear the error goes out on FERR# and comes back as IRQ 13. */
ferr:
    mov %cr0, %rax
    and $~0x20, %rax
    mov %rax, %cr0
    hook64 VEC_PIC+13, ferr_handler
    mov $0xfb, %al                      /* cascade */
    out %al, $0x21
    mov $0xdf, %al                      /* IRQ 13 */
    out %al, $0xa1
    movl $0, ferr_count
    fninit
    movw $0x37b, word
    fldcw word
    fld1
    fldz
    fdivrp
    sti
    fwait
    nop
    cli
    mov ferr_count, %eax
    check64 "FERR#: IRQ 13", %rax, $1
    fnstsw %ax
    and $0x8080, %eax
    check64 "FERR#: cleared", %rax, $0
    /* a second error interrupts again */
    call ferr_divide
    sti
    fwait
    nop
    cli
    check64 "FERR#: a second error", ferr_count, $2
    /* between the write to port F0H and the end of the error, IGNNE# lets x87 instructions run */
    hook64 VEC_PIC+13, ignne_handler
    call ferr_divide
    movl $0, ferr_count
    sti
    fwait
    nop
    cli
    check64 "IGNNE#: one interrupt", ferr_count, $1
    check64 "IGNNE#: fld1, fstpl in the handler", quad, one_double
    mov ferr_status, %rax
    and $0x80ff, %eax
    check64 "IGNNE#: the error is still noted", %rax, $0x8084
    mov ferr_control, %rax
    check64 "IGNNE#: the control word is as it was", %rax, $0x37b
    call ferr_divide
    sti
    fwait
    nop
    cli
    check64 "IGNNE#: it ends with the error: the next one interrupts", ferr_count, $2
    /* the interrupt comes by an edge: the end of the error, without port F0H, gives no other */
    hook64 VEC_PIC+13, clex_handler
    call ferr_divide
    movl $0, ferr_count
    sti
    fwait
    nop
    nop
    cli
    check64 "FERR#: fnclex alone ends the wait", ferr_count, $1
    mov $0x0a, %al                      /* IRR */
    out %al, $0xa0
    in $0xa0, %al
    and $0x20, %eax
    out %al, $0xf0
    in $0xa0, %al
    and $0x20, %eax
    check64 "FERR#: taken away by port F0H", %rax, $0
    /* with NE set it is #MF, and no interrupt */
    mov %cr0, %rax
    or $0x20, %rax
    mov %rax, %cr0
    call ferr_divide
    sti
    fault64 "MF with NE set", 16, 0, fwait
    cli
    fnclex
    check64 "NE set: no IRQ 13", ferr_count, $1
    mov $0xff, %al
    out %al, $0x21
    out %al, $0xa1
    hook64 VEC_PIC+13, 0
    mov %cr0, %rax
    or $0x20, %rax
    mov %rax, %cr0
    ret

/* 1 / 0, unmasked; nothing has waited for it yet. */
ferr_divide:
    fninit
    movw $0x37b, word
    fldcw word
    fld1
    fldz
    fdivrp
    ret

clex_handler:
    incl ferr_count
    fnclex
    mov $0x20, %al
    out %al, $0xa0
    out %al, $0x20
    ret

ignne_handler:
    incl ferr_count
    out %al, $0xf0
    fld1
    fstpl quad
    fwait
    fnstsw ferr_status
    fnstcw ferr_control
    fnclex
    mov $0x20, %al
    out %al, $0xa0
    out %al, $0x20
    ret

ferr_handler:
    incl ferr_count
    xor %eax, %eax
    out %al, $0xf0
    fnclex
    mov $0x20, %al
    out %al, $0xa0
    out %al, $0x20
    ret

/* ------------------------------------------------------------------ MMX */

mmx:
    fninit
    fld1
    movabs $0x1122334455667788, %rax
    movq %rax, %mm3
    fnstenv area
    movzwl area + 4, %eax
    shr $11, %eax
    and $7, %eax
    check64 "MMX: TOP is 0", %rax, $0
    movzwl area + 8, %ecx               /* no register is empty (11B) */
    mov %ecx, %eax
    shr $1, %eax
    and %ecx, %eax
    and $0x5555, %eax
    check64 "MMX: all tags valid", %rax, $0
    fninit
    movq %rax, %mm3
    fxsave area
    movzwl area + 32 + 3 * 16 + 8, %eax
    check64 "MMX: exponent all ones", %rax, $0xffff
    emms
    fnstenv area
    movzwl area + 8, %eax
    check64 "emms: all empty", %rax, $0xffff
    ret

/* ------------------------------------------------------------------ SSE */

sse:
    movl $0x1f80, mxcsr
    ldmxcsr mxcsr
    movss one, %xmm0
    divss zero, %xmm0
    stmxcsr mxcsr
    mov mxcsr, %eax
    check64 "SSE: 1 / 0, masked: ZE", %rax, $0x1f84
    movd %xmm0, %eax
    check64 "SSE: infinity", %rax, $0x7f800000
    movl $0x1d80, mxcsr                 /* ZM clear */
    ldmxcsr mxcsr
    movss one, %xmm0
    fault64 "XM: divss by zero", 19, 0, divss zero, %xmm0
    movd %xmm0, %eax
    check64 "XM: destination kept", %rax, $0x3f800000
    stmxcsr mxcsr
    mov mxcsr, %eax
    check64 "XM: ZE set", %rax, $0x1d84
    movaps packed, %xmm1
    movaps ones, %xmm0
    fault64 "XM: one element of a packed division", 19, 0, divps %xmm1, %xmm0
    movaps %xmm0, area
    mov area + 8, %rax
    movabs $0x3f8000003f800000, %rcx
    check64 "XM: packed destination kept", %rax, %rcx
    mov %cr4, %rax
    and $~0x400, %rax
    mov %rax, %cr4
    fault64 "UD: without OSXMMEXCPT", 6, 0, divss zero, %xmm0
    mov %cr4, %rax
    or $0x400, %rax
    mov %rax, %cr4
    movl $0x1f00, mxcsr                 /* IM clear */
    ldmxcsr mxcsr
    movss qnan, %xmm0
    nofault64 "ucomiss of a quiet NaN", ucomiss one, %xmm0
    fault64 "XM: comiss of a quiet NaN", 19, 0, comiss one, %xmm0
    movss snan, %xmm0
    fault64 "XM: ucomiss of a signalling NaN", 19, 0, ucomiss one, %xmm0
    movss minus_one, %xmm1
    fault64 "XM: square root of -1", 19, 0, sqrtss %xmm1, %xmm0
    fault64 "XM: cvtss2si of a NaN", 19, 0, cvtss2si qnan, %eax
    movl $0x1e80, mxcsr                 /* DM clear */
    ldmxcsr mxcsr
    movss one, %xmm0
    fault64 "XM: denormal", 19, 0, addss denormal, %xmm0
    movl $0x1ec0, mxcsr                 /* and DAZ */
    ldmxcsr mxcsr
    nofault64 "no denormals with DAZ", addss denormal, %xmm0
    movl $0x0f80, mxcsr                 /* PM clear */
    ldmxcsr mxcsr
    movss one, %xmm0
    fault64 "XM: inexact", 19, 0, divss three_single, %xmm0
    movl $0x1f80, mxcsr
    ldmxcsr mxcsr
    movl $0x10000, mxcsr
    fault64 "GP: ldmxcsr with reserved bits", 13, 0, ldmxcsr mxcsr
    /* unaligned operands */
    mov $area + 8, %ebx
    fault64 "GP: movaps, misaligned", 13, 0, movaps (%rbx), %xmm0
    fault64 "GP: addps, misaligned", 13, 0, addps (%rbx), %xmm0
    fault64 "GP: movntps, misaligned", 13, 0, movntps %xmm0, (%rbx)
    nofault64 "movups, misaligned", movups (%rbx), %xmm0
    nofault64 "movq, misaligned", movq -3(%rbx), %xmm0
    /* #NM before #XM, #GP */
    mov %cr0, %rax
    or $8, %rax
    mov %rax, %cr0
    fault64 "NM: with TS", 7, 0, movaps (%rbx), %xmm0
    fault64 "NM: ldmxcsr with TS", 7, 0, ldmxcsr mxcsr
    fault64 "NM: fxsave with TS", 7, 0, fxsave area
    clts
    ret

/* ------------------------------------------------------------------ FXSAVE */

images:
    fninit
    fld1
    fldl three
    movaps ones, %xmm5
    movaps packed, %xmm15
    fxsave area
    movzwl area, %eax
    check64 "fxsave: FCW", %rax, $0x37f
    movzwl area + 2, %eax
    check64 "fxsave: TOP", %rax, $0x3000
    movzbl area + 4, %eax
    check64 "fxsave: abridged tags", %rax, $0xc0
    mov area + 32, %rax
    movabs $0xc000000000000000, %rcx
    check64 "fxsave: ST0", %rax, %rcx
    mov area + 160 + 5 * 16, %rax
    movabs $0x3f8000003f800000, %rcx
    check64 "fxsave: XMM5", %rax, %rcx
    fninit
    xorps %xmm5, %xmm5
    xorps %xmm15, %xmm15
    fxrstor area
    fstpl quad
    check64 "fxrstor: ST0", quad, three
    movq %xmm5, %rax
    check64 "fxrstor: XMM5", %rax, %rcx
    movq %xmm15, %rax
    check64 "fxrstor: XMM15", %rax, packed
    mov $area + 8, %ebx
    fault64 "GP: fxsave, misaligned", 13, 0, fxsave (%rbx)
    fault64 "GP: fxrstor, misaligned", 13, 0, fxrstor (%rbx)
    movl $0xffff0000, area + 24
    fault64 "GP: fxrstor with reserved MXCSR bits", 13, 0, fxrstor area
    fninit
    fldl three
    fnsave area
    fnstsw %ax
    movzwl %ax, %eax
    check64 "fnsave initializes", %rax, $0
    frstor area
    fstpl quad
    check64 "frstor", quad, three
    ret

/* ------------------------------------------------------------------ XSAVE, AVX */

xsave_family:
    mov $1, %eax
    cpuid
    bt $26, %ecx
    jc 1f
    ret
1:  bt $28, %ecx
    setc %r12b
    xor %ecx, %ecx
    fault64 "UD: xgetbv without CR4.OSXSAVE", 6, 0, xgetbv
    fault64 "UD: xsave without CR4.OSXSAVE", 6, 0, xsave area
    mov $1, %eax
    cpuid
    shr $27, %ecx
    and $1, %ecx
    check64 "CPUID.OSXSAVE is clear", %rcx, $0
    mov %cr4, %rax
    or $0x40000, %rax
    mov %rax, %cr4
    mov $1, %eax
    cpuid
    shr $27, %ecx
    and $1, %ecx
    check64 "CPUID.OSXSAVE follows CR4", %rcx, $1
    xor %ecx, %ecx
    xgetbv
    check64 "XCR0 after reset", %rax, $1
    xor %edx, %edx
    mov $2, %eax
    fault64 "GP: XCR0 without x87", 13, 0, xsetbv
    mov $5, %eax
    fault64 "GP: XCR0 with AVX but no SSE", 13, 0, xsetbv
    mov $0x80000001, %edx
    mov $1, %eax
    fault64 "GP: XCR0 bit 63", 13, 0, xsetbv
    xor %edx, %edx
    mov $5, %ecx
    fault64 "GP: XCR5", 13, 0, xsetbv
    xor %ecx, %ecx
    mov $3, %eax
    user_fault64 "GP: user xsetbv", 13, 0, xsetbv
    nofault64 "XCR0 = 3", xsetbv
    test %r12b, %r12b
    jz 1f
    fault64 "UD: AVX without its bit in XCR0", 6, 0, vxorps %ymm0, %ymm0, %ymm0
    mov $7, %eax
    xsetbv
    nofault64 "AVX with it", vxorps %ymm0, %ymm0, %ymm0
    mov %cr0, %rax
    or $8, %rax
    mov %rax, %cr0
    fault64 "NM: AVX with TS", 7, 0, vxorps %ymm0, %ymm0, %ymm0
    fault64 "NM: xsave with TS", 7, 0, xsave area
    clts
    vbroadcastss one, %ymm3
    movaps packed, %xmm3                /* legacy SSE keeps the upper half */
    mov $7, %eax
    xor %edx, %edx
    movq $0, area + 512
    movq $0, area + 520
    xsave area
    mov area + 576 + 3 * 16, %rax
    movabs $0x3f8000003f800000, %rcx
    check64 "xsave: upper half of YMM3", %rax, %rcx
    mov area + 512, %rax
    and $6, %eax
    check64 "xsave: XSTATE_BV", %rax, $6
    vxorps %ymm3, %ymm3, %ymm3
    mov $7, %eax
    xrstor area
    vextractf128 $1, %ymm3, %xmm0
    movq %xmm0, %rax
    check64 "xrstor: upper half of YMM3", %rax, %rcx
    /* components not in XSTATE_BV are initialized */
    movq $2, area + 512
    mov $7, %eax
    xrstor area
    vextractf128 $1, %ymm3, %xmm0
    movq %xmm0, %rax
    check64 "xrstor initializes what the image lacks", %rax, $0
    movq $1, area + 520
    mov $7, %eax
    fault64 "GP: xrstor, XCOMP_BV without bit 63", 13, 0, xrstor area
    movq $0, area + 520
    movq $8, area + 512
    fault64 "GP: xrstor, XSTATE_BV beyond XCR0", 13, 0, xrstor area
    movq $0, area + 512
    mov $area + 16, %ebx
    fault64 "GP: xsave, misaligned", 13, 0, xsave (%rbx)
    vzeroupper
    /* VEX operands need no alignment, but for the aligned moves */
    mov $area + 8, %ebx
    nofault64 "vaddps, misaligned", vaddps (%rbx), %xmm0, %xmm0
    fault64 "GP: vmovaps, misaligned", 13, 0, vmovaps (%rbx), %xmm0
    mov $area + 16, %ebx
    fault64 "GP: vmovaps of 32 bytes, misaligned", 13, 0, vmovaps (%rbx), %ymm0
1:  ret

    .data
    .balign 64
area: .skip 2048
ones: .single 1, 1, 1, 1
packed: .single 2, 3, 0, 4
quad: .quad 0
three: .double 3
one: .single 1
zero: .single 0
minus_one: .single -1
three_single: .single 3
denormal: .long 1
qnan: .long 0x7fc00000
snan: .long 0x7f800001
mxcsr: .long 0
    .balign 8
ferr_count: .quad 0
ferr_status: .quad 0
ferr_control: .quad 0
one_double: .double 1
word: .word 0
