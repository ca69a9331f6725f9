/* Boot sector that says each byte on the serial port, then on the debug console: 'A', then 'B's,
   slowly enough for any reader. */
#include "guest.h"
	.code16
	.globl	_start
_start:
	cli
	mov	$'A', %bl
next:	mov	$COM1_LSR, %dx
wait:	in	%dx, %al
	test	$LSR_THRE, %al
	jz	wait
	mov	$COM1, %dx
	mov	%bl, %al
	out	%al, %dx
	out	%al, $0xe9
	mov	$'B', %bl
	mov	$0x2000, %cx
pause:	loop	pause
	jmp	next
	end_of_sector
