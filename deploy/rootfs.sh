#!/bin/sh
# Everything the container image holds, and nothing else: the binary, the libraries it is linked with, a user, the
# certificates of public authorities, an empty spool. No shell, no package manager.
#
#   rootfs.sh BINARY DIR
set -eu
binary=$1
root=$2

install -D -m 755 "$binary" "$root/usr/local/bin/headstart"
# Libraries keep the paths they are found at, the loader among them.
ldd "$binary" | grep -o '/[^ ]*' | while read -r library; do
    install -D "$(readlink -f "$library")" "$root$library"
done
install -D -m 644 /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
# A number of its own, so that no user of the host is meant; names are for those who look.
printf 'headstart:x:65532:65532::/nonexistent:/nonexistent\n' >"$root/etc/passwd"
printf 'headstart:x:65532:\n' >"$root/etc/group"
mkdir -p "$root/var/spool/headstart" "$root/etc/headstart"
chmod 700 "$root/var/spool/headstart"
