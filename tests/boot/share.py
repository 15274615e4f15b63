#!/usr/bin/env python3
"""share.py - a stock Debian kernel mounts shared folders and works in them (tests/boot/share-guest)

The host makes the folders, looks at what the guest did to them, and that nothing beside them
changed.
"""
import argparse
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib"))
from harness import Failed, expect, modules_named, run_tool

HERE = os.path.dirname(os.path.abspath(__file__))

MODULES = ["virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci",
           "fuse", "virtiofs"]


def write(path, data):
    with open(path, "wb") as out:
        out.write(data)


def read(*path):
    with open(os.path.join(*path), "rb") as file:
        return file.read()


def make_tree(top):
    """Files of all sizes in nested folders; returns the sum that the guest is to find."""
    sums = []
    for n in range(60):
        folder = os.path.join(top, "dir%d" % (n % 7), *(["deep"] * (n % 4)))
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, "file %d" % n)
        data = os.urandom(n * n * 37)
        write(path, data)
        os.chmod(path, 0o600 + n % 8 * 8)
        sums.append(("./" + os.path.relpath(path, top), hashlib.md5(data).hexdigest()))
    os.symlink("dir1", os.path.join(top, "link"))
    lines = "".join("%s  %s\n" % (digest, name) for name, digest in sorted(sums, key=lambda s: s[0].encode()))
    return hashlib.md5(lines.encode()).hexdigest()


class Folders:
    def __init__(self, work):
        self.work, self.look = os.path.join(work, "wo,rk"), os.path.join(work, "look")
        self.secret = os.path.join(work, "secret")
        self.cached = {mode: os.path.join(work, mode) for mode in ("always", "never")}
        for folder in self.cached.values():
            os.mkdir(folder)
            write(os.path.join(folder, "file"), b"from the host\n")
        self.locks = os.path.join(work, "locks")
        os.mkdir(self.locks)
        os.mkdir(self.work)
        os.mkdir(self.look)
        write(self.secret, b"not the guest's\n")
        self.tree_sum = make_tree(os.path.join(self.work, "tree"))
        for folder in (self.work, self.look):
            os.symlink(self.secret, os.path.join(folder, "host-link"))
        write(os.path.join(self.look, "file"), b"for reading\n")
        write(os.path.join(self.work, "changing"), b"before\n")

    def options(self):
        return ["--share", self.work.replace(",", ",,") + ",tag=work",
                "--share", self.look + ",ro,tag=look",
                "--share", self.locks + ",locks=on,cache=never,tag=locks",
                "--share", self.locks + ",locks=on,cache=never,tag=other",
                *(option for mode, folder in self.cached.items()
                  for option in ("--share", "%s,tag=%s,cache=%s" % (folder, mode, mode)))]

    def told(self):
        """The guest waits for a file."""
        expect(read(self.work, "from-guest") == b"1\n", "the guest's file is not here")
        # as long as what the guest has in its memory
        with open(os.path.join(self.work, "changing"), "r+b") as file:
            file.write(b"behind\n")
        path = os.path.join(self.work, "from-host")
        write(path + ".new", b"the host was here\n")
        os.rename(path + ".new", path)

    def try_locks(self):
        """The guest has bytes 5 to 9, and all by flock."""
        self.file = open(os.path.join(self.locks, "f"), "r+b")
        expect(not takes(fcntl.lockf, self.file, 1, 9), "the host took a lock that the guest has")
        expect(not takes(fcntl.flock, self.file), "the host took the flock that the guest has")
        expect(takes(fcntl.lockf, self.file, 2, 0), "the guest has a lock that it did not take")
        write(os.path.join(self.locks, "tried"), b"")
        # it lets them go when it has seen that
        fcntl.flock(self.file, fcntl.LOCK_EX)
        fcntl.lockf(self.file, fcntl.LOCK_EX, 2, 5)
        write(os.path.join(self.locks, "taken"), b"")

    def check(self, marked):
        expect(one(marked, "sum").split()[0] == self.tree_sum, "the guest read something else")
        subprocess.run(["diff", "-r", "--no-dereference", os.path.join(self.work, "tree"),
                        os.path.join(self.work, "copy")], check=True)
        for mode, folder in self.cached.items():
            digest = hashlib.md5(read(folder, "big")).hexdigest()
            expect(one(marked, "sum-" + mode).split()[0] == digest, "with cache=%s the host has something else" % mode)
            expect(read(folder, "yours") == b"secret\nmore\n", "a file written with cache=%s differs" % mode)
            expect(os.stat(os.path.join(folder, "new")).st_mtime == 981173106, "a time with cache=%s differs" % mode)
        digest = hashlib.md5(read(self.work, "big")).hexdigest()
        expect(one(marked, "big").split()[0] == digest, "the host has something else")
        expect(one(marked, "big-again").split()[0] == digest, "the guest read something else again")
        expect(sorted(os.listdir(self.look)) == ["file", "host-link"] and
               read(self.look, "file") == b"for reading\n", "the read-only folder changed")
        expect(read(self.secret) == b"not the guest's\n", "what is beside the folders changed")
        expect(os.readlink(os.path.join(self.work, "passwd")) == "/etc/passwd", "a link changed")
        if os.geteuid() == 0:
            stat = os.stat(os.path.join(self.work, "open", "theirs"))
            expect((stat.st_uid, stat.st_gid) == (1234, 56), "a file is not whose it should be")


