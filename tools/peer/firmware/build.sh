#!/bin/sh
# Build the firmware: build.sh [OUTPUT_FOLDER]; without one, refresh the shipped binary.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
${CC:-gcc} -c -m64 "$here/firmware.S" -o "$work/firmware.o"
ld -m elf_x86_64 -Ttext 0xffffff00 --oformat binary -z noexecstack -e 0xffffff00 "$work/firmware.o" -o "$out/firmware.bin"
