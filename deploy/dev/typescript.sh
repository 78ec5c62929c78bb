#!/usr/bin/env bash
# TypeScript, which checks the client that the README shows.
#
#   typescript.sh compile FILE.ts DIR   checks it strictly and writes FILE.js into DIR; installs the compiler if missing
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/machine.sh"
programs=$(dirname "$(dirname "$here")")/.dev/typescript

install_typescript() {
    say "installing TypeScript into $programs"
    # Laid beside under a name of its own and moved at the end, so that a half download is never taken for it.
    local part
    mkdir -p "$(dirname "$programs")"
    part=$(mktemp -d "$programs.XXXXXX")
    npm install --silent --no-audit --no-fund --prefix "$part" typescript@5.9.3 >&2 || die "TypeScript could not be installed: see above"
    rm -rf "$programs"
    mv "$part" "$programs"
}

case ${1:-} in
    compile)
        has npm || install_packages "Node and npm" nodejs npm
        [ -e "$programs/node_modules/typescript" ] || install_typescript
        node "$programs/node_modules/typescript/bin/tsc" --strict --target es2022 --module es2022 \
            --lib es2022,dom,dom.iterable,dom.asynciterable --outDir "$3" "$2"
        ;;
    *) die "usage: typescript.sh compile FILE.ts DIR" ;;
esac
