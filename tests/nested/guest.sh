# guest.sh - /script of the guest that switch.sh starts: sums on every CPU, and the network at work beside them
paravirt
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
fetch() {
    until [ -e /tmp/enough ]; do
        wget -q -O - http://10.0.2.2:8000/data | sha256sum
        usleep 200000
    done | sort | uniq -c >/tmp/fetching
    mv /tmp/fetching /tmp/fetched
}
# no child of ours, for which sum would wait
(fetch &)
sum
: >/tmp/enough
until [ -e /tmp/fetched ]; do usleep 100000; done
say "fetched $(tr -s ' ' </tmp/fetched)"
