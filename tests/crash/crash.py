#!/usr/bin/env python3
"""crash.py - a machine is killed in the middle of its guest's writing, again and again

A stock kernel mounts an ext4 file system on a disk of doppel's and runs writers.c, which tells the
host each step that it has made durable. doppel is killed (SIGKILL) at a random moment: while the
guest boots, replays its journal, checks, writes, or shuts down. Then, each time:

- `qemu-img check` finds nothing, no error and no leaked cluster (decision 0024).
- The file system as qemu-img reads it has no errors once its journal is replayed (e2fsck).
- On the same disk, the guest boots, replays the journal itself, and finds every byte of every step that
  it had told; and goes on.

In the end the guest shuts down, and disk and file system are without any flaw.

That data survives a host that loses what was not flushed to it is another test's: block_test.
"""
import argparse
import hashlib
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib"))
from harness import Failed, expect, modules_named, run_tool, wait_unlocked

LIMIT = 240  # seconds for anything at all
WRITERS = 6  # of writers.c

MODULES = ["virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci",
           "virtio_blk", "virtio_console"]

SCRIPT = r"""
mkdir /mnt
mount -t ext4 -o discard /dev/vda /mnt && say "mounted $(dmesg | grep -c 'recovery complete')"
done=$(sed -n 's/.*crash.done=\([0-9,]*\).*/\1/p' /proc/cmdline | tr , ' ')
# the driver makes it when it has heard of it
until port=$(ls /dev/vport* 2>/dev/null); do usleep 10000; done
/writers /mnt $port @SEED@ $done
umount /mnt || say "not-unmounted"
"""

# What makes the disk from a raw image with a file system, what it is opened with.
VARIANTS = {
    "qcow2": (["convert", "fs.raw", "disk"], ""),
    "overlay": (["create", "disk", "--backing", "base.qcow2", "--cluster-size", "4K"], ""),
    "raw": (["convert", "--format", "raw", "fs.raw", "disk"], ""),
    "qcow2-direct": (["convert", "fs.raw", "disk"], ",cache=none"),
    "packed": (["convert", "--compress", "--compression", "zstd", "fs.raw", "disk"], ""),
    "version-2": (["convert", "--compat", "2", "--cluster-size", "512", "fs.raw", "disk"], ""),
    "snapshots": (["convert", "--lazy-refcounts", "fs.raw", "disk"], ""),
    "overlay-direct": (["create", "disk", "--backing", "fs.raw"], ",cache=none"),
    "raw-direct": (["convert", "--format", "raw", "fs.raw", "disk"], ",cache=none"),
}
PHASES = ("work", "boot", "work", "end", "work")


def parse_arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--doppel", required=True)
    parser.add_argument("--writers", required=True)
    parser.add_argument("--engine", default="bt")
    parser.add_argument("--rounds", type=int, default=200, help="over all variants")
    parser.add_argument("--variants", default=",".join(VARIANTS), metavar="NAME,NAME")
    parser.add_argument("--self-test", action="store_true",
                        help="does the test notice when a disk loses data?")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "big"))
    return parser.parse_args()


def call(*command, statuses=(0,)):
    result = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, timeout=LIMIT, check=False)
    expect(result.returncode in statuses, "%s: status %d\n%s" %
           (" ".join(command), result.returncode, result.stdout))
    return result


class Life:
    """A machine from its start to its end; what its guest said on the port and on the console."""

    def __init__(self, command, port):
        self.start = time.monotonic()
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT)
        self.told, self.console = [], []
        self.is_ready, self.ready_after = threading.Event(), None
        self.threads = [threading.Thread(target=self.read_console, daemon=True),
                        threading.Thread(target=self.read_port, args=(port,), daemon=True)]
        self.peer = None
        for thread in self.threads:
            thread.start()

    def read_console(self):
        for raw in self.process.stdout:
            self.console.append(raw.decode("utf-8", "replace").rstrip())

    def read_port(self, path):
        peer = socket.socket(socket.AF_UNIX)
        while True:
            try:
                peer.connect(path)
                break
            except OSError:
                if self.process.poll() is not None:
                    self.is_ready.set()
                    return
                time.sleep(0.01)
        self.peer = peer
        try:
            for raw in peer.makefile("rb"):
                line = raw.decode("ascii", "replace")
                # The last line may have been cut off: nobody was told of that step.
                if line.endswith("\n"):
                    self.told.append(line.split())
                if line == "ready\n":
                    self.ready_after = time.monotonic() - self.start
                    self.is_ready.set()
        except ConnectionResetError:
            pass  # the end was that of the machine: what came before it has been read
        self.is_ready.set()

    def wait_ready(self):
        expect(self.is_ready.wait(LIMIT), "the guest did not get ready within %d s" % LIMIT)
        for words in self.told:
            expect(words[0] != "wrong", " ".join(words))
        expect(self.ready_after is not None, "the guest ended before it was ready")

    def end(self):
        """The exit status."""
        status = self.process.wait(LIMIT)
        for thread in self.threads:
            thread.join(LIMIT)
        if self.peer is not None:
            self.peer.close()
        self.process.stdout.close()
        return status


