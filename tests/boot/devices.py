#!/usr/bin/env python3
"""devices.py - virtio devices at work in a stock Debian kernel: console, ports, balloon, network, vsock, disks

The guest runs a script of ours and says how far it is; the other ends of its devices are here.
"""
import argparse
import hashlib
import json
import os
import re
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib"))
from harness import Failed, expect, has_io_uring, modules_where, nbd_server, run_tool
from lines import LIMIT, Flows, Guest

CONNECTIONS = 20


SCRIPT = r"""
# ---- ports: what is sent before anybody listens waits; sums of both directions ----
port=/dev/vport0p1
[ -e $port ] || port=$(ls /dev/vport*p1)
say "port $(cat /sys/class/virtio-ports/vport*p1/name)"
say "received $(head -c 300000 $port | md5sum)"
head -c 300000 /dev/urandom >/tmp/noise
say "sending $(md5sum </tmp/noise)"
cat /tmp/noise >$port
# ---- the console: a line is echoed back ----
say "console $(stty size </dev/hvc0)"
head -n 1 </dev/hvc0 | sed 's/^/echo /' >/dev/hvc0
# ---- balloon ----
pages() {
    awk '/^balloon_inflate / { n += $2 } /^balloon_deflate / { n -= $2 } END { print n + 0 }' /proc/vmstat
}
say "balloon-before"
until [ $(pages) = 40960 ]; do usleep 20000; done
say "balloon-full"
until [ $(pages) = 0 ]; do usleep 20000; done
say "balloon-empty"
# what is freed is reported and goes back
dd if=/dev/urandom of=/tmp/fill bs=1M count=160 2>/dev/null
say "filled $(md5sum </tmp/fill)"
rm /tmp/fill
say "freed"
# ---- link ----
ip link set eth0 up
carrier() {
    until [ "$(cat /sys/class/net/eth0/carrier)" = $1 ]; do usleep 20000; done
    say "carrier $1"
}
carrier 1
carrier 0
carrier 1
# ---- network: as much as the backend gives ----
ip addr add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
say "offloads $(cat /sys/class/net/eth0/device/features)"
say "mtu $(cat /sys/class/net/eth0/mtu)"
say "sent $(/peer send tcp 10.0.2.2 @SINK@ @MIB@)"
say "got $(/peer recv tcp 10.0.2.2 @SOURCE@ @MIB@)"
# ---- vsock: both directions ----
/peer echo vsock 5000 @CONNECTIONS@ | while read -r line; do say "vsock-$line"; done
say "vsock-answer $(echo question | /peer talk vsock 2 6000)"
say "vsock-refused $(/peer talk vsock 2 6001 </dev/null 2>&1)"
# ---- disk: it grows ----
say "disk $(cat /sys/block/vda/size)"
until [ "$(cat /sys/block/vda/size)" = 32768 ]; do usleep 20000; done
echo behind | dd of=/dev/vda bs=512 seek=32767 conv=sync 2>/dev/null
sync
say "grown $(cat /sys/block/vda/size)"
until [ "$(cat /sys/block/vdb/size)" = 8388608 ]; do usleep 20000; done
echo behind | dd of=/dev/vdb bs=512 seek=8388607 conv=sync 2>/dev/null
sync
say "grown-too $(dd if=/dev/vdb bs=512 skip=8388607 2>/dev/null | head -1)"
# ---- disk of a server: bytes there and back, then the server is gone ----
dd if=/dev/urandom of=/random bs=64k count=40 2>/dev/null
dd if=/random of=/dev/vdc bs=64k seek=3 2>/dev/null
sync
echo 3 >/proc/sys/vm/drop_caches
dd if=/dev/vdc bs=64k skip=3 count=40 2>/dev/null | cmp - /random && say "nbd-same $(md5sum </random)"
until ! dd if=/dev/vdc of=/dev/null bs=64k count=1 iflag=direct 2>/dev/null; do usleep 20000; done
say nbd-gone
"""


def connect(path):
    """doppel makes the socket before its guest runs."""
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(LIMIT)
    end = time.monotonic() + LIMIT
    while True:
        try:
            peer.connect(path)
            return peer
        except (FileNotFoundError, ConnectionRefusedError):
            expect(time.monotonic() < end, "nobody listens on " + path)
            time.sleep(0.05)


def receive(peer, size):
    data = b""
    while len(data) < size:
        more = peer.recv(size - len(data))
        expect(more, "%d bytes instead of %d" % (len(data), size))
        data += more
    return data


def md5(data):
    return hashlib.md5(data).hexdigest()


