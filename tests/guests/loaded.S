/* Real-mode code for `-device loader`: says 'A' and the four bytes that another loader device put
   at 0x500, then halts. */
#include "guest.h"
	.code16
	.globl	_start
_start:
	cli
	xor	%ax, %ax
	mov	%ax, %ds
	send	'A'
	receive
	mov	$0x500, %si
	mov	$4, %cx
	mov	$COM1, %dx
next:	lodsb
	out	%al, %dx
	loop	next
halt:	hlt
	jmp	halt
