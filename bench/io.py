#!/usr/bin/env python3
"""io.py --doppel FILE [--rounds N] [--rows A,B] - disk and network of a Debian guest, beside QEMU's

The same disk of guests/debian, with fio and iperf3 in it, is started under QEMU's translator and under
doppel in turn, each with two CPUs, virtio and the user network. Rows are run on the serial console.
Every round starts from a fresh copy of the disk. Larger is better in all rows.
"""
import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(TOP, "tests", "lib"))
from console import Guest, free_port, make_disk

FIO = ("fio --name=row --filename=/root/fio --size=256M --direct=1 --runtime=%(seconds)d --time_based "
       "--randrepeat=1 --minimal ")
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
ROWS = list(DISK_ROWS) + list(NET_ROWS)


def parse_arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--doppel", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--on", default="tcg,doppel")
    parser.add_argument("--seconds", type=int, default=5, help="of each row")
    args = parser.parse_args()
    args.rows = args.rows.split(",")
    for row in args.rows:
        if row not in ROWS:
            parser.error("there is no row '%s' (choose from %s)" % (row, ", ".join(ROWS)))
    return args


def command_of(args, runner, disk):
    if runner == "doppel":
        return [os.path.abspath(args.doppel), "run", "--engine", "bt", "--cpus", "2", "--memory", "1G",
                "--firmware", "seabios", "--disk", disk, "--net", "user"]
    return ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1G",
            "-display", "none", "-serial", "stdio",
            "-drive", "file=%s,format=raw,if=none,id=disk,cache=writeback" % disk,
            "-device", "virtio-blk-pci,drive=disk", "-netdev", "user,id=net",
            "-device", "virtio-net-pci,netdev=net"]


def run_net(args, guest, option):
    port = free_port()
    with subprocess.Popen(["iperf3", "--server", "--one-off", "--forceflush", "--port", str(port)],
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as server:
        try:
            for line in server.stdout:
                if "listening" in line:
                    break
            out = guest.run("iperf3 -c 10.0.2.2 -p %d -t %d -f m %s" % (port, args.seconds, option))
        finally:
            server.kill()
    return float(re.search(r"([\d.]+) Mbits/sec.*receiver", out).group(1)), "Mbit/s"


def run_row(args, guest, row):
    if row in NET_ROWS:
        return run_net(args, guest, NET_ROWS[row])
    options, field, unit = DISK_ROWS[row]
    out = guest.run(FIO % {"seconds": args.seconds} + options)
    fields = next(line for line in out.splitlines() if line.startswith("3;")).split(";")
    return float(fields[field]), unit


def run_round(args, runner, source, work, results):
    disk = os.path.join(work, "disk")
    subprocess.run(["cp", "--sparse=always", source, disk], check=True)
    with Guest(command_of(args, runner, disk)) as guest:
        guest.show = lambda text: None
        guest.login()
        # files are there before they are read, and not in the guest's memory
        if any(row in DISK_ROWS for row in args.rows):
            guest.run("dd if=/dev/urandom of=/root/fio bs=1M count=256 2>/dev/null && sync")
        for row in args.rows:
            value, unit = run_row(args, guest, row)
            results.setdefault(row, {}).setdefault(runner, []).append(value)
            print("%-14s %-7s %10.0f %s" % (row, runner, value, unit), flush=True)


def report(args, results):
    print("\n%-14s" % "row" + "".join("%12s" % runner for runner in args.on.split(",")) + "   ratio")
    for row in args.rows:
        medians = {runner: statistics.median(values) for runner, values in results[row].items()}
        line = "%-14s" % row + "".join("%12.0f" % value for value in medians.values())
        if {"tcg", "doppel"} <= set(medians) and medians["tcg"] > 0:
            line += "%8.2f" % (medians["doppel"] / medians["tcg"])
        print(line)


def main():
    args = parse_arguments()
    for tool, package in (("qemu-system-x86_64", "qemu-system-x86"), ("iperf3", "iperf3")):
        if not shutil.which(tool):
            sys.exit("io.py: '%s' is missing: apt-get install %s" % (tool, package))
    results = {}
    with tempfile.TemporaryDirectory(prefix="doppel-bench-") as work:
        source = os.path.join(work, "source.img")
        make_disk(source, "--size", "2G", "--hostname", "bench", "--include", "fio,iperf3")
        for _ in range(args.rounds):
            for runner in args.on.split(","):
                run_round(args, runner, source, work, results)
    report(args, results)


main()
