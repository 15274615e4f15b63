#!/usr/bin/env python3
"""nested.py [options] -- COMMAND - run a command on a host with a KVM of its own

The host is a stock Debian kernel under QEMU's translator with a CPU model that has SVM, so that
kvm-amd works in it: slow, but a real KVM. It has busybox, /doppel (with the libraries it needs),
/kernel (the same kernel) and /initrd (guests/init), and what --file adds. COMMAND is run by its
shell. The exit status is the command's; 125 when the host itself failed.
"""
import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib"))
from harness import TOP, run_tool

HOST_FAILED = 125


def parse_arguments():
    parser = argparse.ArgumentParser(usage="nested.py [options] -- COMMAND...")
    parser.add_argument("--doppel", required=True)
    parser.add_argument("--cpus", type=int, default=1, help="see below what more than one risk")
    parser.add_argument("--memory-mib", type=int, default=2048)
    parser.add_argument("--timeout", type=float, default=600)
    parser.add_argument("--cpu", default="EPYC,+svm,+npt")
    parser.add_argument("--file", action="append", default=[], metavar="FILE=PATH",
                        help="a further file, and where it is in the host")
    parser.add_argument("command", nargs="+")
    return parser.parse_args()


def libraries(program):
    """FILE=PATH of the shared libraries of a program."""
    listing = subprocess.run(["ldd", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                             text=True).stdout
    paths = re.findall(r"(?:=> |^\s*)(/\S+)", listing, re.MULTILINE)
    # libc loads it when a thread is cancelled
    paths += [os.path.join(os.path.dirname(path), "libgcc_s.so.1") for path in paths
              if os.path.basename(path) == "libc.so.6"]
    for path in paths:
        yield "%s=%s" % (os.path.realpath(path), path.lstrip("/"))


def pack(args, kernel, work):
    inner = os.path.join(work, "inner.cpio")
    outer = os.path.join(work, "outer.cpio")
    run_tool("make-initramfs", inner)
    job = os.path.join(work, "job")
    with open(job, "w", encoding="utf-8") as out:
        out.write("\n".join(args.command) + "\n")
    modules = os.path.join(os.path.dirname(os.path.dirname(kernel)), "modules")
    files = [os.path.join(TOP, "tests/nested/init=init"), job + "=job", inner + "=initrd",
             kernel + "=kernel", args.doppel + "=doppel"]
    files += ["%s/%s.ko=modules/%s.ko" % (modules, name, name)
              for name in ("irqbypass", "kvm", "kvm-amd")]
    files += list(libraries(args.doppel)) + args.file
    run_tool("make-initramfs", outer, *files)
    return outer


# One processor, because QEMU 7.2 has two faults that only show with more:
#  - It now and then goes on executing code that another processor has changed: an INT3 that was there
#    for the moment in which Linux patches a branch, as it does in its scheduler whenever the number of
#    KVM's machines leaves or reaches zero. All processors are then caught in it, with interrupts off.
#  - After a VMRUN that injects an interrupt, whatever makes the processor look up without having
#    anything for it (news for another one, its turn on a shared thread) injects it a second time, into
#    a handler that has not switched to its own GS yet.
ACCELERATOR = "tcg,thread=single"


def run(args, kernel, initrd):
    """Prints what the host prints; returns the command's status."""
    command = ["qemu-system-x86_64", "-accel", ACCELERATOR, "-cpu", args.cpu,
               "-smp", str(args.cpus), "-m", str(args.memory_mib), "-nodefaults", "-display", "none",
               "-serial", "stdio", "-no-reboot", "-kernel", kernel, "-initrd", initrd,
               "-append", "console=ttyS0 quiet panic=-1 tsc=reliable"]
    status = HOST_FAILED
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT) as process:
        timer = threading.Timer(args.timeout, process.kill)
        timer.start()
        for raw in process.stdout:
            line = raw.decode("utf-8", "replace").rstrip("\r\n")
            match = re.search(r"nested: status (\d+)", line)
            if match:
                status = int(match.group(1))
            elif "warning: TCG doesn't support requested feature" not in line:
                print(line, flush=True)
        process.wait()
        if not timer.is_alive():
            print("nested.py: killed after %g s" % args.timeout)
            status = HOST_FAILED
        timer.cancel()
    return status


def main():
    args = parse_arguments()
    kernel = run_tool("fetch-kernel", "cloud")
    with tempfile.TemporaryDirectory(prefix="doppel-nested-") as work:
        return run(args, kernel, pack(args, kernel, work))


sys.exit(main())
