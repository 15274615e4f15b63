#!/usr/bin/env python3
"""tap.py - a Debian kernel on a tap interface of the host: static addresses, ping, TCP both ways

All of it is in a network namespace of the test's own, in which it is root: of the host nothing is
touched but /dev/net/tun. Skipped, with the reason, where there can be no such namespace.
"""
import argparse
import fcntl
import os
import struct
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib"))
from harness import Failed, expect, modules_where, run_tool
from lines import LIMIT, Flows, Guest

HOST, GUEST = "10.9.0.1", "10.9.0.2"
OWN_NETWORK = ["unshare", "--user", "--map-root-user", "--net"]
# linux/if_tun.h
TUNSETIFF, TUNSETPERSIST = 0x400454CA, 0x400454CB
IFF_TAP, IFF_NO_PI, IFF_MULTI_QUEUE = 0x0002, 0x1000, 0x0100

SCRIPT = r"""
ip link set eth0 up
ip addr add @GUEST@/24 dev eth0
say "offloads $(cat /sys/class/net/eth0/device/features)"
say "mtu $(cat /sys/class/net/eth0/mtu)"
say "ping $(ping -c 3 -W 20 -s 4000 @HOST@ | grep -c 'bytes from')"
say "sent $(taskset @ON@ /peer send tcp @HOST@ @SINK@ @MIB@)"
say "got $(/peer recv tcp @HOST@ @SOURCE@ @MIB@)"
say "queues $(ls -d /sys/class/net/eth0/queues/rx-* | wc -l)"
say "used $(awk '/virtio[0-9]+-(in|out)put/ { sum = 0; for (i = 2; i <= 3; i++) sum += $i; if (sum > 20) print $NF }' /proc/interrupts | sed 's/.*-//' | sort | xargs)"
say "done"
sleep 600
"""


def why_not():
    """What the host lacks for this test, or None."""
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError as error:
        return "/dev/net/tun: %s" % error.strerror
    try:
        made = subprocess.run(OWN_NETWORK + ["python3", os.path.abspath(__file__), "--probe"],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
                              text=True)
    except OSError as error:
        return "unshare: %s" % error.strerror
    return made.stdout.strip() or "no namespace" if made.returncode != 0 else None


def make_tap(name, flags=0):
    """As 'ip tuntap add dev NAME mode tap' does, without ip."""
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH14x", name.encode(), IFF_TAP | IFF_NO_PI | flags))
    fcntl.ioctl(fd, TUNSETPERSIST, 1)
    os.close(fd)


def probe():
    """In the namespace: can there be tap interfaces?"""
    try:
        make_tap("probe")
    except OSError as error:
        print("a tap interface in a namespace: %s" % error.strerror)
        return 1
    return 0


