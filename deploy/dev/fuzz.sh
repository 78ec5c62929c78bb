#!/usr/bin/env bash
# Fuzzes what parses bytes from outside or from the store: every target of fuzz/main.rs, or those that are named.
#
#   HEADSTART_FUZZ_SECONDS=10 deploy/dev/fuzz.sh [frame pack manifest index query batch token]
#
# What was found interesting is kept in .dev/fuzz/<target>, so that the next run begins from there. An input that fails
# is written to .dev/fuzz/, and its name is printed: it becomes a test.
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/dev/machine.sh
need_rust
need_cxx

seconds=${HEADSTART_FUZZ_SECONDS:-10}
targets=("$@")
[ $# -gt 0 ] || targets=(frame pack manifest index query batch token)
RUSTC_WORKSPACE_WRAPPER=$PWD/deploy/dev/fuzz-rustc.sh cargo build --locked --features fuzzing --example fuzz
fuzz=$(cd "${CARGO_TARGET_DIR:-target}" && pwd)/debug/examples/fuzz
for target in "${targets[@]}"; do
    corpus=.dev/fuzz/$target
    mkdir -p "$corpus"
    seeds=()
    [ ! -d "fuzz/seeds/$target" ] || seeds=("fuzz/seeds/$target")
    HEADSTART_FUZZ_TARGET=$target "$fuzz" "$corpus" "${seeds[@]}" -max_total_time="$seconds" -timeout=5 \
        -rss_limit_mb=1024 -malloc_limit_mb=512 -max_len=65536 -verbosity=0 -print_final_stats=1 \
        -artifact_prefix=".dev/fuzz/$target-" 2>"$corpus.log" || { tail -40 "$corpus.log"; die "$target: the fuzzer failed"; }
    say "$target: $(sed -n 's/.*number_of_executed_units: *//p' "$corpus.log") inputs, $(find "$corpus" -type f | wc -l) of them kept"
done
