#!/bin/sh
# Build the guest: build.sh [OUTPUT_FOLDER]; without one, refresh the shipped ELF and its record.
# The bytes depend on the compiler and linker only, not on the folder or the time.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here}
cd "$here"
${CC:-gcc} -std=gnu11 -O2 -Wall -Wextra -Werror -m64 -march=x86-64 -ffreestanding -nostdlib -static \
    -mno-sse -mno-mmx -mgeneral-regs-only -mno-red-zone \
    -fno-pic -fno-pie -no-pie -fcf-protection=none -fno-stack-protector \
    -fno-asynchronous-unwind-tables -fno-tree-vectorize -fno-builtin \
    -fno-strict-aliasing -fno-tree-loop-distribute-patterns \
    -Wl,--build-id=none -Wl,-T,guest.ld -Wl,-z,max-page-size=4096 -Wl,-z,noexecstack -Wl,-s \
    -o "$out/guest.elf" start.S guest.c cmdline.c \
    net_virtio.c net_input.c net_udp.c net_flow.c net_tcp.c net_tcp_out.c net_stream.c net_wire.c
{
    echo "sha256 $(sha256sum "$out/guest.elf" | cut -d' ' -f1)"
    echo "gcc $(${CC:-gcc} --version | head -n 1)"
    echo "ld $(ld --version | head -n 1)"
} >"$out/guest.record"
