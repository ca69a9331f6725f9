/* Boot sector that goes to 32-bit protected mode, as the block of QEMU's migration test does, and
   then adds one to a byte of each page from 1 MiB to 4 MiB, and says 'B', for ever. */
#include "guest.h"
	.code16
	.globl	_start
_start:
	cli
	xor	%ax, %ax
	mov	%ax, %ds
	in	$0x92, %al
	or	$2, %al
	out	%al, $0x92
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
	send	'A'
round:	mov	$0x100000, %ebx
page:	incb	(%ebx)
	add	$0x1000, %ebx
	cmp	$0x400000, %ebx
	jne	page
	send	'B'
	jmp	round

	.balign	8
gdt:	.quad	0
	.quad	0x00cf9b000000ffff
	.quad	0x00cf93000000ffff
gdt_pointer:
	.word	. - gdt - 1
	.long	gdt
	end_of_sector
