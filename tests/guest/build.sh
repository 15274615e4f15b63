#!/bin/sh
# build.sh CC OUT GUEST.S - assemble a guest with its runtime and link it into a Multiboot ELF.
# Multiboot kernels are 32-bit ELF files; 64-bit code inside needs 64-bit relocations, so the
# linker makes a 64-bit file whose container is then converted.
set -eu
cc=$1 out=$2 guest=$3
dir=$(dirname "$0")
tmp=$(mktemp -d "$out.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
for src in "$dir/lib/runtime.S" "$guest"; do
    $cc -c -m64 -I"$dir/lib" -o "$tmp/$(basename "$src" .S).o" "$src"
done
ld -m elf_x86_64 -T "$dir/lib/guest.ld" -z max-page-size=4096 -z noexecstack \
    -o "$tmp/linked" "$tmp"/*.o
objcopy -O elf32-i386 "$tmp/linked" "$out"