class Test:
    def __init__(self, args):
        self.args = args

    def ip(self, *words):
        subprocess.run([self.args.busybox, "ip", *words], check=True, stdin=subprocess.DEVNULL)

    def refused(self, option, word):
        """doppel says what is wrong and what to do; it does not start."""
        done = subprocess.run([self.args.doppel, "run", "--kernel", self.args.kernel, "--net", option],
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, check=False, text=True, timeout=LIMIT)
        expect(done.returncode == 1, "--net %s: status %d" % (option, done.returncode))
        expect(word in done.stdout, "--net %s: %s" % (option, done.stdout))

    def boot(self, net, interface, mtu, on="3"):
        """
        One guest on the interface, which has its address when the guest looks for it; it sends on
        the processors of the mask.
        """
        args = self.args
        flows = Flows(args.mib, HOST)
        script = SCRIPT
        for word, value in (("GUEST", GUEST), ("HOST", HOST), ("MIB", args.mib), ("ON", on),
                            ("SINK", flows.sink.getsockname()[1]),
                            ("SOURCE", flows.source.getsockname()[1])):
            script = script.replace("@%s@" % word, str(value))
        with tempfile.TemporaryDirectory(prefix="doppel-tap-") as work:
            with open(os.path.join(work, "script"), "w", encoding="ascii") as out:
                out.write(script)
            initrd = os.path.join(work, "initramfs.cpio")
            run_tool("make-initramfs", initrd, os.path.join(work, "script") + "=script",
                     args.peer + "=peer",
                     *modules_where(args.kernel, lambda name: name.startswith("virtio") or
                                    name.startswith(("net_failover", "failover"))))
            guest = Guest([args.doppel, "run", "--engine", args.engine, "--cpus", "2",
                           "--memory", "256M", "--kernel", args.kernel, "--initrd", initrd,
                           "--net", net, "--cmdline",
                           "console=ttyS0 loglevel=4 panic=-1 doppel.test=script"])
            try:
                return self.talk(guest, flows, interface, mtu)
            finally:
                guest.process.kill()
                guest.process.wait()

    def talk(self, guest, flows, interface, mtu):
        features = guest.wait_for("offloads")
        for bit in (0, 1, 7, 8, 11, 12):  # checksums and segments are left to the interface
            expect(features[bit] == "1", "the driver does not take feature %d" % bit)
        expect(guest.wait_for("mtu") == str(mtu), "the guest has another MTU than the interface")
        expect(guest.wait_for("ping") == "3", "not all echoes came back")
        rates = guest.wait_for("sent"), guest.wait_for("got")
        expect(flows.received == self.args.mib << 20, "%s bytes came" % flows.received)
        print("%s: %s MB/s from the guest, %s MB/s to it" % ((interface,) + rates))
        queues, used = guest.wait_for("queues"), guest.wait_for("used").split()
        guest.wait_for("done")
        done = subprocess.run([self.args.busybox, "ping", "-c", "3", "-W", "20", "-s", "4000", GUEST],
                              stdout=subprocess.PIPE, check=False, text=True, timeout=LIMIT)
        expect(" 0% packet loss" in done.stdout, "the guest does not answer: " + done.stdout)
        return queues, used

    def run(self):
        self.ip("link", "set", "lo", "up")
        # made beforehand, as root does for a user; the guest takes its MTU
        make_tap("lan0")
        self.ip("link", "set", "lan0", "mtu", "9000")
        self.ip("addr", "add", HOST + "/24", "dev", "lan0")
        self.boot("tap,ifname=lan0", "lan0", 9000)
        self.refused("tap,ifname=lan0,queues=2", "multi_queue")
        self.refused("tap,ifname=lo", "which is no tap interface")
        # somebody else has it: what to do is said
        fd = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH14x", b"lan0", IFF_TAP | IFF_NO_PI))
        self.refused("tap,ifname=lan0", "end that")
        os.close(fd)
        # several queues: what is sent on the second processor goes and comes by the second pair
        make_tap("lan1", IFF_MULTI_QUEUE)
        self.ip("addr", "flush", "dev", "lan0")
        self.ip("addr", "add", HOST + "/24", "dev", "lan1")
        queues, used = self.boot("tap,ifname=lan1,queues=2", "lan1", 1500, on="2")
        expect(queues == "2", "the guest has %s queues" % queues)
        expect("input.1" in used,
               "the guest used " + " ".join(used))


def parse_arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--doppel")
    parser.add_argument("--peer")
    parser.add_argument("--engine", default="bt")
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--probe", action="store_true")
    parser.add_argument("--kernel", help="set when in the namespace")
    parser.add_argument("--busybox")
    return parser.parse_args()


def main():
    args = parse_arguments()
    if args.probe:
        return probe()
    if args.kernel is None:
        lacks = why_not()
        if lacks is not None:
            print("skipped: " + lacks)
            return 77
        # what is fetched is fetched outside, where there is a network
        return subprocess.run(OWN_NETWORK + [sys.executable, *sys.argv,
                                             "--kernel", run_tool("fetch-kernel", "cloud"),
                                             "--busybox", run_tool("fetch-busybox")],
                              check=False, stdin=subprocess.DEVNULL).returncode
    try:
        Test(args).run()
    except Failed as failure:
        print("FAILED: %s" % failure)
        return 1
    return 0


sys.exit(main())
