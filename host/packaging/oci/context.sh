#!/bin/sh
# Makes a build context for the Containerfiles beside this script, from a built binary:
#
#   context.sh BINARY FOLDER
#
# FOLDER gets the Containerfiles with the binary's version, and two archives: `pointsman.tar` with
# the binary, the built-in policies and the folders of the service, and `system.tar` with the
# libraries that the binary needs, root certificates and the user. Needs neither root nor a network.
# The same binary on the same system makes the same archives.
#
# CA_BUNDLE: the root certificates, if they are not where Debian has them.
set -eu
LC_ALL=C
export LC_ALL
# Archives keep the modes.
umask 022

if [ $# -ne 2 ]; then
    echo "usage: $0 BINARY FOLDER" >&2
    exit 64
fi
binary=$1
folder=$2
here=$(cd "$(dirname "$0")" && pwd)
project=$(cd "$here/../../.." && pwd)
certificates=${CA_BUNDLE:-/etc/ssl/certs/ca-certificates.crt}
# As in the Containerfiles.
user=65532

if [ -e "$folder" ]; then
    echo "$0: $folder exists; name a new folder" >&2
    exit 73
fi
if [ ! -r "$certificates" ]; then
    echo "$0: cannot read $certificates; set CA_BUNDLE" >&2
    exit 66
fi
# `pointsman 1.2.3`, perhaps with more.
version=$("$binary" --version | awk 'NR == 1 { print $2 }')

mkdir -p "$folder"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Archives a folder of $work: entries that are given belong to the service's user, others to root.
archive() {
    name=$1
    shift
    options="--format=ustar --sort=name --mtime=@0 --numeric-owner"
    # shellcheck disable=SC2086 # several options
    tar -C "$work/$name" $options --owner=0 --group=0 --no-recursion \
        -cf "$folder/$name.tar" -T "$work/$name.root"
    if [ $# -gt 0 ]; then
        # shellcheck disable=SC2086 # several options
        tar -C "$work/$name" $options --owner=$user --group=$user --no-recursion \
            -rf "$folder/$name.tar" "$@"
    fi
}

# Lists the entries of a folder of $work that are not given.
list() {
    name=$1
    shift
    (cd "$work/$name" && find . -mindepth 1 | sort) >"$work/$name.all"
    printf '%s\n' "$@" >"$work/$name.except"
    grep -Fxv -f "$work/$name.except" "$work/$name.all" >"$work/$name.root"
}

root=$work/pointsman
mkdir -p "$root/usr/bin" "$root/usr/share/pointsman" "$root/usr/share/doc/pointsman" \
    "$root/etc/pointsman" "$root/var/lib/pointsman" "$root/var/cache/pointsman"
install -m 0755 "$binary" "$root/usr/bin/pointsman"
install -m 0644 "$project/LICENSE" "$root/usr/share/doc/pointsman/copyright"
for policy in "$project"/policies/*/; do
    name=$(basename "$policy")
    mkdir -p "$root/usr/share/pointsman/policies/$name"
    install -m 0644 "$policy"/* "$root/usr/share/pointsman/policies/$name"
done
chmod 0700 "$root/var/lib/pointsman" "$root/var/cache/pointsman"
list pointsman ./var/lib/pointsman ./var/cache/pointsman
archive pointsman ./var/lib/pointsman ./var/cache/pointsman

root=$work/system
mkdir -p "$root/etc/ssl/certs" "$root/tmp"
chmod 1777 "$root/tmp"
install -m 0644 "$certificates" "$root/etc/ssl/certs/ca-certificates.crt"
printf '%s\n' 'root:x:0:0:root:/:/usr/sbin/nologin' \
    "pointsman:x:$user:$user:Pointsman:/var/lib/pointsman:/usr/sbin/nologin" >"$root/etc/passwd"
printf '%s\n' 'root:x:0:' "pointsman:x:$user:" >"$root/etc/group"
# The C library resolves names by itself, without modules.
echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
# A static binary has no libraries, and `ldd` fails.
ldd "$binary" 2>/dev/null | awk '$2 == "=>" { print $3 } $1 ~ /^\// { print $1 }' |
    while read -r library; do
        mkdir -p "$root$(dirname "$library")"
        # Without links, which would lead out of the image.
        install -m 0755 "$(readlink -f "$library")" "$root$library"
    done
list system ''
archive system

for file in Containerfile Containerfile.rocm-vllm; do
    sed "s/^ARG VERSION=.*/ARG VERSION=$version/" "$here/$file" >"$folder/$file"
done