class Machine:
    """One variant of a disk, and what is known of it."""

    def __init__(self, args, name, kernel, initrd, chance):
        self.args, self.name, self.kernel, self.initrd, self.chance = args, name, kernel, initrd, chance
        self.recipe, self.properties = VARIANTS[name]
        self.is_raw = "raw" in self.recipe
        self.done = [0] * WRITERS
        self.lives, self.boot_time = 0, 1.0
        self.killed = {"boot": 0, "work": 0, "end": 0}
        self.told = self.replays = 0
        self.snapshot = None  # its name, the sum of its contents
        call(args.doppel, "image", self.recipe[0], "--force", *self.recipe[1:])

    def begin_life(self):
        self.lives += 1
        port = "port-%s-%d" % (self.name, self.lives)
        return Life([self.args.doppel, "run", "--engine", self.args.engine, "--cpus", "2",
                     "--memory", "128M", "--kernel", self.kernel, "--initrd", self.initrd,
                     "--disk", "disk,format=%s%s" % ("raw" if self.is_raw else "qcow2", self.properties),
                     "--port", "name=org.doppel.test,socket=" + port, "--on-reboot", "exit",
                     "--cmdline", "console=ttyS0 loglevel=5 panic=-1 doppel.test=script crash.done=" +
                     ",".join(map(str, self.done))], port)

    def kill(self, life):
        """Somewhere between its start and its end."""
        phase = PHASES[self.lives % len(PHASES)]
        if phase == "boot":
            time.sleep(self.chance.uniform(0.1, 1.2) * self.boot_time)
        else:
            life.wait_ready()
            self.boot_time = life.ready_after
        if phase == "work":
            time.sleep(self.chance.uniform(0, 1.5))
        if phase == "end":
            life.peer.sendall(b"end\n")
            time.sleep(self.chance.uniform(0, 0.3))
        life.process.kill()
        status = life.end()
        if phase == "end" and status == 0:
            return  # it was too fast for us
        expect(status == -9, "doppel ended with status %d by itself" % status)
        self.killed[phase] += 1

    def hear(self, life):
        """What the guest has told is what it will be asked for."""
        for word, *rest in life.told:
            if word == "checked":
                writer, step = map(int, rest)
                expect(step >= self.done[writer], "writer %d is at step %d and had told %d" %
                       (writer, step, self.done[writer]))
                self.done[writer] = step
            elif word == "step":
                writer, step = map(int, rest)
                expect(step == self.done[writer] + 1, "writer %d told step %d after %d" %
                       (writer, step, self.done[writer]))
                self.done[writer] = step
                self.told += 1
            else:
                expect(word in ("ready", "ended"), " ".join([word, *rest]))
        for line in life.console:
            match = re.search(r"doppel-guest: mounted (\d+)", line)
            self.replays += match is not None and match.group(1) != "0"
            expect(not re.search("EXT4-fs (error|warning)|I/O error|BUG:|Call Trace|not-unmounted|"
                                 "doppel: ", line), "the console says: " + line)

    def check_image(self):
        if not self.is_raw:
            call("qemu-img", "check", "-q", "-f", "qcow2", "disk")

    def check_files(self, is_end=False):
        """As another program reads the disk, with the journal replayed by another."""
        call("qemu-img", "convert", "-f", "raw" if self.is_raw else "qcow2", "-O", "raw", "disk", "copy")
        if not is_end:
            # Without -f: the journal, and files that were being removed or cut; 1: that is done.
            call("e2fsck", "-p", "copy", statuses=(0, 1))
        call("e2fsck", "-fn", "copy")
        os.unlink("copy")

    def take_snapshot(self):
        if self.name != "snapshots" or self.lives % 3 != 0:
            return
        self.drop_snapshot()
        name = "life-%d" % self.lives
        call("qemu-img", "snapshot", "-c", name, "disk")
        self.snapshot = (name, self.sum_of(name))

    def drop_snapshot(self):
        if self.snapshot is None:
            return
        name, digest = self.snapshot
        expect(self.sum_of(name) == digest, "the contents of the snapshot '%s' have changed" % name)
        call("qemu-img", "snapshot", "-d", name, "disk")
        self.snapshot = None

    @staticmethod
    def sum_of(snapshot):
        call("qemu-img", "convert", "-f", "qcow2", "-O", "raw", "-l", "snapshot.name=" + snapshot,
             "disk", "copy")
        with open("copy", "rb") as file:
            digest = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else \
                hashlib.sha256(file.read())
        os.unlink("copy")
        return digest.hexdigest()

    def live(self, act):
        life = self.begin_life()
        try:
            act(life)
        except (Failed, OSError, subprocess.SubprocessError):
            print("\n".join(life.console))
            raise
        finally:
            life.process.kill()
            life.end()
        try:
            self.hear(life)
        except Failed:
            print("\n".join(life.console))
            raise

    def crash(self):
        self.live(self.kill)
        wait_unlocked("disk")
        self.check_image()
        self.check_files()
        self.take_snapshot()

    def end_well(self, life):
        life.wait_ready()
        life.peer.sendall(b"end\n")
        expect(life.end() == 0, "doppel's status is %s" % life.process.returncode)

    def run(self, rounds):
        start = time.monotonic()
        # a guest that shuts down may be faster than we are
        while sum(self.killed.values()) < rounds:
            self.crash()
        if not self.is_raw:
            self.drop_snapshot()
        self.live(self.end_well)
        self.check_image()
        self.check_files(is_end=True)
        os.unlink("disk")
        print("%-14s %3d times killed (%d in boot, %d at work, %d shutting down), %6d steps told, all "
              "there; %d journals replayed; %.1f s" %
              (self.name, sum(self.killed.values()), self.killed["boot"], self.killed["work"],
               self.killed["end"], self.told, self.replays,
               time.monotonic() - start), flush=True)


