# What the scripts beside this one need of the machine: messages, packages, free ports, the beginning and the end of a
# process.
# Sourced, not run.
# shellcheck shell=bash

say() { printf '%s\n' "headstart: $*" >&2; }

die() {
    say "$@"
    exit 1
}

has() { command -v "$1" >/dev/null 2>&1; }

can_be_root() { [ "$(id -u)" = 0 ] || has sudo; }

# Runs a command as root: directly, or through sudo.
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# install_packages WHAT PACKAGE...: installs Debian packages; where that can't be done, says that WHAT is wanted.
install_packages() {
    local what=$1
    shift
    has apt-get || die "$what is missing, and only Debian and Ubuntu are set up by themselves: install it, then run this again"
    can_be_root || die "$what is missing: install it as root (apt-get install $*), then run this again"
    say "installing $what ($*)"
    update_packages
    with_packages as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -y -qq --no-install-recommends "$@"
}

# The lists of what can be installed.
update_packages() { with_packages as_root apt-get update -qq; }

# with_packages COMMAND...: runs apt. Tests that run side by side may all miss something, and it sends away whoever comes second.
with_packages() {
    (
        flock 9
        "$@" >/dev/null 9>&-
    ) 9>"${TMPDIR:-/tmp}/headstart-packages.$(id -u).lock"
}

# Cargo, and what some crates build with: a C compiler, and make for the allocator.
need_rust() {
    has cargo || die "cargo is missing. Install Rust 1.88 or newer (rustup is the usual way), then run this again."
    has cc || install_packages "a C compiler" gcc libc6-dev
    has make || install_packages make make
}

# The C++ compiler that libFuzzer is built with.
need_cxx() { has c++ || install_packages "a C++ compiler" g++; }

is_taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# free_port FROM: the first port from there on that nobody listens on.
free_port() {
    local port
    for ((port = $1; port < $1 + 1000; port++)); do
        is_taken "$port" || {
            echo "$port"
            return
        }
    done
    die "no free port between $1 and $port"
}

# is_running PIDFILE WORD: whether that process is alive and still ours, its command line holding WORD.
is_running() {
    [ -s "$1" ] && command_line "$(head -n 1 "$1")" | grep -qF -- "$2"
}

# Bare machines have no ps; those without /proc have it.
command_line() {
    if [ -d /proc/self ]; then
        tr '\0' ' ' 2>/dev/null <"/proc/$1/cmdline"
    else
        ps -ww -o args= -p "$1"
    fi 2>/dev/null
}

# wait_ready PIDFILE ADDRESS LOG: until the service that listens there for operators can serve clients.
wait_ready() {
    local tenths
    for ((tenths = 0; tenths < 600; tenths++)); do
        ! curl -fsS -o /dev/null "http://$2/readyz" 2>/dev/null || return 0
        kill -0 "$(cat "$1")" 2>/dev/null || break
        sleep 0.1
    done
    tail -n 20 "$3" >&2
    die "the service is not ready: see $3"
}

# end_process PIDFILE WORD SECONDS: ends it by its id; past the limit, hard.
end_process() {
    if is_running "$1" "$2"; then
        local pid tenths
        pid=$(head -n 1 "$1")
        kill "$pid"
        for ((tenths = 0; tenths < $3 * 10; tenths++)); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
        if kill -0 "$pid" 2>/dev/null; then
            say "process $pid did not end within $3 s: ending it hard"
            kill -KILL "$pid"
        fi
    fi
    rm -f "$1"
}
