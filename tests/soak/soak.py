#!/usr/bin/env python3
"""soak.py --doppel PATH [--minutes N] [options] - a guest under load, watched from outside

Two CPUs of a stock Debian kernel compile, compress, fork, swap, write files and rewrite code for
N minutes in less memory than they need. Inside, every result is checked against the known-right
answer; outside, doppel's memory is checked against its bound and the guest's clock against the
host's. Exit status: 0 all is well, 1 not, 77 the guest cannot be made here (no packages).
"""
import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
SKIPPED = 77
MODULES = ("lzo-rle", "zsmalloc", "zram")
MIB = 1 << 20

# What doppel may have beside guest RAM and the code cache, whose size bounds translated code and the
# tables that belong to it together: the program and fixed tables, and those of each CPU (mostly its
# TLB and what it knows of single instructions).
FIXED_MIB = 6
CPU_MIB = 3
# Of the code cache's size the tables take at most this much.
TABLES_SHARE = 0.15
# The fixed part may not grow once the guest is at work.
GROWTH_MIB = 4
# A second beside what a busy host adds before a line is read.
CLOCK_SECONDS = 2.0


def parse_arguments():
    parser = argparse.ArgumentParser(usage=__doc__.splitlines()[0])
    parser.add_argument("--doppel", required=True)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--engine", default="bt")
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--memory-mib", type=int, default=224)
    parser.add_argument("--swap-mib", type=int, default=256)
    parser.add_argument("--code-cache-mib", type=int, default=64)
    parser.add_argument("--kernel", help="not Debian's cloud kernel; its modules are beside boot/")
    parser.add_argument("--verbose", action="store_true", help="print the guest's lines")
    return parser.parse_args()


def run_tool(*command):
    try:
        return subprocess.run(command, check=True, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, text=True).stdout.strip()
    except subprocess.CalledProcessError as error:
        print("soak: %s failed (status %d): skipped" % (command[0], error.returncode))
        sys.exit(SKIPPED)


def find_modules(kernel):
    """{name: path} of the modules that the guest needs."""
    base = os.path.dirname(os.path.dirname(os.path.realpath(kernel)))
    found = {}
    for folder, _, names in os.walk(base):
        for name in MODULES:
            if name + ".ko" in names:
                found[name] = os.path.join(folder, name + ".ko")
    missing = [name for name in MODULES if name not in found]
    if missing:
        print("soak: the kernel's package has no module %s: skipped" % ", ".join(missing))
        sys.exit(SKIPPED)
    return found


def make_initramfs(args, kernel, work):
    programs = run_tool(os.path.join(TOP, "bench", "make-programs"))
    soak = os.path.join(work, "soak")
    sources = [os.path.join(HERE, name) for name in ("main.c", "programs.c", "memory.c", "code.c")]
    subprocess.run(["gcc", "-O2", "-D_GNU_SOURCE", "-static", "-pthread", "-o", soak] + sources,
                   check=True)
    # The folder as it is in the guest, for the host's own run of the programs.
    tree = os.path.join(work, "programs")
    os.mkdir(tree)
    for name in ("bin", "lib", "ld.so"):
        os.symlink(os.path.join(programs, name), os.path.join(tree, name))
    data = os.path.join(tree, "data")
    shutil.copytree(os.path.join(TOP, "bench", "programs"), data)
    subprocess.run(["gcc", "-E", "-P", "-D_GNU_SOURCE", os.path.join(HERE, "memory.c"), "-o",
                    os.path.join(data, "compile.i")], check=True)
    expected = os.path.join(work, "expected")
    with open(expected, "w", encoding="utf-8") as out:
        subprocess.run([soak, "measure", tree], check=True, stdout=out)

    files = ["%s=init" % os.path.join(HERE, "init"), "%s=bin/soak" % soak, "%s=expected" % expected,
             "%s=programs/ld.so" % os.path.join(tree, "ld.so")]
    for name, path in find_modules(kernel).items():
        files.append("%s=modules/%s.ko" % (path, name))
    for folder in ("bin", "lib", "data"):
        for name in os.listdir(os.path.join(tree, folder)):
            files.append("%s=programs/%s/%s" % (os.path.join(tree, folder, name), folder, name))
    initrd = os.path.join(work, "initrd")
    run_tool(os.path.join(TOP, "tools", "make-initramfs"), initrd, *files)
    return initrd


def resident(pid):
    """{"ram", "code", "rest": bytes}: proportional, as code is mapped twice."""
    sizes = {"ram": 0, "code": 0, "rest": 0}
    kind = "rest"
    with open("/proc/%d/smaps" % pid, encoding="utf-8") as lines:
        for line in lines:
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                kind = ("ram" if "memfd:doppel-ram" in line else
                        "code" if "memfd:doppel-code" in line else "rest")
            elif line.startswith("Pss:"):
                sizes[kind] += int(line.split()[1]) * 1024
    return sizes


class Watch(threading.Thread):
    """Looks at the process every few seconds."""

    def __init__(self, pid, seconds):
        super().__init__(daemon=True)
        self.pid = pid
        self.period = max(1.0, min(5.0, seconds / 30))
        self.begin = time.monotonic()
        self.samples = []  # (seconds, sizes)
        self.stopped = threading.Event()

    def run(self):
        while not self.stopped.wait(self.period):
            try:
                self.samples.append((time.monotonic() - self.begin, resident(self.pid)))
            except OSError:
                return


