/* Boot sector that waits for a byte, then has a triple fault: an invalid opcode in protected mode
   with an empty interrupt table. */
#include "guest.h"
	.code16
	.globl	_start
_start:
	cli
	send	'A'
	receive
	xor	%ax, %ax
	mov	%ax, %ds
	lidtl	no_table
	lgdtl	gdt_pointer
	mov	%cr0, %eax
	or	$1, %eax
	mov	%eax, %cr0
	ljmpl	$8, $protected
	.code32
protected:
	ud2

	.balign	8
gdt:	.quad	0
	.quad	0x00cf9b000000ffff
gdt_pointer:
	.word	. - gdt - 1
	.long	gdt
no_table:
	.word	0
	.long	0
	end_of_sector
