#!/bin/sh
# Run the fast tests in Debian's systems, each in a chroot below .chroots/ that debootstrap makes once.
# SYSTEMS=trixie names others. All mounts are in a namespace of their own, so they end with their process.
# shellcheck disable=SC2016  # single quotes: apt-get and the inner shell put the values in
set -u
cd "$(dirname "$0")/.." || exit 1
status=0

# Make a system, in one step. The mirror is the one that apt uses here, else debootstrap's own.
build() {
    mirror=$(apt-get indextargets --format '$(SITE)' 'Label: Debian' 2>/dev/null | head -n 1)
    mkdir -p .chroots && rm -rf --one-file-system "$2.part" || return 1
    unshare --mount debootstrap --variant=minbase --include=curl,python3,ca-certificates,make \
        "$1" "$2.part" ${mirror:+"$mirror"} >"$2.log" 2>&1 && mv "$2.part" "$2"
}

# Run a command inside a system, with nothing of this environment.
inside() {
    root=$1
    shift
    unshare --mount sh -c 'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec chroot "$0" "$@"' \
        "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 FAST=1 "$@" 2>&1
}

# Put this project into a system and run its fast tests there.
try() {
    rm -rf "$2/project"
    mkdir "$2/project" && cp -R Makefile README.md SKILL.md scripts tests "$2/project" || return 1
    grep -qs localhost "$2/etc/hosts" || echo "127.0.0.1 localhost" >>"$2/etc/hosts"
    versions=$(inside "$2" sh -c 'python3 --version; curl --version' | awk 'NR < 3 {print $1, $2}' | paste -sd ' ' -)
    if log=$(inside "$2" python3 /project/tests/run.py); then
        echo "$1 ($versions): $(printf '%s\n' "$log" | grep -E '^(Ran|OK)' | paste -sd ' ' -)"
    else
        printf '%s\n' "$log" | grep -v ': ok$'
        echo "$1 ($versions): FAILED"
        return 1
    fi
}

for system in ${SYSTEMS:-bullseye bookworm sid}; do
    chroot=.chroots/$system
    if [ "$(id -u)" -ne 0 ]; then
        echo "$system: SKIPPED, a chroot needs root"
    elif ! unshare --mount true 2>/dev/null; then
        echo "$system: SKIPPED, nothing can be mounted here"
    elif [ ! -d "$chroot" ] && ! command -v debootstrap >/dev/null; then
        echo "$system: SKIPPED, debootstrap is not installed"
    elif [ ! -d "$chroot" ] && ! build "$system" "$chroot"; then
        echo "$system: SKIPPED, debootstrap failed: $(tail -n 1 "$chroot.log")"
    else
        try "$system" "$chroot" || status=1
    fi
done
exit $status
