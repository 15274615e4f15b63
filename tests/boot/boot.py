#!/usr/bin/env python3
"""boot.py - boot a stock Debian kernel under doppel and check the machine from inside

Every line that guests/init prints is noted with the time at which it arrived, so that the guest's
clocks can be compared with the host's.
"""
import argparse
import hashlib
import http.server
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib"))
from harness import Failed, expect, modules_where, run_tool

# What guests/init finds in the kernel's log although a real machine prints it as well.
LOG_ALLOWED = [
    re.compile(r"Unstable clock detected, switching default tracing clock"),
    # what the processor, which is the host's, is vulnerable to: depends on its model and microcode
    re.compile(r"See https://kernel.org/doc/html/latest/admin-guide/hw-vuln/"),
]


def parse_arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--doppel", required=True)
    parser.add_argument("--engine", default="bt")
    parser.add_argument("--cpus", type=int, default=1)
    parser.add_argument("--memory-mib", type=int, default=512)
    parser.add_argument("--kernel", default="cloud", help="cloud, generic or a file")
    parser.add_argument("--mode", default="check", choices=["check", "facts"])
    parser.add_argument("--timeout", type=float, default=240)
    parser.add_argument("--disk-format", default="raw", choices=["raw", "qcow2"],
                        help="of the disk that the guest writes")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--switch-storm", help="change the engine every so many instructions")
    parser.add_argument("--code-cache", help="as doppel's option: a small one is emptied often")
    return parser.parse_args()


DISK_SIZE = 4 << 20
UUID = "2b4e9c1a-7d35-4f0e-9a61-0c8d5b3f2e17"


class Disks:
    """Two disks: one that the guest reads, one that it writes what it read to."""

    def __init__(self, args, work):
        self.doppel = args.doppel
        self.is_qcow2 = args.disk_format == "qcow2"
        self.source = os.path.join(work, "source,1.img")
        self.target = os.path.join(work, "target.img")
        self.data = os.urandom(DISK_SIZE)
        with open(self.source, "wb") as out:
            out.write(self.data)

    def image(self, *arguments):
        result = subprocess.run([self.doppel, "image", *arguments], stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        expect(result.returncode == 0, "doppel image %s: %s" % (arguments[0], result.stdout))

    def options(self):
        if self.is_qcow2:
            self.image("create", "--force", self.target, str(DISK_SIZE))
        else:
            with open(self.target, "wb") as out:
                out.truncate(DISK_SIZE)
        return ["--disk", self.source.replace(",", ",,") + ",ro,serial=SOURCE",
                "--disk", self.target]

    def check(self, marked):
        digest = hashlib.md5(self.data).hexdigest()
        for word in ("read-only-disk-written", "no-discard"):
            expect(not [entry for entry in marked if entry[1] == word], "a disk did as it must not")
        expect(one(marked, "disk")[2].split()[:2] == ["SOURCE", digest], "the disk read wrong")
        if self.is_qcow2:
            self.image("check", self.target)
            self.image("convert", "--force", self.target, self.target + ".raw")
        with open(self.target + (".raw" if self.is_qcow2 else ""), "rb") as target:
            got = target.read()
        want = bytearray(DISK_SIZE)
        want[:1 << 20] = self.data[:1 << 20]
        want[4001 * 512:4004 * 512] = self.data[7 * 512:10 * 512]
        want[65536:131072] = bytes(65536)
        expect(got == want, "the disk was written wrong")


class Network:
    """The host's side: a server that the guest downloads from, and a port that leads to it."""

    def __init__(self):
        data = os.urandom(4 << 20)
        self.digest = hashlib.md5(data).hexdigest()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.forwarded = probe.getsockname()[1]
        self.answer = None

    def options(self):
        return ["--net", "user,hostfwd=tcp:127.0.0.1:%d-:7,mac=52:54:00:01:02:03" % self.forwarded]

    def talk(self):
        """The guest listens: what it answers to a line is the line's sum."""
        try:
            with socket.create_connection(("127.0.0.1", self.forwarded), timeout=60) as peer:
                peer.sendall(b"doppel\n")
                self.answer = b"".join(iter(lambda: peer.recv(4096), b""))
        except OSError as error:
            print("no answer through the forwarded port: %s" % error)

    def check(self, marked):
        expect(one(marked, "address")[2] == "10.0.2.15/24 52:54:00:01:02:03", "no lease")
        expect(one(marked, "downloaded")[2].split()[0] == self.digest, "a download went wrong")
        expect(self.answer is not None and
               self.answer.split()[0] == hashlib.md5(b"doppel\n").hexdigest().encode(),
               "the guest did not answer through the forwarded port")


def boot(args, kernel, initrd, disks, network):
    """Returns exit status, all lines, and the marked ones as (time, word, rest)."""
    command = [args.doppel, "run", "--engine", args.engine, "--uuid", UUID, "--cpus", str(args.cpus),
               "--memory", "%dM" % args.memory_mib, "--kernel", kernel, "--initrd", initrd,
               "--on-reboot", "exit", "--cmdline",
               "console=ttyS0 loglevel=4 panic=-1 doppel.test=%s doppel.http=%d" %
               (args.mode, network.server.server_port)]
    command += disks.options() + network.options()
    if args.switch_storm:
        command += ["--engines", "bt,interp", "--switch-storm", args.switch_storm, "--stats"]
    if args.code_cache:
        command += ["--code-cache", args.code_cache]
    lines, marked = [], []
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT) as process:
        timer = threading.Timer(args.timeout, process.kill)
        timer.start()
        try:
            for raw in process.stdout:
                now = time.monotonic()
                line = raw.decode("utf-8", "replace").rstrip("\r\n")
                lines.append(line)
                match = re.search(r"doppel-guest: (\S+) ?(.*)", line)
                if match:
                    marked.append((now, match.group(1), match.group(2)))
                    if match.group(1) == "listening":
                        network.talk()
            status = process.wait()
        finally:
            is_late = not timer.is_alive()
            timer.cancel()
    if is_late:
        lines.append("boot.py: killed after %g s" % args.timeout)
    return status, lines, marked


