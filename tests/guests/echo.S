/* Boot sector that sends back every byte it gets. */
#include "guest.h"
	.code16
	.globl	_start
_start:
	cli
	send	'A'
again:	receive
	mov	%al, %bl
	mov	$COM1_LSR, %dx
wait:	in	%dx, %al
	test	$LSR_THRE, %al
	jz	wait
	mov	$COM1, %dx
	mov	%bl, %al
	out	%al, %dx
	jmp	again
	end_of_sector