def rss_kib(pid):
    """What of the guest's memory the host has given."""
    with open("/proc/%d/smaps" % pid, encoding="ascii", errors="replace") as file:
        text = file.read()
    total = 0
    for entry in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", text):
        if "doppel-ram" in entry.split("\n")[0]:
            total += int(re.search(r"(?m)^Rss: +(\d+)", entry).group(1))
    return total


class Test:
    def __init__(self, doppel, work):
        self.doppel, self.work = doppel, work
        self.listener = socket.socket(socket.AF_UNIX)  # there before the guest connects
        self.listener.bind(self.path("vsock_6000"))
        self.listener.listen()
        self.listener.settimeout(LIMIT)

    def path(self, name):
        return os.path.join(self.work, name)

    def command(self, *arguments):
        done = subprocess.run([self.doppel, *arguments], stdout=subprocess.PIPE, check=False,
                              stderr=subprocess.STDOUT, text=True, timeout=60)
        expect(done.returncode == 0, "doppel %s: %s" % (" ".join(arguments), done.stdout))
        return done.stdout

    def ports(self, guest):
        noise = os.urandom(300000)
        peer = connect(self.path("port"))
        # before the guest's program listens
        threading.Thread(target=peer.sendall, args=(noise,), daemon=True).start()
        expect(guest.wait_for("port") == "org.doppel.test", "the port has another name")
        expect(guest.wait_for("received").split()[0] == md5(noise), "the port lost input")
        want = guest.wait_for("sending").split()[0]
        time.sleep(0.5)  # so that the guest fills what there is of buffers
        expect(md5(receive(peer, 300000)) == want, "the port lost output")

    def console(self, guest):
        terminal = os.open(self.path("console"), os.O_RDWR | os.O_NOCTTY)
        expect(guest.wait_for("console") == "24 80", "the console has another size")
        os.write(terminal, b"hello\n")
        data = b""
        while b"echo hello" not in data:
            ready = select.select([terminal], [], [], LIMIT)[0]
            expect(ready, "the console says %r" % data)
            data += os.read(terminal, 4096)
        os.close(terminal)

    def balloon(self, guest, machine):
        guest.wait_for("balloon-before")
        before = rss_kib(guest.process.pid)
        self.command("balloon", machine, "160M")
        guest.wait_for("balloon-full")
        end = time.monotonic() + LIMIT
        while True:
            status = json.loads(self.command("balloon", "--json", machine))
            if status["actual_bytes"] == 160 << 20:
                break
            expect(time.monotonic() < end, "the balloon stays at %s" % status)
        print("balloon: %d KiB before, %d KiB with 160 MiB in it" %
              (before, rss_kib(guest.process.pid)))
        self.command("balloon", machine, "0")
        guest.wait_for("balloon-empty")
        stats = {}
        while not stats:  # the guest answers in its own time
            groups = json.loads(self.command("stats", "--json", machine))["groups"]
            stats = next((g["counters"] for g in groups if g["name"] == "guest memory"), {})
        expect(stats["total_bytes"] > 200 << 20, "the guest says nothing good of its memory")
        guest.wait_for("filled")
        full = rss_kib(guest.process.pid)
        guest.wait_for("freed")
        while rss_kib(guest.process.pid) > full - 100 * 1024:
            expect(time.monotonic() < end, "free pages do not come back: %d KiB of %d" %
                   (rss_kib(guest.process.pid), full))
            time.sleep(0.1)
        print("reporting: %d KiB full, %d KiB freed" % (full, rss_kib(guest.process.pid)))

    def network(self, guest, flows, machine):
        guest.wait_for("carrier")
        self.command("link", machine, "down")
        guest.wait_for("carrier")
        self.command("link", machine, "up")
        features = guest.wait_for("offloads")
        for bit in (0, 1, 7, 8, 11, 12):
            expect(features[bit] == "1", "the driver does not take feature %d" % bit)
        expect(guest.wait_for("mtu") == "1400", "the guest does not know the MTU")
        rates = guest.wait_for("sent"), guest.wait_for("got")
        expect(flows.received == flows.mib << 20, "%s bytes came" % flows.received)
        print("network: %s MB/s from the guest, %s MB/s to it" % rates)

    def vsock(self, guest):
        guest.wait_for("vsock-listening")
        peers = []
        for number in range(CONNECTIONS):
            peer = connect(self.path("vsock"))
            peer.sendall(b"CONNECT 5000\n")
            line = b""
            while not line.endswith(b"\n"):
                line += receive(peer, 1)
            expect(re.fullmatch(rb"OK \d+\n", line), "connection %d: %r" % (number, line))
            peers.append((peer, os.urandom(200000)))
        for peer, data in peers:
            def feed(peer=peer, data=data):
                peer.sendall(data)
                peer.shutdown(socket.SHUT_WR)
            threading.Thread(target=feed, daemon=True).start()
        for peer, data in peers:
            expect(receive(peer, len(data)) == data, "an echo has other bytes")
            expect(peer.recv(1) == b"", "there is more than was sent")
            peer.close()
        peer, _ = self.listener.accept()
        expect(receive(peer, 9) == b"question\n", "the guest asks something else")
        expect(peer.recv(1) == b"", "the guest did not end its side")
        peer.sendall(b"answer")
        peer.close()
        expect(guest.wait_for("vsock-answer") == "answer", "the answer got lost")
        expect("reset by peer" in guest.wait_for("vsock-refused"), "a connection was not refused")

    def disk(self, guest, machine):
        expect(guest.wait_for("disk") == "8192", "the disk has another size")
        self.command("resize", machine, "GROWS", "16M")
        guest.wait_for("grown")
        with open(self.path("disk"), "rb") as disk:
            disk.seek(32767 * 512)
            expect(disk.read() == b"behind\n" + bytes(505), "nothing was written behind the old end")
        self.command("resize", machine, "1", "4G")
        expect(guest.wait_for("grown-too") == "behind", "nothing is kept behind the old end of qcow2")

    def served_disk(self, guest, server):
        digest = guest.wait_for("nbd-same").split()[0]
        with open(self.path("served"), "rb") as disk:
            disk.seek(3 * 65536)
            expect(hashlib.md5(disk.read(40 * 65536)).hexdigest() == digest,
                   "the server has other bytes than the guest wrote")
        server.kill()
        guest.wait_for("nbd-gone")

    def run(self, args):
        kernel = run_tool("fetch-kernel", "cloud")
        flows = Flows(args.mib)
        script = SCRIPT
        for word, value in (("SINK", flows.sink.getsockname()[1]), ("MIB", args.mib),
                            ("CONNECTIONS", CONNECTIONS), ("SOURCE", flows.source.getsockname()[1])):
            script = script.replace("@%s@" % word, str(value))
        with open(self.path("script"), "w", encoding="ascii") as out:
            out.write(script)
        with open(self.path("disk"), "wb") as out:
            out.truncate(4 << 20)
        subprocess.run([args.doppel, "image", "create", self.path("disk.qcow2"), "4M"], check=True)
        with open(self.path("served"), "wb") as out:
            out.truncate(8 << 20)
        server = nbd_server(self.path("nbd"), "qemu-nbd", "--persistent", "-f", "raw", self.path("served"))
        initrd, machine = self.path("initramfs.cpio"), self.path("control")
        aio = "io_uring" if has_io_uring() else "threads"
        print("disks: aio=%s" % aio)
        run_tool("make-initramfs", initrd, self.path("script") + "=script", args.peer + "=peer",
                 *modules_where(kernel, lambda name: name.endswith(".ko") and
                                not name.startswith("kvm")))
        guest = Guest([args.doppel, "run", "--engine", args.engine, "--cpus", str(args.cpus),
                       "--memory", "512M", "--kernel", kernel, "--initrd", initrd, "--on-reboot",
                       "exit", "--cmdline",
                       "console=ttyS0 loglevel=4 panic=-1 doppel.test=script page_reporting.page_reporting_order=0",
                       "--console", "pty:" + self.path("console"),
                       "--port", "name=org.doppel.test,socket=" + self.path("port"),
                       "--balloon", "on,reporting,deflate-on-oom", "--net", "user,mtu=1400",
                       "--vsock", "7," + self.path("vsock"),
                       "--disk", self.path("disk") + ",serial=GROWS,aio=" + aio, "--disk",
                       self.path("disk.qcow2") + ",aio=" + aio,
                       "--disk", "nbd+unix:///?socket=" + self.path("nbd"), "--control", machine])
        try:
            self.ports(guest)
            self.console(guest)
            self.balloon(guest, machine)
            self.network(guest, flows, machine)
            self.vsock(guest)
            self.disk(guest, machine)
            self.served_disk(guest, server)
            guest.wait_for("ok")
            expect(guest.process.wait(LIMIT) == 0, "doppel ended with an error")
        finally:
            guest.process.kill()
            guest.process.wait()
            server.kill()
            server.wait()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--doppel", required=True)
    parser.add_argument("--peer", required=True, help="tests/boot/peer.c, for the guest")
    parser.add_argument("--engine", default="bt")
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--mib", type=int, default=64)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="doppel-devices-") as work:
        try:
            Test(args.doppel, work).run(args)
        except Failed as failure:
            print("FAILED: %s" % failure)
            return 1
    return 0


sys.exit(main())