def one(marked, word):
    found = [entry for entry in marked if entry[1] == word]
    expect(len(found) == 1, "%d lines '%s' instead of one" % (len(found), word))
    return found[0]


def check_memory(args, marked):
    ram = 0
    for _, word, rest in marked:
        if word == "ram":
            first, last = (int(part, 16) for part in rest.split("-"))
            ram += last + 1 - first
    size = args.memory_mib << 20
    # Below: the hole under 1 MiB, and tables of the firmware.
    expect(size - (2 << 20) <= ram <= size, "%d bytes of RAM instead of %d" % (ram, size))
    total_kib = int(one(marked, "memory")[2].split()[0])
    # The kernel keeps page descriptors (1/64), itself and its boot reserves.
    low = args.memory_mib * 1024 * 0.93 - 80 * 1024
    expect(low <= total_kib <= args.memory_mib * 1024,
           "MemTotal %d KiB of %d MiB" % (total_kib, args.memory_mib))
    expect(int(one(marked, "copied")[2]) > 0, "no memory was copied")


def check_clocks(marked):
    """Uptime and wall-clock time against the host's, over four seconds."""
    at_1, _, rest_1 = one(marked, "uptime-1")
    at_2, _, rest_2 = one(marked, "uptime-2")
    guest = float(rest_2.split()[0]) - float(rest_1.split()[0])
    host = at_2 - at_1
    expect(guest >= 4, "a sleep of 4 s took %.2f s of guest time" % guest)
    # Lines can arrive late on a busy host, one of them by chance.
    expect(abs(guest - host) < 0.5, "%.2f s passed in the guest, %.2f s outside" % (guest, host))
    wall = float(rest_2.split()[1])
    now = time.time() - (time.monotonic() - at_2)
    expect(abs(wall - now) <= 2.5, "the guest's date is off by %.1f s" % (wall - now))


def check_paravirt(used):
    """What a kernel with several CPUs uses; yielding only with steal time, which the host has to tell."""
    wanted = ["PV spinlocks enabled", "setup PV IPIs"]
    if os.path.exists("/proc/thread-self/schedstat"):
        wanted.append("setup PV sched yield")
    for feature in wanted:
        expect(feature in used, "the kernel says nothing of '%s': %s" % (feature, used))


def check(args, status, marked, disks, network):
    expect(status == 0, "doppel ended with status %d" % status)
    one(marked, "ok")
    expect(one(marked, "cpu")[2].startswith("%d x " % args.cpus), "wrong number of CPUs")
    expect(one(marked, "machine")[2] == UUID, "the tables do not tell the machine's UUID")
    if args.cpus > 1:
        check_paravirt(one(marked, "paravirt")[2].split(","))
    if args.mode == "facts":
        return
    expect(one(marked, "cpuinfo")[2] == str(args.cpus), "wrong number of CPUs in /proc/cpuinfo")
    online = "0" if args.cpus == 1 else "0-%d" % (args.cpus - 1)
    expect(one(marked, "online")[2] == online, "not all CPUs are online")
    expect(one(marked, "workers")[2] == "100", "a worker process computed something else")
    check_memory(args, marked)
    expect(one(marked, "entropy")[2] == "virtio_rng.0 4096", "no entropy device at work")
    disks.check(marked)
    network.check(marked)
    check_clocks(marked)
    for _, word, rest in marked:
        if word == "log" and not any(allowed.search(rest) for allowed in LOG_ALLOWED):
            raise Failed("in the kernel's log: " + rest)


def check_storm(lines):
    at = [n for n, line in enumerate(lines) if line.startswith("  engine changes")]
    expect(len(at) == 1, "nothing is said of changes of the engine")
    print("\n".join(lines[at[0]:at[0] + 3]))
    expect(int(lines[at[0]].split()[-1]) >= 100, "there were few changes")


def main():
    args = parse_arguments()
    kernel = args.kernel
    if kernel in ("cloud", "generic"):
        kernel = run_tool("fetch-kernel", kernel)
    with tempfile.TemporaryDirectory(prefix="doppel-boot-") as work:
        initrd = os.path.join(work, "initramfs.cpio")
        disks, network = Disks(args, work), Network()
        wanted = ("virtio", "failover", "net_failover")
        run_tool("make-initramfs", initrd,
                 *modules_where(kernel, lambda name: name.startswith(wanted)))
        for number in range(1, args.repeat + 1):
            start = time.monotonic()
            status, lines, marked = boot(args, kernel, initrd, disks, network)
            try:
                check(args, status, marked, disks, network)
                if args.switch_storm:
                    check_storm(lines)
            except Failed as failure:
                print("\n".join(lines))
                print("FAILED (boot %d of %d): %s" % (number, args.repeat, failure))
                return 1
            first = one(marked, "first-process")
            print("boot %d: first process after %.2f s (guest: %s s), end after %.2f s" %
                  (number, first[0] - start, first[2], time.monotonic() - start), flush=True)
    return 0


sys.exit(main())
