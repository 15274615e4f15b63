# lib.sh - what the scripts that fetch guests share; sourced, with `set -euo pipefail` in force

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Kernels and other guest files, kept between builds.
guest_dir=${DOPPEL_GUEST_DIR:-$top/build/guest}

die() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# One script at a time works in the cache; or of those that give a name, one of that name.
lock_guest_dir() {
    mkdir -p "$guest_dir"
    exec 9>"$guest_dir/.lock${1:+-$1}"
    flock 9
}

# apt, with package lists of our own when the system's cannot be used.
apt_options=()

apt_update_own() {
    echo "${0##*/}: fetching package lists (apt-get update, into $guest_dir/apt)" >&2
    mkdir -p "$guest_dir/apt/lists/partial" "$guest_dir/apt/cache/archives/partial"
    apt_options=(-o "Dir::State::Lists=$guest_dir/apt/lists" -o "Dir::Cache=$guest_dir/apt/cache"
        -o APT::Sandbox::User=)
    apt-get "${apt_options[@]}" -q update >&2 </dev/null || die "apt-get update failed: is there a network?"
}

# Make `apt-cache` and `apt-get download` know package $1.
apt_know() {
    command -v apt-get >/dev/null || die "no apt-get here: give a kernel with KERNEL=/path/to/vmlinuz"
    if ! apt-cache "${apt_options[@]}" show "$1" >/dev/null 2>&1; then
        apt_update_own
        apt-cache "${apt_options[@]}" show "$1" >/dev/null 2>&1 ||
            die "no package '$1' in the sources of apt"
    fi
}

# Download package $1 and unpack it into directory $2 (made new).
apt_unpack() {
    local tmp
    tmp=$(mktemp -d "$guest_dir/tmp.XXXXXX")
    echo "${0##*/}: fetching $1 (apt-get download; it is unpacked, not installed)" >&2
    if ! (cd "$tmp" && apt-get "${apt_options[@]}" -o APT::Sandbox::User= -q download "$1" >&2 </dev/null); then
        rm -rf "$tmp"
        return 1
    fi
    mkdir "$tmp/root"
    dpkg-deb -x "$tmp"/*.deb "$tmp/root"
    rm -rf "$2"
    mv "$tmp/root" "$2"
    rm -rf "$tmp"
}
