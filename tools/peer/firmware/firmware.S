/* The last 256 bytes of a ROM for QEMU's microvm: start what lies in RAM as our own VMM would start it.
 *
 * Nothing of the machine is set up. GDT, page tables, boot info and image are in RAM already, where
 * vmm/boot/direct.py puts them; this switches the processor to 64-bit mode and jumps. */
#define GDT 0x1000
#define GDT_LIMIT 47
#define PAGE_TABLES 0x10000
#define BOOT_INFO 0x2000
#define STACK_TOP 0x61000
#define IMAGE 0x100000
#define CODE 0x10
#define DATA 0x18
#define EFER 0xc0000080

    .section .text, "ax"
    .code16
start:
    cli
    lgdtl %cs:(gdt - start + 0xff00)
    mov $0x620, %eax /* PAE, FXSR */
    mov %eax, %cr4
    mov $PAGE_TABLES, %eax
    mov %eax, %cr3
    mov $EFER, %ecx
    mov $0x100, %eax /* LME */
    xor %edx, %edx
    wrmsr
    mov $0x80050033, %eax /* PG, AM, WP, NE, ET, MP, PE */
    mov %eax, %cr0
    ljmpl $CODE, $long_mode

    .code64
long_mode:
    mov $DATA, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov $BOOT_INFO, %edi
    xor %esi, %esi
    mov $STACK_TOP, %esp
    mov $IMAGE, %eax
    jmp *%rax

    .balign 4
gdt:
    .word GDT_LIMIT
    .long GDT

    .org 0xf0 /* where the processor begins */
    .code16
    jmp start
    .org 0x100
    .section .note.GNU-stack, "", @progbits
