#!/usr/bin/env python3
"""renew.py - the devices of a stock Debian kernel are exchanged all the time (tests/boot/renew-guest)

tests/boot/renewer.c takes the state of all that is on the PCI bus, destroys it, makes it anew and puts
the state back, while the guest writes and reads disks, of doppel's own and, where there is a
qemu-storage-daemon, of another process.
"""
import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib"))
from harness import Failed, expect, modules_named, run_tool

HERE = os.path.dirname(os.path.abspath(__file__))
MODULES = ["virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci",
           "virtio_blk", "failover", "net_failover", "virtio_net", "rng-core", "virtio-rng",
           "virtio_balloon"]
SIZE = 16 << 20
CHECKED = 4 << 20


def make_disk(path):
    with open(path, "wb") as out:
        out.truncate(SIZE)


def start_storage(work, disk):
    """A process that serves the disk, and its socket."""
    path = os.path.join(work, "disk.sock")
    process = subprocess.Popen(
        ["qemu-storage-daemon", "--blockdev", "driver=file,node-name=d,filename=" + disk, "--export",
         "type=vhost-user-blk,id=e,node-name=d,addr.type=unix,addr.path=%s,writable=on,num-queues=2" % path],
        stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while not os.path.exists(path):
        expect(process.poll() is None and time.monotonic() < deadline, "no storage daemon")
        time.sleep(0.02)
    return process, path


def md5_of_begin(path):
    with open(path, "rb") as file:
        return hashlib.md5(file.read(CHECKED)).hexdigest()


def run(command, timeout):
    """Status, and what came from it."""
    lines = []
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT) as process:
        timer = threading.Timer(timeout, process.kill)
        timer.start()
        try:
            for raw in process.stdout:
                lines.append(raw.decode("utf-8", "replace").rstrip("\r\n"))
                print("  " + lines[-1], flush=True)
            return process.wait(), lines
        finally:
            timer.cancel()
            process.kill()


def check(lines, disks):
    marked = [match.groups() for match in
              (re.search(r"doppel-guest: (\S+) ?(.*)", line) for line in lines) if match]
    wrong = [rest for word, rest in marked if word == "wrong"]
    expect(not wrong, "; ".join(wrong))
    expect(("ok", "") in marked, "the guest did not come to its end")
    written = [rest for word, rest in marked if word == "written"][0].split()[0]
    for disk in disks:
        expect(md5_of_begin(disk) == written, "%s has something else than was written" % disk)
    answers, asked = map(int, [rest for word, rest in marked if word == "answers"][0].split())
    # a frame may be lost with the network's other side
    expect(asked > 0 and answers >= asked / 2, "%d of %d answers by the network" % (answers, asked))
    renewed = [int(match.group(1)) for match in
               (re.search(r"renewer: (\d+) times", line) for line in lines) if match]
    expect(renewed and renewed[0] >= 20, "the devices were exchanged too seldom: %s" % renewed)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--renewer", required=True)
    parser.add_argument("--engine", default="bt")
    parser.add_argument("--period-ms", type=int, default=100)
    parser.add_argument("--timeout", type=float, default=280)
    args = parser.parse_args()
    kernel = run_tool("fetch-kernel")
    work = tempfile.mkdtemp(prefix="doppel-renew-")
    storage = None
    try:
        initrd = os.path.join(work, "initramfs.cpio")
        run_tool("make-initramfs", initrd, "%s/renew-guest=script" % HERE, *modules_named(kernel, MODULES))
        disks = [os.path.join(work, "disk")]
        make_disk(disks[0])
        options = list(disks)
        if shutil.which("qemu-storage-daemon"):
            disks.append(os.path.join(work, "other"))
            make_disk(disks[1])
            storage, socket = start_storage(work, disks[1])
            options.append("vhost-user:" + socket)
        status, lines = run([args.renewer, args.engine, kernel, initrd,
                             "console=ttyS0 loglevel=4 panic=-1 doppel.test=script",
                             str(args.period_ms), *options], args.timeout)
        expect(status == 0, "the renewer ended with status %d" % status)
        check(lines, disks)
    except (Failed, OSError) as failure:
        print("FAILED: %s" % failure)
        return 1
    finally:
        if storage is not None:
            storage.kill()
            storage.wait()
        shutil.rmtree(work)
    return 0


sys.exit(main())
