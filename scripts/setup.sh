#!/bin/sh
# Everything Muslin and its tests need on Debian 12 or Ubuntu 24.04.  Quick when nothing is missing.
set -eu
cd "$(dirname "$0")/.."

# command:package; a command that is there needs no package
WANTED="ip:iproute2 bridge:iproute2 nsenter:util-linux nft:nftables sysctl:procps ping:iputils-ping etcd:etcd-server etcdctl:etcd-client openssl:openssl"

# `make runtimes`: container runtimes to test with, 60 MB to fetch and 200 on disk.
if [ -n "${RUNTIMES:-}" ]; then
    WANTED="$WANTED containerd:containerd runc:runc podman:podman busybox:busybox-static /usr/lib/cni/loopback:containernetworking-plugins"
fi

# `make image`: what builds an image, and runs the agent in it.
if [ -n "${IMAGE:-}" ]; then
    WANTED="$WANTED buildah:buildah debootstrap:debootstrap runc:runc"
fi

missing=""
for pair in $WANTED; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair##*:}"
done
find /usr/lib /lib -name 'libnftables.so.1' 2>/dev/null | grep -q . || missing="$missing libnftables1"

# The newest Python of at least 3.11 that can make a venv.
python=""
for candidate in python3 /usr/bin/python3 python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] || missing="$missing python3 python3-venv"

if [ -n "$missing" ]; then
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
        echo "Muslin needs these packages:$missing" >&2
        echo "Install them as root, for example: apt-get install$missing" >&2
        exit 1
    fi
    echo "installing:$missing"
    export DEBIAN_FRONTEND=noninteractive
    log=$(mktemp)
    quiet() { "$@" >"$log" 2>&1 || { cat "$log" >&2; exit 1; }; }
    quiet apt-get update -qq
    # A server package must not start a server here: the tests start their own.
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
        printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
        chmod 755 /usr/sbin/policy-rc.d
    fi
    # shellcheck disable=SC2086 # a list of packages
    quiet apt-get install -y -qq --no-install-recommends $missing
    rm -f "$log"
    python=${python:-/usr/bin/python3}
fi

# Welcome, not needed: the CNI plugin is compiled (else it stays in Python), and a test kills it.
welcome=""
for pair in gcc:gcc musl-gcc:musl-tools strace:strace; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || welcome="$welcome ${pair##*:}"
done
if [ -n "$welcome" ]; then
    # shellcheck disable=SC2086 # a list of packages
    get() { DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $welcome; }
    if [ "$(id -u)" -eq 0 ] && { get || { apt-get update -qq && get; }; } >/dev/null 2>&1; then
        echo "installed:$welcome"
    else
        echo "going on without:$welcome"
    fi
fi

[ -x .venv/bin/python ] || "$python" -m venv .venv
echo "installing the project into .venv"
.venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
touch .venv/.ready