def forget():
    """The disk is again as it was before anything was written."""
    shutil.copyfile("before", "disk")


def spoil():
    """The last byte of each sector of one writer changes."""
    with open("disk", "r+b") as disk:
        data = disk.read()
        for at in range(0, len(data), 512):
            if data[at:at + 8] == (4).to_bytes(8, "little") and any(data[at + 8:at + 16]):
                disk.seek(at + 511)
                disk.write(bytes([data[at + 511] ^ 1]))


def is_noticed(machine, damage):
    """The test of the test: what is lost after a guest told of it must be found out."""
    def work_and_die(life):
        life.wait_ready()
        end = time.monotonic() + LIMIT
        while len(life.told) < WRITERS * 10:
            expect(time.monotonic() < end and life.process.poll() is None, "the guest does not work")
            time.sleep(0.01)
    shutil.copyfile("disk", "before")
    machine.live(work_and_die)
    wait_unlocked("disk")
    damage()
    machine.check_image()
    machine.check_files()
    try:
        machine.live(machine.end_well)
    except Failed as failure:
        print("noticed: %s" % failure)
        return str(failure).startswith("wrong ")
    print("FAILED: %d steps were told and lost, and nobody noticed" % machine.told)
    return False


def expect_known(names):
    for name in names:
        if name not in VARIANTS:
            sys.exit("no variant '%s'; there are %s" % (name, ", ".join(VARIANTS)))


def make_guest(args):
    """The kernel, and an initial RAM disk with the writers; the file system they write in."""
    kernel = run_tool("fetch-kernel")
    with open("script", "w", encoding="ascii") as out:
        out.write(SCRIPT.replace("@SEED@", str(args.seed)))
    run_tool("make-initramfs", os.path.abspath("initramfs.cpio"), os.path.abspath("script") + "=script",
             args.writers + "=writers", *modules_named(kernel, MODULES))
    with open("fs.raw", "wb") as out:
        out.truncate(96 << 20)
    # A small journal, so that it wraps around.
    call("mke2fs", "-q", "-t", "ext4", "-J", "size=4", "fs.raw")
    call(args.doppel, "image", "convert", "fs.raw", "base.qcow2")
    return kernel, os.path.abspath("initramfs.cpio")


def main():
    args = parse_arguments()
    args.doppel, args.writers = os.path.abspath(args.doppel), os.path.abspath(args.writers)
    os.environ["PATH"] += ":/usr/sbin:/sbin"  # mke2fs, e2fsck
    for need in ("qemu-img", "mke2fs", "e2fsck"):
        if shutil.which(need) is None:
            print("no %s (packages qemu-utils, e2fsprogs)" % need)
            return 77
    names = args.variants.split(",")
    expect_known(names)
    print("%d rounds, seed %d" % (args.rounds, args.seed), flush=True)
    chance, start, machines = random.Random(args.seed), time.monotonic(), []
    # Not on a tmpfs, which may know no O_DIRECT.
    with tempfile.TemporaryDirectory(prefix="doppel-crash-", dir="/var/tmp") as work:
        os.chdir(work)
        try:
            guest = make_guest(args)
            if args.self_test:
                return 0 if all(is_noticed(Machine(args, "raw", *guest, chance), damage)
                                for damage in (forget, spoil)) else 1
            for i, name in enumerate(names):
                machines.append(Machine(args, name, *guest, chance))
                machines[-1].run(args.rounds * (i + 1) // len(names) - args.rounds * i // len(names))
        except (Failed, OSError, subprocess.SubprocessError) as failure:
            print("FAILED: %s, life %d: %s" % (machines[-1].name if machines else "setting up",
                                               machines[-1].lives if machines else 0, failure))
            return 1
        finally:
            os.chdir("/")
    killed, told = (sum(n) for n in zip(*((sum(m.killed.values()), m.told) for m in machines)))
    print("killed %d times in %.0f s: %d steps were told, all are there" %
          (killed, time.monotonic() - start, told))
    # Or nothing was tested.
    return 0 if told >= killed else 1


sys.exit(main())