def takes(lock, *args):
    try:
        lock(args[0], fcntl.LOCK_EX | fcntl.LOCK_NB, *args[1:])
    except BlockingIOError:
        return False
    return True


def one(marked, word):
    found = [rest for name, rest in marked if name == word]
    expect(len(found) == 1, "%d lines '%s' instead of one" % (len(found), word))
    return found[0]


def boot(args, initrd, kernel, folders):
    command = [args.doppel, "run", "--engine", args.engine, "--cpus", "2", "--memory", "512M",
               "--kernel", kernel, "--initrd", initrd, "--on-reboot", "exit",
               "--cmdline", "console=ttyS0 loglevel=4 panic=-1 doppel.test=script"]
    command += folders.options()
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
                    if match.group(1) == "tell-host":
                        folders.told()
                    elif match.group(1) == "host-tries":
                        folders.try_locks()
                    elif match.group(1) == "host-releases":
                        folders.file.close()
            status = process.wait()
        finally:
            timer.cancel()
            process.kill()
    return status, lines, marked


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--doppel", required=True)
    parser.add_argument("--locks", required=True, help="tests/boot/locks.c, built")
    parser.add_argument("--engine", default="bt")
    parser.add_argument("--timeout", type=float, default=240)
    args = parser.parse_args()
    if os.geteuid() != 0:
        print("the guest changes owners, which takes root on the host")
        return 77
    kernel = run_tool("fetch-kernel")
    work = tempfile.mkdtemp(prefix="doppel-share-")
    try:
        initrd = os.path.join(work, "initramfs.cpio")
        run_tool("make-initramfs", initrd, "%s/share-guest=script" % HERE, args.locks + "=bin/locks",
                 *modules_named(kernel, MODULES))
        folders = Folders(work)
        status, lines, marked = boot(args, initrd, kernel, folders)
        try:
            expect(status == 0, "doppel ended with status %d" % status)
            wrong = [rest for word, rest in marked if word in ("wrong", "no-work", "no-look", "mounted-nothing")]
            expect(not wrong, "; ".join(wrong))
            one(marked, "ok")
            folders.check(marked)
        except (Failed, OSError, subprocess.CalledProcessError) as failure:
            print("\n".join(lines))
            print("FAILED: %s" % failure)
            return 1
    finally:
        shutil.rmtree(work)
    return 0


sys.exit(main())
