/*
 * print.h - output and verdicts; included once for each code size
 *
 * R(x) is a general register by its last two letters, FN(x) a function of this size.
 * Everything keeps registers and flags.
 */

/* AL to the serial port. */
FN(put_char):
    push %R(ax)
    push %R(dx)
    mov $0x3fd, %dx
    mov %al, %ah
1:  in %dx, %al
    test $0x20, %al
    jz 1b
    mov %ah, %al
    mov $0x3f8, %dx
    out %al, %dx
    pop %R(dx)
    pop %R(ax)
    ret

/* The string at rSI. */
FN(put_string):
    push %R(ax)
    push %R(si)
1:  mov (%R(si)), %al
    test %al, %al
    jz 2f
    call FN(put_char)
    inc %R(si)
    jmp 1b
2:  pop %R(si)
    pop %R(ax)
    ret

/* rAX in hexadecimal, without leading zeros. */
FN(put_hex):
    push %R(ax)
    push %R(bx)
    push %R(cx)
    mov %R(ax), %R(bx)
    mov $BITS / 4, %cl
1:  cmp $1, %cl                 /* skip leading zeros */
    je 2f
    mov %R(bx), %R(ax)
    shr $BITS - 4, %R(ax)
    jnz 2f
    shl $4, %R(bx)
    dec %cl
    jmp 1b
2:  mov %R(bx), %R(ax)
    shr $BITS - 4, %R(ax)
    add $'0', %al
    cmp $'9', %al
    jbe 3f
    add $'a' - '0' - 10, %al
3:  call FN(put_char)
    shl $4, %R(bx)
    dec %cl
    jnz 2b
    pop %R(cx)
    pop %R(bx)
    pop %R(ax)
    ret

.macro FN(put) text:vararg
    push %R(si)
    .pushsection .rodata
.Lput\@: .asciz \text
    .popsection
    mov $.Lput\@, %R(si)
    call FN(put_string)
    pop %R(si)
.endm

FN(put_name):
    push %R(si)
    mov check_name, %R(si)
    call FN(put_string)
    pop %R(si)
    ret

FN(count_ok):
    incl ok_count
    FN(put) "ok "
    call FN(put_name)
    FN(put) "\n"
    ret

FN(say_line):
    pushf
    FN(put) "# "
    call FN(put_name)
    FN(put) "\n"
    popf
    ret

/* Compare check_got and check_want. */
FN(report):
    pushf
    cld
    push %R(ax)
    mov check_got, %R(ax)
    cmp check_want, %R(ax)
    jne 1f
    call FN(count_ok)
    jmp 2f
1:  incl fail_count
    FN(put) "FAIL "
    call FN(put_name)
    FN(put) " got 0x"
    call FN(put_hex)
    FN(put) " want 0x"
    mov check_want, %R(ax)
    call FN(put_hex)
    FN(put) "\n"
2:  pop %R(ax)
    popf
    ret

.macro FN(put_value) label, value
    FN(put) "\label"
    mov \value, %R(ax)
    call FN(put_hex)
.endm

/* Compare the exception that was caught with check_vector, check_error and check_rip. */
FN(report_fault):
    pushf
    cld
    push %R(ax)
    mov exc_vector, %R(ax)
    cmp check_vector, %R(ax)
    jne 1f
    cmpw $NO_EXCEPTION, %ax
    je 3f
    mov exc_error, %R(ax)
    cmp check_error, %R(ax)
    jne 1f
    mov exc_rip, %R(ax)
    cmp check_rip, %R(ax)
    jne 1f
3:  call FN(count_ok)
    jmp 2f
1:  incl fail_count
    FN(put) "FAIL "
    call FN(put_name)
    FN(put_value) " got vector 0x", exc_vector
    FN(put_value) " error 0x", exc_error
    FN(put_value) " rip 0x", exc_rip
    FN(put_value) " want vector 0x", check_vector
    FN(put_value) " error 0x", check_error
    FN(put_value) " rip 0x", check_rip
    FN(put) "\n"
2:  pop %R(ax)
    popf
    ret

/* An exception nobody expected: rAX points to VECTOR in the frame. Ends the guest. */
FN(die):
    cld
    mov %R(ax), %R(bx)
    mov 0(%R(bx)), %R(ax)
    FN(put) "FAIL unexpected exception got vector 0x"
    call FN(put_hex)
    mov WORD(%R(bx)), %R(ax)
    FN(put) " error 0x"
    call FN(put_hex)
    mov 2 * WORD(%R(bx)), %R(ax)
    FN(put) " rip 0x"
    call FN(put_hex)
    mov %cr2, %R(ax)
    FN(put) " cr2 0x"
    call FN(put_hex)
    FN(put) " want none, after "
    call FN(put_name)
    FN(put) "\n"
    incl fail_count
    /* fall through */

/* The end: failures decide. */
.globl FN(finish)
FN(finish):
    cld
    FN(put) "# passed 0x"
    xor %eax, %eax
    mov ok_count, %eax
    call FN(put_hex)
    FN(put) " failed 0x"
    mov fail_count, %eax
    call FN(put_hex)
    FN(put) "\n"
    xor %ecx, %ecx
    test %eax, %eax
    setnz %cl
    mov %ecx, %eax
    mov $0xf4, %dx
    outl %eax, %dx
1:  cli
    hlt
    jmp 1b

.globl FN(put_char), FN(put_string), FN(put_hex), FN(report), FN(report_fault), FN(say_line)
.globl FN(die), FN(count_ok)
