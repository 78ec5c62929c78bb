#!/bin/sh
# Called by cargo in place of rustc for this crate alone, so that its dependencies are those of the tests: adds the
# counters that libFuzzer is guided by. The options are stable (rustc's book, "Codegen options").
exec "$@" -C passes=sancov-module -C llvm-args=-sanitizer-coverage-level=4 \
    -C llvm-args=-sanitizer-coverage-inline-8bit-counters -C llvm-args=-sanitizer-coverage-pc-table \
    -C llvm-args=-sanitizer-coverage-trace-compares -C opt-level=2
