# switch.sh - job of nested.py: a stock kernel with 2 CPUs under kvm, whose engine changes as it works
#
# $irqchip says whether with local APICs in the kernel. Lines of the guest are printed behind the host's uptime.
# The guest fetches /www/data by doppel's network all the while.
ip link set lo up
mkdir /www
dd if=/dev/zero of=/www/data bs=64k count=1 2>/dev/null
httpd -p 127.0.0.1:8000 -h /www
mkfifo /tmp/out
/doppel run --name guest --engine kvm --engines kvm,bt --kvm-irqchip "$irqchip" --cpus 2 --memory 256M \
    --net user --stats --kernel /kernel --initrd /guest.cpio --on-reboot exit \
    --cmdline 'console=ttyS0 loglevel=4 panic=-1 doppel.test=script' </dev/null >/tmp/out &
doppel=$!
(
    while read -r line; do
        read -r now _ </proc/uptime
        echo "at $now $line"
        case $line in
        *started*) : >/tmp/started ;;
        *ended*) : >/tmp/ended ;;
        esac
    done </tmp/out
) &
until [ -e /tmp/started ]; do
    kill -0 $doppel 2>/dev/null || exit 1
    usleep 100000
done
# A number that does not grow with the time that it all takes: a slow host gets ahead, too.
for engine in bt kvm bt kvm bt kvm bt kvm bt kvm bt kvm; do
    if [ ! -e /tmp/ended ]; then
        /doppel engine guest $engine && usleep 500000
    fi
done
wait $doppel
status=$?
wait
exit $status
