#!/usr/bin/env bash
# Chromium, for tests that need a real browser. One on the machine is taken; else Debian's package is installed.
#
#   chromium.sh bin   prints where it is
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/machine.sh"

find_chromium() {
    command -v chromium || command -v chromium-browser || command -v google-chrome
}

case ${1:-} in
    bin) find_chromium || { install_packages "a browser" chromium && find_chromium; } ;;
    *) die "usage: chromium.sh bin" ;;
esac