class Guest:
    """What the guest said."""

    def __init__(self, verbose):
        self.verbose = verbose
        self.problems = []
        self.clock = []  # (guest's seconds, host's)
        self.rounds = ""
        self.is_ok = self.is_ended = False
        self.events = []

    def take(self, line):
        if self.verbose:
            print(line, flush=True)
        words = line.split()
        if not line.startswith("soak: "):
            if re.search(r"BUG|Oops|Call Trace|segfault|general protection|Kernel panic|soft lockup",
                         line):
                self.problems.append("the guest's kernel: " + line)
            return
        if words[1] in ("WRONG:", "FAILED:", "kernel"):
            self.problems.append(line)
        elif words[1] in ("begin", "beat", "ok", "bad"):
            self.clock.append((float(words[2]), time.monotonic()))
            self.rounds = " ".join(words[3:])
            self.is_ok = words[1] == "ok"
        elif words[1] == "vm":
            self.events.append("%s %s" % (words[2], words[3]))
            if words[2] == "oom_kill" and words[3] != "0":
                self.problems.append("the guest ran out of memory")
        elif words[1] == "end":
            self.is_ended = True


def check_clock(guest):
    if len(guest.clock) < 2:
        return
    (first_guest, first_host), (last_guest, last_host) = guest.clock[0], guest.clock[-1]
    off = (last_guest - first_guest) - (last_host - first_host)
    print("soak: guest's clock against the host's: %+.3f s after %.0f s" % (off, last_guest))
    if abs(off) > CLOCK_SECONDS:
        guest.problems.append("the guest's clock is %.3f s off" % off)


def check_memory(args, watch, guest):
    if not watch.samples:
        guest.problems.append("no look at doppel's memory was had")
        return
    peak = {kind: max(sizes[kind] for _, sizes in watch.samples) for kind in ("ram", "code", "rest")}
    total = max(sum(sizes.values()) for _, sizes in watch.samples)
    own = FIXED_MIB + CPU_MIB * args.cpus
    bound = args.memory_mib + args.code_cache_mib + own
    print("soak: doppel's memory at its peak: %.1f MiB; bound %d MiB = %d guest RAM + %d code cache + "
          "%d" % (total / MIB, bound, args.memory_mib, args.code_cache_mib, own))
    print("soak: of that at most %.1f guest RAM, %.1f translated code, %.1f all else" %
          tuple(peak[kind] / MIB for kind in ("ram", "code", "rest")))
    if total > bound * MIB:
        guest.problems.append("doppel's memory: %.1f MiB, bound %d" % (total / MIB, bound))
    bounds = {"ram": args.memory_mib, "code": args.code_cache_mib,
              "rest": own + TABLES_SHARE * args.code_cache_mib}
    for kind, limit in bounds.items():
        if peak[kind] > limit * MIB:
            guest.problems.append("doppel's memory (%s): %.1f MiB, bound %.1f" %
                                  (kind, peak[kind] / MIB, limit))
    # Tables of blocks fill and empty with the cache: compare the highest of two halves.
    half = watch.samples[-1][0] / 2
    early = max((s["rest"] for t, s in watch.samples if t < half), default=0)
    late = max((s["rest"] for t, s in watch.samples if t >= half), default=0)
    print("soak: all else, first half %.1f MiB, second half %.1f MiB" % (early / MIB, late / MIB))
    if args.minutes >= 5 and late > early + GROWTH_MIB * MIB:
        guest.problems.append("doppel's memory grew by %.1f MiB" % ((late - early) / MIB))


def soak(args, kernel, initrd):
    seconds = args.minutes * 60
    command = [args.doppel, "run", "--engine", args.engine, "--cpus", str(args.cpus), "--memory",
               "%dM" % args.memory_mib, "--code-cache", "%dM" % args.code_cache_mib, "--kernel",
               kernel, "--initrd", initrd, "--on-reboot", "exit", "--cmdline",
               "console=ttyS0 quiet panic=-1 soak.seconds=%d soak.swap=%d" %
               (seconds, args.swap_mib)]
    guest = Guest(args.verbose)
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT) as process:
        limit = threading.Timer(seconds * 1.5 + 240, process.kill)
        limit.start()
        watch = Watch(process.pid, seconds)
        watch.start()
        for raw in process.stdout:
            guest.take(raw.decode(errors="replace").strip())
        status = process.wait()
        limit.cancel()
    watch.stopped.set()
    watch.join()
    if status != 0:
        guest.problems.append("doppel ended with status %d" % status)
    if not guest.is_ok or not guest.is_ended:
        guest.problems.append("the guest did not get to its end")
    print("soak: rounds: " + guest.rounds)
    print("soak: the guest's kernel: " + ", ".join(guest.events))
    if guest.is_ok and not any(e.startswith("pswpin ") and e != "pswpin 0" for e in guest.events):
        guest.problems.append("the guest did not swap: its memory was not scarce")
    check_clock(guest)
    check_memory(args, watch, guest)
    for problem in guest.problems:
        print("soak: PROBLEM: " + problem)
    print("soak: %s, %g minutes" % ("FAILED" if guest.problems else "all is well", args.minutes))
    return 1 if guest.problems else 0


def main():
    args = parse_arguments()
    kernel = args.kernel or run_tool(os.path.join(TOP, "tools", "fetch-kernel"), "cloud")
    work = tempfile.mkdtemp(prefix="doppel-soak-")
    try:
        return soak(args, kernel, make_initramfs(args, kernel, work))
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    sys.exit(main())
