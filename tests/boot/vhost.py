#!/usr/bin/env python3
"""vhost.py - a stock Debian kernel on devices that other processes serve (tests/boot/vhost-guest)

A disk by qemu-storage-daemon, which is killed and started again while the guest runs, and a folder
by virtiofsd where there is one (it takes root).
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
           "virtio_blk", "fuse", "virtiofs"]
VIRTIOFSD = ["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"]
SIZE = 16 << 20


def md5(data):
    return hashlib.md5(data).hexdigest()


def read(path):
    with open(path, "rb") as file:
        return file.read()


def write(path, data):
    with open(path, "wb") as out:
        out.write(data)


class Backends:
    """The processes, and what they serve."""

    def __init__(self, work):
        self.work = work
        self.disk, self.other = os.path.join(work, "disk"), os.path.join(work, "other")
        self.disk_socket = os.path.join(work, "disk.sock")
        self.folder, self.folder_socket = os.path.join(work, "folder"), os.path.join(work, "folder.sock")
        self.sync = os.path.join(work, "sync")
        self.data = os.urandom(SIZE)
        write(self.disk, self.data)
        write(self.other, os.urandom(1 << 20))
        os.mkdir(self.folder)
        os.mkdir(self.sync)
        write(os.path.join(self.folder, "from-host"), b"from the host\n")
        self.virtiofsd = next((path for path in VIRTIOFSD if os.path.exists(path)), None)
        if os.geteuid() != 0:
            self.virtiofsd = None
        self.processes = []
        self.start_disk()
        if self.virtiofsd:
            self.start(self.folder_socket, [self.virtiofsd, "--socket-path=" + self.folder_socket,
                                            "-o", "source=" + self.folder, "-o", "sandbox=chroot"])

    def start(self, socket, command):
        with open(os.path.join(self.work, "backends.log"), "ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.processes.append(process)
        deadline = time.monotonic() + 20
        while not os.path.exists(socket):
            expect(process.poll() is None and time.monotonic() < deadline, "%s did not start" % command[0])
            time.sleep(0.02)
        return process

    def start_disk(self):
        if os.path.exists(self.disk_socket):
            os.unlink(self.disk_socket)
        self.disk_process = self.start(
            self.disk_socket,
            ["qemu-storage-daemon", "--blockdev", "driver=file,node-name=d,filename=" + self.disk,
             "--export", "type=vhost-user-blk,id=e,node-name=d,addr.type=unix,addr.path=%s,"
             "writable=on,num-queues=2" % self.disk_socket])

    def options(self):
        options = ["--disk", "vhost-user:" + self.disk_socket, "--disk", self.other,
                   "--share", self.sync + ",tag=sync"]
        if self.virtiofsd:
            options += ["--share", "vhost-user:%s,tag=folder" % self.folder_socket]
        return options

    def asked(self, what):
        if what == "kill":
            self.disk_process.kill()
            self.disk_process.wait()
        else:
            self.start_disk()
        write(os.path.join(self.sync, what), b"")

    def stop(self):
        for process in self.processes:
            process.kill()
            process.wait()

    def check(self, marked):
        def sum_of(word):
            return one(marked, word).split()[0]
        expect(one(marked, "queues") == "2", "the disk has not two queues")
        expect(sum_of("sum") == md5(self.data), "the disk read wrong")
        parts = sorted("%s  -\n" % md5(self.data[i << 21:(i + 1) << 21]) for i in range(4))
        names = ["%s  -\n" % md5(self.data[i << 21:(i + 1) << 21]) for i in range(4)]
        expect(sum_of("parts") in (md5("".join(names).encode()), md5("".join(parts).encode())),
               "the disk read wrong with several at once")
        expect(sum_of("sum-again") == md5(read(self.disk)), "the disk has something else at the end")
        expect(sum_of("other") == md5(read(self.other)), "the other disk read wrong")
        if self.virtiofsd:
            written = md5(read(os.path.join(self.folder, "from-guest")))
            expect(written == sum_of("written"), "the folder has something else")


def one(marked, word):
    found = [rest for name, rest in marked if name == word]
    expect(len(found) == 1, "%d lines '%s' instead of one" % (len(found), word))
    return found[0]


def boot(args, initrd, kernel, backends):
    command = [args.doppel, "run", "--engine", args.engine, "--cpus", "2", "--memory", "512M",
               "--kernel", kernel, "--initrd", initrd, "--on-reboot", "exit", "--cmdline",
               "console=ttyS0 loglevel=4 panic=-1 doppel.test=script" +
               (" doppel.folder" if backends.virtiofsd else "")]
    command += backends.options()
    lines, marked = [], []
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT) as process:
        timer = threading.Timer(args.timeout, process.kill)
        timer.start()
        try:
            for raw in process.stdout:
                lines.append(raw.decode("utf-8", "replace").rstrip("\r\n"))
                match = re.search(r"doppel-guest: (\S+) ?(.*)", lines[-1])
                if match:
                    marked.append((match.group(1), match.group(2)))
                    if match.group(1) == "ask":
                        backends.asked(match.group(2))
            status = process.wait()
        finally:
            timer.cancel()
            process.kill()
    return status, lines, marked


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--doppel", required=True)
    parser.add_argument("--engine", default="bt")
    parser.add_argument("--timeout", type=float, default=240)
    args = parser.parse_args()
    if shutil.which("qemu-storage-daemon") is None:
        print("there is no qemu-storage-daemon here (Debian: qemu-system-common)")
        return 77
    kernel = run_tool("fetch-kernel")
    work = tempfile.mkdtemp(prefix="doppel-vhost-")
    backends = None
    lines = []
    try:
        initrd = os.path.join(work, "initramfs.cpio")
        run_tool("make-initramfs", initrd, "%s/vhost-guest=script" % HERE,
                 *modules_named(kernel, MODULES))
        backends = Backends(work)
        status, lines, marked = boot(args, initrd, kernel, backends)
        expect(status == 0, "doppel ended with status %d" % status)
        wrong = [rest for word, rest in marked if word == "wrong"]
        expect(not wrong, "; ".join(wrong))
        one(marked, "ok")
        backends.check(marked)
        gone = [line for line in lines if "vhost-user back end" in line]
        expect(len(gone) == 1 and backends.disk_socket in gone[0], "what doppel says: %s" % gone)
    except (Failed, OSError) as failure:
        print("\n".join(lines))
        print("FAILED: %s" % failure)
        return 1
    finally:
        if backends is not None:
            backends.stop()
        shutil.rmtree(work)
    return 0


sys.exit(main())
