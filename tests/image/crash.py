#!/usr/bin/env python3
"""crash.py EXERCISE DOPPEL [--times N] - a disk's process is killed in the middle of its work

Many times, at random moments: every byte that a flush had covered is there, and qemu-img finds nothing,
no error and no leaked cluster, in images of every kind.
"""
import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib"))
from harness import has_io_uring, wait_unlocked

KINDS = (["--cluster-size", "64K"], ["--cluster-size", "4K"], ["--cluster-size", "512"],
         ["--compat", "2"], ["--lazy-refcounts", "--compression", "zstd"])


def parse_arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("exercise")
    parser.add_argument("doppel")
    parser.add_argument("--times", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def call(*command, statuses=(0,)):
    result = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, check=False)
    if result.returncode not in statuses:
        raise AssertionError("%s: status %d\n%s" % (" ".join(command), result.returncode,
                                                    result.stdout))
    return result


def crash(args, number, chance):
    """One life: returns requests flushed."""
    with open("log", "wb"):
        pass  # there also when the process is killed before its first request
    # A new image each time: what is there must be what this life has written.
    call(args.doppel, "image", "create", "--force", *KINDS[number % len(KINDS)], "x.qcow2", "24M")
    arguments = ["x.qcow2", "qcow2", "log", str(number), "20000"]
    environment = dict(os.environ)
    if number % 2 != 0 and has_io_uring():
        environment["EXERCISE_IO_URING"] = "yes"
    with subprocess.Popen([args.exercise, "crash", *arguments], stdin=subprocess.DEVNULL,
                          env=environment) as process:
        time.sleep(chance.uniform(0.01, 0.5))
        process.kill()
        killed = process.wait() == -9
    if not killed:
        raise AssertionError("the writer ended with status %d by itself" % process.returncode)
    wait_unlocked("x.qcow2")
    call("qemu-img", "check", "-q", "x.qcow2")
    out = call(args.exercise, "verify", *arguments).stdout
    return int(out.split()[0])


def main():
    args = parse_arguments()
    args.exercise, args.doppel = os.path.abspath(args.exercise), os.path.abspath(args.doppel)
    if shutil.which("qemu-img") is None:
        print("no qemu-img (package qemu-utils)")
        return 77
    chance = random.Random(args.seed)
    flushed, busy = 0, 0
    with tempfile.TemporaryDirectory(prefix="doppel-crash-", dir="/var/tmp") as work:
        os.chdir(work)
        for number in range(args.seed, args.seed + args.times):
            try:
                covered = crash(args, number, chance)
            except AssertionError as error:
                print("life %d: %s" % (number, error))
                return 1
            flushed += covered
            busy += covered != 0
        os.chdir("/")
    print("io_uring in %s" % ("every other life" if has_io_uring() else "no life: the host has none"))
    print("killed %d times: %d requests were flushed, all are there; no errors, no leaks" %
          (args.times, flushed))
    # Most lives must have got somewhere, or nothing was tested.
    return 0 if busy * 2 >= args.times else 1


sys.exit(main())
