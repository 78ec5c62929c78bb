#!/usr/bin/env bash
# nginx, to try deploy/nginx/ with. One on the machine is taken; else Debian's package is unpacked into .dev/, not
# installed: an installed one would start to serve.
#
#   nginx.sh bin   prints where it is
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/machine.sh"
programs=$(dirname "$(dirname "$here")")/.dev/nginx

find_nginx() {
    PATH=$PATH:/usr/sbin:$programs/usr/sbin command -v nginx
}

unpack_nginx() {
    has apt-get || die "nginx is missing, and only Debian and Ubuntu are set up by themselves: install it, then run this again"
    say "unpacking nginx into $programs"
    local part
    mkdir -p "$(dirname "$programs")"
    part=$(mktemp -d "$programs.XXXXXX")
    ! can_be_root || update_packages
    # apt reads and writes as a user of its own.
    chmod 777 "$part"
    (cd "$part" && apt-get download -qq nginx >/dev/null && dpkg -x nginx_*.deb .) || die "nginx could not be unpacked"
    chmod 755 "$part"
    rm -rf "$programs"
    mv "$part" "$programs"
}

case ${1:-} in
    bin) find_nginx || { unpack_nginx && find_nginx; } ;;
    *) die "usage: nginx.sh bin" ;;
esac
