"""Guest programs of the Unicorn tests, as bytes with their listing (GNU as; ld -Ttext=ADDRESS)."""

from __future__ import annotations

# Linked at 0x7c00. Real mode, 32-bit protected mode (part of it above 1 MiB), then 64-bit mode;
# each writes its letter to port 0x80.
BOOT_SECTOR = bytes.fromhex(
    # 7c00: real mode
    "fa "  # cli
    "31 c0 "  # xor ax,ax
    "8e d8 "  # mov ds,ax
    "8e d0 "  # mov ss,ax
    "bc 00 70 "  # mov sp,0x7000
    "e4 92 "  # in al,0x92
    "0c 02 "  # or al,0x2
    "e6 92 "  # out 0x92,al
    "b0 52 "  # mov al,0x52
    "e6 80 "  # out 0x80,al
    "b8 34 12 "  # mov ax,0x1234
    "8e c0 "  # mov es,ax
    "26 c7 06 10 00 ef be "  # mov WORD PTR es:0x10,0xbeef
    "66 0f 01 16 04 7d "  # lgdtd ds:0x7d04
    "0f 20 c0 "  # mov eax,cr0
    "66 83 c8 01 "  # or eax,0x1
    "0f 22 c0 "  # mov cr0,eax
    "66 ea 38 7c 00 00 08 00 "  # jmp 0x8:0x7c38
    # 7c38: 32-bit protected mode
    "b8 10 00 00 00 "  # mov eax,0x10
    "8e d8 "  # mov ds,eax
    "8e c0 "  # mov es,eax
    "8e d0 "  # mov ss,eax
    "bc 00 90 00 00 "  # mov esp,0x9000
    "b0 50 "  # mov al,0x50
    "e6 80 "  # out 0x80,al
    "be cc 7c 00 00 "  # mov esi,0x7ccc
    "bf 00 00 15 00 "  # mov edi,0x150000
    "b9 18 00 00 00 "  # mov ecx,0x18
    "f3 a4 "  # rep movs BYTE PTR es:[edi],BYTE PTR ds:[esi]
    "b8 00 00 15 00 "  # mov eax,0x150000
    "ff e0 "  # jmp eax
    "c7 05 00 00 02 00 03 10 02 00 "  # mov DWORD PTR ds:0x20000,0x21003
    "c7 05 00 10 02 00 03 20 02 00 "  # mov DWORD PTR ds:0x21000,0x22003
    "c7 05 00 20 02 00 83 00 00 00 "  # mov DWORD PTR ds:0x22000,0x83
    "b8 00 00 02 00 "  # mov eax,0x20000
    "0f 22 d8 "  # mov cr3,eax
    "0f 20 e0 "  # mov eax,cr4
    "0d 20 06 00 00 "  # or eax,0x620
    "0f 22 e0 "  # mov cr4,eax
    "b9 80 00 00 c0 "  # mov ecx,0xc0000080
    "0f 32 "  # rdmsr
    "0d 00 01 00 00 "  # or eax,0x100
    "0f 30 "  # wrmsr
    "0f 20 c0 "  # mov eax,cr0
    "0d 00 00 00 80 "  # or eax,0x80000000
    "0f 22 c0 "  # mov cr0,eax
    "ea b5 7c 00 00 18 00 "  # jmp 0x18:0x7cb5
    # 7cb5: 64-bit mode
    "48 b8 f0 de bc 9a 78 56 34 12 "  # movabs rax,0x123456789abcdef0
    "48 89 04 25 00 30 00 00 "  # mov QWORD PTR ds:0x3000,rax
    "b0 4c "  # mov al,0x4c
    "e6 80 "  # out 0x80,al
    "f4 "  # hlt
    # 7ccc: copied to 0x150000, 32-bit
    "b0 48 "  # mov al,0x48
    "e6 80 "  # out 0x80,al
    "b9 88 13 00 00 "  # mov ecx,0x1388
    "ff 05 00 00 10 00 "  # inc DWORD PTR ds:0x100000
    "e2 f8 "  # loop to the inc
    "b8 64 7c 00 00 "  # mov eax,0x7c64
    "ff e0 "  # jmp eax
    # 7ce4: GDT, 7d04: its limit and address
    "00 00 00 00 00 00 00 00 "
    "ff ff 00 00 00 9b cf 00 "
    "ff ff 00 00 00 93 cf 00 "
    "ff ff 00 00 00 9b af 00 "
    "1f 00 e4 7c 00 00 "
)

# Linked at 0x1000. Takes a 4 GiB ES back to real mode and stores a byte from port 0x60 at 2 MiB.
UNREAL_MODE = bytes.fromhex(
    # 1000: real mode
    "fa "  # cli
    "31 c0 "  # xor ax,ax
    "8e d8 "  # mov ds,ax
    "66 0f 01 16 3a 10 "  # lgdtd ds:0x103a
    "0f 20 c0 "  # mov eax,cr0
    "0c 01 "  # or al,0x1
    "0f 22 c0 "  # mov cr0,eax
    "bb 08 00 "  # mov bx,0x8
    "8e c3 "  # mov es,bx
    "24 fe "  # and al,0xfe
    "0f 22 c0 "  # mov cr0,eax
    "66 bf 00 00 20 00 "  # mov edi,0x200000
    "e4 60 "  # in al,0x60
    "26 67 88 07 "  # mov BYTE PTR es:[edi],al
    "f4 "  # hlt
    # 102a: GDT, 103a: its limit and address
    "00 00 00 00 00 00 00 00 "
    "ff ff 00 00 00 92 cf 00 "
    "0f 00 2a 10 00 00 "
)

# Every instruction but the last is followed by no hlt, yet most slices end behind a byte 0xf4.
FALSE_HALTS_64 = bytes.fromhex(
    "b9 a0 86 01 00"  # mov ecx, 100000
    "b0 f4"  # 1: mov al, 0xf4
    "ff c9"  # dec ecx
    "b0 f4"  # mov al, 0xf4
    "75 f8"  # jnz 1b
    "90"  # nop
    "f4"  # hlt
)

# Adds to a device register for ever: rax counts what the device must have seen.
STORE_TO_DEVICE_64 = bytes.fromhex(
    "89 03"  # 1: mov [rbx], eax
    "48 ff c0"  # inc rax
    "eb f9"  # jmp 1b
)

DIVIDE_BY_ZERO_64 = bytes.fromhex(
    "31 c9"  # xor ecx, ecx
    "f7 f1"  # div ecx
    "f4"  # hlt
)
