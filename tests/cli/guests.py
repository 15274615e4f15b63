"""guests.py - tiny Multiboot kernels, assembled by hand, that end or hang as a test needs

Entered in 32-bit protected mode with flat segments (Multiboot specification 0.6.96, 3.2).
"""
import struct

LOAD = 0x100000
HEADER_SIZE = 32

HANG = b"\xfa\xf4\xeb\xfd"  # 1: cli; hlt; jmp 1b


def image(code):
    magic, flags = 0x1BADB002, 1 << 16
    header = struct.pack("<8I", magic, flags, -(magic + flags) & 0xFFFFFFFF, LOAD, LOAD, 0, 0,
                         LOAD + HEADER_SIZE)
    return header + code


def write_serial(text):
    """mov dx, 0x3f8, then per byte: wait for THRE; mov al, imm; out dx, al"""
    code = b""
    for byte in text:
        code += b"\x66\xba\xfd\x03"  # mov dx, 0x3fd
        code += b"\xec\xa8\x20\x74\xfb"  # 1: in al, dx; test al, 0x20; jz 1b
        code += b"\x66\xba\xf8\x03\xb0" + bytes([byte]) + b"\xee"
    return code


def debug_exit(value):
    return b"\xb8" + struct.pack("<I", value) + b"\xe7\xf4"  # mov eax, value; out 0xf4, eax


def triple_fault():
    # lidt of six zero bytes behind the code, then ud2
    return b"\x0f\x01\x1d" + struct.pack("<I", LOAD + HEADER_SIZE + 9) + b"\x0f\x0b" + bytes(6)


RESET = b"\xb0\xfe\xe6\x64" + HANG  # the keyboard controller's reset pulse

# 1: wait for input; read it; write it back; for ever
ECHO = (b"\x66\xba\xfd\x03\xec\xa8\x01\x74\xfb" b"\x66\xba\xf8\x03\xec\xee" b"\xeb\xef")

# 1: wait for PWRBTN_STS at the PM1 event block; then SLP_EN, type 5, to the control block
BUTTON = (b"\x66\xba\x00\x06" b"\x66\xed\xf6\xc4\x01\x74\xf9"
          b"\x66\xba\x04\x06\x66\xb8\x00\x34\x66\xef") + HANG

# Writes "x" for ever.
FLOOD = b"\x66\xba\xf8\x03\xb0x\xee\xeb\xfd"

GUESTS = {
    "hang": write_serial(b"ready\r\n") + HANG,
    "debug-exit": debug_exit(21),
    "triple-fault": triple_fault(),
    "reset": RESET,
    "echo": write_serial(b"ready\r\n") + ECHO,
    "button": write_serial(b"ready\r\n") + BUTTON,
    "flood": FLOOD,
    "lines": write_serial(b"0123456789abcdef" * 1000) + debug_exit(0),
}
