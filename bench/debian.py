"""debian.py - the benchmark's rows of disk, network and shared folder, in a Debian guest

The same disk of guests/debian, with fio and iperf3 in it, is started under QEMU's translator and under
doppel in turn: two CPUs, virtio, the user network, a shared folder (QEMU's by virtiofsd). Every start is
from a fresh copy of the disk and with an empty folder. Commands go to the serial console. Natively
the same commands work on a file and a folder of the host, through its page cache, as the virtual disks
do. More is better in all rows.
"""
import os
import re
import shutil
import subprocess
import sys
import time

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(TOP, "tests", "lib"))
from console import Guest, free_port, make_disk
from harness import Failed

MACHINE = "debian"
MEMORY = "1G"
FIO = ("fio --name=row --filename=%s --size=256M --direct=%d --runtime=%d --time_based --randrepeat=1 "
       "--minimal %s")
# Rows of fio: its options, and the field of its terse output (version 3) that counts.
READ_BW, READ_IOPS, WRITE_BW, WRITE_IOPS = 6, 7, 47, 48
DISK_ROWS = {
    "read4k": ("--rw=randread --bs=4k --ioengine=libaio --iodepth=16", READ_IOPS, "IO/s"),
    "write4k": ("--rw=randwrite --bs=4k --ioengine=libaio --iodepth=16", WRITE_IOPS, "IO/s"),
    "write4k-fsync": ("--rw=randwrite --bs=4k --ioengine=psync --fsync=1", WRITE_IOPS, "IO/s"),
    "read1m": ("--rw=read --bs=1M --ioengine=libaio --iodepth=4", READ_BW, "KiB/s"),
    "write1m": ("--rw=write --bs=1M --ioengine=libaio --iodepth=4", WRITE_BW, "KiB/s"),
    "write1m-fsync": ("--rw=write --bs=1M --ioengine=psync --fsync=1", WRITE_BW, "KiB/s"),
}
NET_ROWS = {"net-out": "", "net-in": "-R"}  # out: from the guest to the host
VIRTIOFSD = ["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"]


def list_rows(share):
    """{row: (unit, "rate", kind, machine)}; `share` is the compiled share.c"""
    rows = {row: (unit, "rate", "disk", MACHINE) for row, (_, _, unit) in DISK_ROWS.items()}
    rows.update({row: ("Mbit/s", "rate", "net", MACHINE) for row in NET_ROWS})
    out = subprocess.run([share, "--list"], capture_output=True, text=True, check=True).stdout
    for line in out.splitlines():
        row, unit = line.split()
        rows[row] = (unit, "rate", "share", MACHINE)
    return rows


def say(name, row, value):
    """Each row takes seconds, and a start of the guest up to a minute."""
    print(f"bench: {row} {name}: {value:.1f}", file=sys.stderr, flush=True)


def find_virtiofsd():
    """None: there is none, or it could not confine itself, which takes root."""
    found = next((path for path in VIRTIOFSD if os.path.exists(path)), None)
    return found if os.geteuid() == 0 else None


