#!/usr/bin/env python3
"""firmware.py - boot a disk by firmware and GRUB under doppel, and reset it from inside

The disk is tools/make-boot-disk's; its kernel is Debian's and its first process guests/init.
"""
import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib"))
from harness import TOP, Failed, expect, modules_where, run_tool

UUID = "2b4e9c1a-7d35-4f0e-9a61-0c8d5b3f2e17"
PLATFORMS = {"seabios": "pc", "ovmf": "efi"}


def parse_arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--doppel", required=True)
    parser.add_argument("--engine", default="bt")
    parser.add_argument("--firmware", default="seabios", choices=PLATFORMS)
    parser.add_argument("--cpus", type=int, default=1)
    parser.add_argument("--memory-mib", type=int, default=256)
    parser.add_argument("--mode", default="facts", choices=["facts", "resets"])
    parser.add_argument("--timeout", type=float, default=540)
    return parser.parse_args()


def make_disk(work, test):
    kernel = run_tool("fetch-kernel", "cloud")
    initrd = os.path.join(work, "initramfs.cpio")
    disk = os.path.join(work, test + ".img")
    run_tool("make-initramfs", initrd,
             *modules_where(kernel, lambda name: name.startswith("virtio")),
             os.path.join(TOP, "tests", "boot", "resets") + "=script")
    run_tool("make-boot-disk", disk, kernel, initrd,
             "console=ttyS0 loglevel=4 panic=-1 doppel.test=" + test)
    return disk


def boot(args, disk, more=()):
    """Returns exit status, and lines with the time at which they arrived."""
    command = [args.doppel, "run", "--engine", args.engine, "--cpus", str(args.cpus),
               "--memory", "%dM" % args.memory_mib, "--net", "none",
               "--uuid", UUID, "--firmware", args.firmware, *more, disk]
    start = time.monotonic()
    lines = []
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT) as process:
        timer = threading.Timer(args.timeout, process.kill)
        timer.start()
        try:
            for raw in process.stdout:
                lines.append((time.monotonic() - start,
                              raw.decode("utf-8", "replace").rstrip("\r\n")))
            status = process.wait()
        finally:
            timer.cancel()
    return status, lines


def at(lines, text):
    """When the lines with this text came."""
    return [time for time, line in lines if text in line]


def check_facts(args, status, lines):
    expect(status == 0, "doppel ended with status %d" % status)
    grub = at(lines, "doppel-grub: " + PLATFORMS[args.firmware])
    first = at(lines, "doppel-guest: first-process")
    expect(len(grub) == 1 and len(first) == 1, "not one start of GRUB and kernel")
    expect(at(lines, "doppel-guest: cpu %d x" % args.cpus), "wrong number of CPUs")
    expect(at(lines, "doppel-guest: machine " + UUID), "firmware does not tell the machine's UUID")
    expect(at(lines, "doppel-guest: ok"), "the guest is not content")
    print("%s: GRUB after %.2f s, first process after %.2f s, end after %.2f s" %
          (args.firmware, grub[0], first[0], lines[-1][0]))


def check_memory(args, lines):
    line = [line for _, line in lines if "doppel-guest: memory" in line][0]
    kib = int(line.split()[2])
    # the kernel keeps page descriptors (1/64), itself and its boot reserves; firmware a little
    expect(args.memory_mib * 1024 * 0.93 - 80 * 1024 <= kib <= args.memory_mib * 1024,
           "MemTotal %d KiB of %d MiB" % (kib, args.memory_mib))


def check_resets(args, status, lines):
    """Each way to reset was tried once; firmware and GRUB started again after each."""
    expect(status == 0, "doppel ended with status %d" % status)
    ways = [line.split()[-1] for _, line in lines if "doppel-guest: reset" in line]
    own = {"seabios": "bios", "ovmf": "efi"}[args.firmware]
    expect(ways == ["acpi", "kbd", "pci", own, "triple", "none"], "resets: %s" % ways)
    starts = at(lines, "doppel-grub: " + PLATFORMS[args.firmware])
    expect(len(starts) == len(ways), "GRUB started %d times" % len(starts))
    print("%s: %s; %d starts in %.1f s" % (args.firmware, " ".join(ways[:-1]), len(ways), lines[-1][0]))


def check_variables(path):
    """OVMF has written the order in which it boots; the file began as Debian's."""
    with open(path, "rb") as file:
        data = file.read()
    expect("BootOrder".encode("utf-16-le") in data, "no variable BootOrder in the file")


def main():
    args = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="doppel-firmware-") as work:
        disk = make_disk(work, "facts" if args.mode == "facts" else "script")
        variables = os.path.join(work, "vars.fd")
        is_uefi = args.firmware == "ovmf"
        try:
            if args.mode == "resets":
                status, lines = boot(args, disk)
                check_resets(args, status, lines)
                return 0
            # the second time with the variables that the first has left
            for _ in range(2 if is_uefi else 1):
                status, lines = boot(args, disk, ("--firmware-vars", variables) if is_uefi else ())
                check_facts(args, status, lines)
                check_memory(args, lines)
            if is_uefi:
                check_variables(variables)
        except Failed as failure:
            print("\n".join("%7.2f %s" % entry for entry in lines))
            print("FAILED: %s" % failure)
            return 1
    return 0


sys.exit(main())
