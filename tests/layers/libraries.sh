#!/bin/sh
# libraries.sh DOPPEL - what the program is linked with, and every machine waits for and has in its memory
#
# A library that brings many others along, for what few machines need, is to be loaded by those who
# need it (src/backend/block/nbd_library.h).
set -eu
dynamic=$(readelf -d "$1")
found=$(echo "$dynamic" | sed -n 's/.*(NEEDED).*\[\(.*\)\].*/\1/p')
status=1
for library in $found; do
    case $library in
    libc.so.*) status=0 ;; # it is the list, then
    esac
done
for library in $found; do
    case $library in
    libc.so.* | libdl.so.* | libpthread.so.* | libgcc_s.so.* | ld-linux-x86-64.so.*) ;;
    libZydis.so.* | libslirp.so.* | libjansson.so.* | libz.so.* | libzstd.so.* | liburing.so.*) ;;
    libasan.so.* | libubsan.so.* | libtsan.so.*) ;;
    *)
        echo "doppel is linked with $library"
        status=1
        ;;
    esac
done
exit $status
