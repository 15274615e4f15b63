#!/usr/bin/env python3
"""vectors.py NM OBJDUMP LIBRARY... | --self-test - run paths leave the vector registers alone

While engine code runs, the host's vector and x87 registers may hold the guest's (the invariant in
engine/soft/vcpu.h). The compiler keeps its own hands off them (-mgeneral-regs-only), but not those of
what it calls: memcpy, memset and most of libc use vectors, and a structure copied or a loop
recognised is enough for a call. So: the objects of LIBRARY, those of its set-up part aside, contain
no vector code, and refer to nothing outside of the run paths but what is listed here with a reason.
"""
import os
import re
import subprocess
import sys

# An instruction of the guest that C runs with the guest's registers, by object.
VECTOR_CODE = {
    "integer.c.o": r"movd\s+%mm0,%eax",  # MASKMOVQ reads its operand from where it is
}

ANYWHERE = {
    # Loads, adds and a futex call; no vector register is used before the kernel keeps them all.
    "pthread_mutex_lock",
    "pthread_mutex_unlock",
    "log_enabled",  # its code is looked at below
    # These do not return.
    "abort",
    "__stack_chk_fail",
    "_GLOBAL_OFFSET_TABLE_",  # not a function
    "__popcountdi2",  # libgcc: shifts and a table
}

# Object -> what it calls where the state has been put away, or has never been loaded.
SAVED = {
    # soft_exclusive_create and _destroy; waits come after soft_fpu_save
    "exclusive.c.o": {"calloc", "free", "err_set", "pthread_mutex_init", "pthread_mutex_destroy",
                      "pthread_cond_init", "pthread_cond_destroy", "pthread_cond_wait",
                      "pthread_cond_broadcast"},
    "exec.c.o": {"insn_decode"},  # after soft_fpu_save in the decoder's wrapper
    "host.c.o": {"log_write", "log_limit_allows"},  # after host_call
    # Called by bt_translate and bt_cache_empty alone, which find_or_translate saves before.
    "translate.c.o": {"insn_decode", "insn_decode_cached", "bt_trace_block", "memcpy", "memset"},
    "emit_insn.c.o": {"memcpy", "memset"},
    "emit_mem.c.o": {"memcpy", "memset"},
    "emit_loop.c.o": {"memcpy", "memset"},
    "loop.c.o": {"memcpy", "memset"},
    "share.c.o": {"memcpy", "memset"},
    # bt_cache_create and _destroy; madvise, memfd_discard, memset: bt_cache_empty
    "cache.c.o": {"memfd_make", "memfd_map", "memfd_unmap", "memfd_discard", "mmap64", "mmap",
                  "munmap", "madvise", "close", "err_set", "err_prefix", "__errno_location",
                  "memset"},
    # bt_run, before the first load and after the last save
    "run.c.o": {"fault_thread_enter", "fault_thread_exit", "syscall", "err_set",
                "__errno_location"},
}

# Functions in ordinary libraries whose code must stay free of vectors: ANYWHERE relies on it.
PLAIN_FUNCTIONS = {"log_enabled"}

VECTOR = re.compile(r"%(?:[xyz]?mm\d|st\b|k[0-7]\b)")
OBJECT = re.compile(r"([^/:]+\.a)\.p/([^/:]+\.o)[:\s]")


def is_set_up(archive):
    return archive.endswith("-setup.a") or archive in ("libcpu.a", "libbase.a")


def parse_symbols(lines):
    """nm -A: (object, symbol, is_defined) of run paths."""
    for line in lines:
        match = OBJECT.search(line + " ")
        words = line.split()
        if match and len(words) >= 3 and not is_set_up(match.group(1)):
            yield match.group(2), words[-1], words[-2] not in ("U", "w", "v")


def check_symbols(lines):
    symbols = list(parse_symbols(lines))
    own = {name for _, name, is_defined in symbols if is_defined}
    problems = []
    for obj, name, is_defined in symbols:
        if is_defined or name in own or name in ANYWHERE or name in SAVED.get(obj, ()):
            continue
        problems.append("%s refers to %s, which may use vector registers" % (obj, name))
    return problems, {obj for obj, _, _ in symbols}


def check_code(lines):
    """objdump -d: vector instructions of run paths and of PLAIN_FUNCTIONS."""
    problems = []
    obj, function, is_run_path = "", "", False
    for line in lines:
        if "file format" in line:
            match = OBJECT.search(line)
            obj = match.group(2) if match else ""
            is_run_path = match is not None and not is_set_up(match.group(1))
        elif line.endswith(">:"):
            function = line[line.index("<") + 1:-2]
        elif (is_run_path or function in PLAIN_FUNCTIONS) and "\t" in line:
            code = line.split("\t", 1)[1].split("#")[0]
            expected = VECTOR_CODE.get(obj)
            if VECTOR.search(code) and not (expected and re.search(expected, code)):
                problems.append("%s: %s: %s" % (obj, function, code.strip()))
    return problems


def self_test():
    run = "a/libsoft.a:a/libsoft.a.p/mem.c.o:"
    cases = [
        (check_symbols([run + "                 U memcpy"])[0], True),
        (check_symbols([run + "                 U pthread_mutex_lock"])[0], False),
        (check_symbols([run + "                 U insn_decode"])[0], True),
        (check_symbols([run.replace("mem.c", "exec.c") + "      U insn_decode"])[0], False),
        (check_symbols([run + " U soft_x", run + "0000000000000000 T soft_x"])[0], False),
        (check_symbols([run + " U f", "a/libsoft-setup.a.p/engine.c.o: 0000 T f"])[0], True),
        (check_symbols(["a/libsoft.a:a/libsoft-setup.a.p/engine.c.o: U memcpy"])[0], False),
        (check_code(["a/libsoft.a.p/mem.c.o:     file format elf64", "00 <f>:",
                     "  0:\tmovups %xmm0,(%rax)"]), True),
        (check_code(["a/libsoft.a.p/mem.c.o:     file format elf64", "00 <f>:",
                     "  0:\tmov %rcx,(%rax)"]), False),
        (check_code(["a/libsoft.a.p/integer.c.o:     file format elf64", "00 <f>:",
                     "  0:\tmovd   %mm0,%eax"]), False),
        (check_code(["a/libbase.a.p/log.c.o:     file format elf64", "00 <log_enabled>:",
                     "  0:\tmovups %xmm0,(%rax)"]), True),
        (check_code(["a/libbase.a.p/log.c.o:     file format elf64", "00 <log_write>:",
                     "  0:\tmovups %xmm0,(%rax)"]), False),
    ]
    for number, (problems, is_bad) in enumerate(cases):
        if bool(problems) != is_bad:
            print("self-test %d: %s" % (number, problems))
            return 1
    return 0


def main(nm, objdump, libraries):
    def lines_of(*command):
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()

    problems, objects = check_symbols(lines_of(nm, "-A", *libraries))
    problems += check_code(lines_of(objdump, "-d", "--no-show-raw-insn", *libraries))
    for obj in sorted(SAVED.keys() | VECTOR_CODE.keys()):
        if obj not in objects:
            problems.append("%s is listed here and in none of %s" %
                            (obj, ", ".join(map(os.path.basename, libraries))))
    print("\n".join(problems))
    return 1 if problems else 0


if __name__ == "__main__":
    if sys.argv[1] == "--self-test":
        sys.exit(self_test())
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