class Debian:
    """What all starts of the guest share."""

    def __init__(self, args, work, rows, known):
        self.args, self.work = args, work
        self.kinds = {row: known[row][2] for row in rows}
        self.rows = rows
        self.source = os.path.join(work, "debian.img")
        make_disk(self.source, "--size", "2G", "--hostname", "bench", "--include", "fio,iperf3")
        self.virtiofsd = find_virtiofsd()
        self.has_shares = "share" in self.kinds.values()
        if self.has_shares and not self.virtiofsd:
            print("bench: QEMU gets no shared folder: that takes root, and virtiofsd (in Debian 12 of "
                  "package qemu-system-common)")

    def runners(self):
        """Their names, those that are asked for and installed."""
        names = ["native"] if all(map(shutil.which, ("fio", "iperf3"))) else []
        names += ["tcg"] if shutil.which("qemu-system-x86_64") else []
        names += ["against"] if self.args.against else []
        if self.args.on is not None:
            names = [n for n in names if n in self.args.on.split(",") + ["against"]]
        return names + ["doppel"]

    def command(self, name, disk, folder):
        if name == "tcg":
            command = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2",
                       "-m", MEMORY, "-display", "none", "-serial", "stdio",
                       "-drive", f"file={disk},format=raw,if=none,id=disk,cache=writeback",
                       "-device", "virtio-blk-pci,drive=disk", "-netdev", "user,id=net",
                       "-device", "virtio-net-pci,netdev=net"]
            if self.has_shares and self.virtiofsd:
                command += ["-object", f"memory-backend-memfd,id=ram,size={MEMORY},share=on",
                            "-numa", "node,memdev=ram", "-chardev", f"socket,id=fs,path={folder}.sock",
                            "-device", "vhost-user-fs-pci,chardev=fs,tag=bench,queue-size=1024"]
            return command
        binary = self.args.against if name == "against" else self.args.doppel
        return [binary, "run", "--engine", "bt", "--cpus", "2", "--memory", MEMORY, "--firmware",
                "seabios", "--disk", disk, "--net", "user", "--share", f"{folder},tag=bench"]

    def serve_folder(self, folder):
        """virtiofsd, as doppel's own server caches: names and attributes for a second."""
        path = folder + ".sock"
        server = subprocess.Popen([self.virtiofsd, "--socket-path=" + path, "-o", "source=" + folder,
                                   "-o", "sandbox=chroot", "-o", "cache=auto", "-o", "timeout=1"],
                                  stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                  stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while not os.path.exists(path):
            if server.poll() is not None or time.monotonic() > deadline:
                server.kill()
                raise RuntimeError(f"{self.virtiofsd} did not start")
            time.sleep(0.02)
        return server

    def run(self, name, waits_of):
        """One round: {row: value}, {row: part of the time spent waiting for a CPU}."""
        work = os.path.join(self.work, "round")
        folder = os.path.join(work, "folder")
        os.makedirs(folder)
        server = None
        try:
            if name == "native":
                return self.run_native(work, folder)
            disk = os.path.join(work, "disk")
            subprocess.run(["cp", "--sparse=always", self.source, disk], check=True)
            rows = self.rows
            if name == "tcg" and self.has_shares and self.virtiofsd:
                server = self.serve_folder(folder)
            elif name == "tcg":
                rows = [row for row in rows if self.kinds[row] != "share"]
            shutil.copy(self.args.share, folder)
            return self.run_guest(name, self.command(name, disk, folder), rows, waits_of)
        except (Failed, OSError) as e:
            raise RuntimeError(f"debian under {name}: {e}") from e
        finally:
            if server:
                server.kill()
                server.wait()
            shutil.rmtree(work)

    def run_guest(self, name, command, rows, waits_of):
        kinds = {self.kinds[row] for row in rows}
        values, waited = {}, {}
        with Guest(command) as guest:
            guest.show = lambda text: None
            guest.login()
            # What is read is there before, and not in the guest's memory.
            if "disk" in kinds:
                guest.run("dd if=/dev/urandom of=/root/fio bs=1M count=256 2>/dev/null && sync")
            if "share" in kinds:
                guest.run("mount -t virtiofs bench /mnt && cp /mnt/bench-share /root/share && "
                          "mkdir /mnt/work")
            waits = waits_of(guest.process.pid)
            for row in rows:
                waits.of_row()
                values[row] = self.run_row(row, guest.run, "/root/fio", "/root/share", "/mnt/work")
                waited[row] = waits.of_row()
                say(name, row, values[row])
        return values, waited

    def run_native(self, work, folder):
        def run(command):
            done = subprocess.run(["sh", "-c", command], stdin=subprocess.DEVNULL, capture_output=True,
                                  text=True, check=False)
            if done.returncode != 0:
                raise Failed(f"'{command}': {done.stdout}{done.stderr}")
            return done.stdout

        file = os.path.join(work, "fio")
        if "disk" in self.kinds.values():
            run(f"dd if=/dev/urandom of={file} bs=1M count=256 2>/dev/null && sync {file}")
        values = {}
        for row in self.rows:
            values[row] = self.run_row(row, run, file, self.args.share, folder, is_native=True)
            say("native", row, values[row])
        return values, dict.fromkeys(values, 0.0)

    def run_row(self, row, run, file, share, folder, is_native=False):
        seconds = self.args.seconds
        if row in NET_ROWS:
            return run_net(run, "127.0.0.1" if is_native else "10.0.2.2", seconds, NET_ROWS[row])
        if row in DISK_ROWS:
            options, field, _ = DISK_ROWS[row]
            out = run(FIO % (file, not is_native, seconds, options))
            fields = next(line for line in out.splitlines() if line.startswith("3;")).split(";")
            return float(fields[field])
        # Natively nothing is dropped: that would be everybody's.
        out = run(f"{'' if is_native else 'DROP=1 '}{share} {row} {seconds} {folder}")
        return float(re.search(rf"row {row} (\S+)", out).group(1))


def run_net(run, host, seconds, option):
    port = free_port()
    with subprocess.Popen(["iperf3", "--server", "--one-off", "--forceflush", "--port", str(port)],
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as server:
        try:
            for line in server.stdout:
                if "listening" in line:
                    break
            out = run(f"iperf3 -c {host} -p {port} -t {seconds} -f m {option}")
        finally:
            server.kill()
    return float(re.search(r"([\d.]+) Mbits/sec.*receiver", out).group(1))
