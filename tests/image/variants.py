#!/usr/bin/env python3
"""variants.py EXERCISE DOPPEL [--ops N] [--only TEXT] - images made by qemu-img, in every variant

Each is read back byte for byte, then written at random and compared with a model of what it must
hold; afterwards qemu-img finds no error and no leak in it, and the same contents. Prints the
figures. Exits with 77 (skipped) where there is no qemu-img.
"""
import argparse
import os
import shutil
import subprocess
import sys
import tempfile

MIB = 1 << 20


def parse_arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("exercise")
    parser.add_argument("doppel")
    parser.add_argument("--ops", type=int, default=400)
    parser.add_argument("--only", default="")
    return parser.parse_args()


def call(*command, status=0, env=None):
    result = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, env=env)
    if result.returncode != status:
        raise AssertionError("%s: status %d\n%s" % (" ".join(command), result.returncode,
                                                    result.stdout))
    return result.stdout


class Variant:
    """An image x.qcow2 and model.raw, the contents it must have, in a folder of its own."""

    def __init__(self, name, size=20 * MIB, options="", seed=1):
        self.name, self.size, self.options, self.seed = name, size, options, seed
        self.snapshots = {}

    def random(self, name, size):
        """Data, zeroes and what compresses, in pieces of odd sizes."""
        with open(name, "wb") as out:
            out.truncate(size)
            at, n = 0, self.seed
            while at < size:
                n = (n * 69069 + 12345) & 0xffffffff
                length = 512 * (1 + (n >> 8) % 700)
                kind = (n >> 20) % 4
                out.seek(at)
                if kind == 0:
                    out.write(os.urandom(min(length, size - at)))
                elif kind == 1:
                    out.write((b"doppel %08x " % n * (length // 16 + 1))[:min(length, size - at)])
                at += length

    def make(self):
        self.random("model.raw", self.size)
        self.create(self.size)
        self.fill("model.raw")

    def create(self, size, *more):
        call("qemu-img", "create", "-q", "-f", "qcow2", *more,
             *(["-o", self.options] if self.options else []), "x.qcow2", str(size))

    def fill(self, source):
        call("qemu-img", "convert", "-n", "-f", "raw", "-O", "qcow2", source, "x.qcow2")


class Compressed(Variant):
    def make(self):
        self.random("model.raw", self.size)
        call("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2",
             *(["-o", self.options] if self.options else []), "model.raw", "x.qcow2")


class Chain(Variant):
    """Three images on top of each other, the lowest raw and smaller, the names relative."""

    def __init__(self, name, options="", base_options="", seed=1):
        super().__init__(name, options=options, seed=seed)
        self.base_options = base_options

    def make(self):
        os.mkdir("below")
        self.random("below/base.raw", self.size // 2 + 512 * 3)
        call("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw",
             *(["-o", self.base_options] if self.base_options else []), "below/middle.qcow2",
             str(self.size - 65536 * 3 - 512))
        self.create(self.size, "-b", "below/middle.qcow2", "-F", "qcow2")
        patches = ["-c write -P 17 1M 3M", "-c write -P 18 4099584 1536", "-c write -z 6M 512k",
                   "-c write -P 19 8M 64k"]
        for patch in patches:
            call("qemu-io", "-f", "qcow2", patch, "below/middle.qcow2")
        call("qemu-io", "-f", "qcow2", "-c write -P 20 2M 512", "-c write -z 1100k 300k",
             "x.qcow2")
        call("qemu-img", "convert", "-f", "qcow2", "-O", "raw", "x.qcow2", "model.raw")
        self.sums = [call("sha256sum", name) for name in ("below/base.raw", "below/middle.qcow2")]

    def check(self):
        assert self.sums == [call("sha256sum", name)
                             for name in ("below/base.raw", "below/middle.qcow2")]


class Snapshots(Variant):
    """Two internal snapshots, between which the image changed: they keep what they hold."""

    def make(self):
        super().make()
        for name, pattern in (("one", 33), ("two", 34)):
            call("qemu-img", "snapshot", "-c", name, "x.qcow2")
            call("qemu-io", "-f", "qcow2", "-c write -P %d 3M 2M" % pattern,
                 "-c discard 9M 1M", "x.qcow2")
            self.snapshots[name] = self.digest(name)
        call("qemu-img", "convert", "-f", "qcow2", "-O", "raw", "x.qcow2", "model.raw")

    @staticmethod
    def digest(name):
        call("qemu-img", "convert", "-l", name, "-f", "qcow2", "-O", "raw", "x.qcow2", "s.raw")
        with open("s.raw", "rb") as data:
            return hash(data.read())

    def check(self):
        for name, digest in self.snapshots.items():
            assert self.digest(name) == digest, "snapshot %s has changed" % name


class Resized(Variant):
    def make(self):
        super().make()
        call("qemu-img", "resize", "-q", "x.qcow2", str(self.size * 3))
        call("qemu-img", "resize", "-q", "--shrink", "x.qcow2", str(self.size * 2 - 1536))
        call("qemu-img", "convert", "-f", "qcow2", "-O", "raw", "x.qcow2", "model.raw")


class Bitmap(Variant):
    """A persistent bitmap: out of date once we have written, and no error."""

    def make(self):
        super().make()
        call("qemu-img", "bitmap", "--add", "x.qcow2", "changed")

    def check(self):
        # As the specification says, whoever does not keep bitmaps clears the bit; qemu-img then
        # takes their clusters for leaks, and gives them free.
        call("qemu-img", "check", "-q", "-r", "leaks", "x.qcow2")


def variants():
    yield Variant("default")
    yield Variant("empty-v2", options="compat=0.10")
    for bits in range(9, 22):
        yield Variant("cluster-2^%d" % bits, options="cluster_size=%d" % (1 << bits), seed=bits)
    for bits in (1, 2, 4, 8, 16, 32, 64):
        yield Variant("refcount-%d" % bits, options="refcount_bits=%d" % bits, seed=bits)
    yield Variant("refcount-1-small", options="refcount_bits=1,cluster_size=512")
    yield Variant("refcount-64-small", options="refcount_bits=64,cluster_size=512")
    yield Variant("v2-small", options="compat=0.10,cluster_size=1k")
    yield Variant("lazy", options="lazy_refcounts=on")
    yield Variant("lazy-preallocated", options="lazy_refcounts=on,preallocation=metadata")
    for how in ("metadata", "falloc", "full"):
        yield Variant("preallocation-" + how, options="preallocation=" + how)
    yield Variant("odd-size", size=20 * MIB + 512 * 5)
    yield Variant("large-sparse", size=72 * MIB, options="cluster_size=512")
    for kind in ("zlib", "zstd"):
        for bits in (9, 12, 16, 21):
            yield Compressed("compressed-%s-2^%d" % (kind, bits),
                             options="compression_type=%s,cluster_size=%d" % (kind, 1 << bits))
    yield Compressed("compressed-v2", options="compat=0.10")
    yield Chain("chain")
    yield Chain("chain-v2", options="compat=0.10", base_options="compat=0.10")
    yield Chain("chain-mixed-clusters", options="cluster_size=4k", base_options="cluster_size=1M")
    yield Snapshots("snapshots")
    yield Snapshots("snapshots-v2", options="compat=0.10")
    yield Snapshots("snapshots-small", options="cluster_size=1k,refcount_bits=8")
    yield Resized("resized")
    yield Resized("resized-small", options="cluster_size=512")
    yield Bitmap("bitmap")


def judge(args, variant):
    variant.make()
    size = os.path.getsize("model.raw")
    call(args.exercise, "same", "x.qcow2", "qcow2", "model.raw")
    env = dict(os.environ)
    for seed in (variant.seed, variant.seed + 100):
        call(args.exercise, "run", "x.qcow2", "qcow2", "model.raw", str(seed), str(args.ops),
             env=env)
        env["EXERCISE_CACHE_NONE"] = "1"
    if hasattr(variant, "check"):
        variant.check()
    call("qemu-img", "check", "-q", "x.qcow2")
    call("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", "x.qcow2", "model.raw")
    return size


def main():
    args = parse_arguments()
    args.exercise, args.doppel = os.path.abspath(args.exercise), os.path.abspath(args.doppel)
    if shutil.which("qemu-img") is None or shutil.which("qemu-io") is None:
        print("no qemu-img and qemu-io (package qemu-utils)")
        return 77
    count, total, failed = 0, 0, 0
    for variant in variants():
        if args.only not in variant.name:
            continue
        with tempfile.TemporaryDirectory(prefix="doppel-image-", dir="/var/tmp") as work:
            os.chdir(work)
            try:
                total += judge(args, variant)
            except AssertionError as error:
                failed += 1
                print("%s: %s" % (variant.name, error))
            os.chdir("/")
        count += 1
    print("%d variants, %d MiB, %d failed" % (count, total // MIB, failed))
    return 1 if failed or count == 0 else 0


sys.exit(main())
