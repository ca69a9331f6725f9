/* Boot sector that goes from real mode through protected mode to 64-bit mode, on page tables that
   it makes at 0x10000, and then adds one to a byte of each page from 1 MiB to 4 MiB. */
#include "guest.h"
#define PML4 0x10000
#define PDPT 0x11000
#define PD 0x12000
#define EFER 0xc0000080
	.code16
	.globl	_start
_start:
	cli
	xor	%ax, %ax
	mov	%ax, %ds
	lgdtl	gdt_pointer
	mov	%cr0, %eax
	or	$1, %eax
	mov	%eax, %cr0
	ljmpl	$8, $protected
	.code32
protected:
	mov	$16, %ax
	mov	%ax, %ds
	mov	%ax, %es
	mov	%ax, %ss
	cld
	xor	%eax, %eax
	mov	$PML4, %edi
	mov	$0xc00, %ecx
	rep stosl
	movl	$PDPT + 3, PML4
	movl	$PD + 3, PDPT
	movl	$0x000083, PD
	movl	$0x200083, PD + 8
	mov	%cr4, %eax
	or	$0x20, %eax
	mov	%eax, %cr4
	mov	$PML4, %eax
	mov	%eax, %cr3
	mov	$EFER, %ecx
	rdmsr
	or	$0x100, %eax
	wrmsr
	mov	%cr0, %eax
	or	$0x80000000, %eax
	mov	%eax, %cr0
	ljmpl	$24, $long_mode
	.code64
long_mode:
	send	'A'
round:	mov	$0x100000, %rbx
page:	incb	(%rbx)
	add	$0x1000, %rbx
	cmp	$0x400000, %rbx
	jne	page
	send	'B'
	jmp	round

	.balign	8
gdt:	.quad	0
	.quad	0x00cf9b000000ffff
	.quad	0x00cf93000000ffff
	.quad	0x00af9b000000ffff
gdt_pointer:
	.word	. - gdt - 1
	.long	gdt
	end_of_sector
