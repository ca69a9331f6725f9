/* Boot sector that waits for a byte, then resets the machine through port 0x92. */
#include "guest.h"
	.code16
	.globl	_start
_start:
	cli
	send	'A'
	receive
	in	$0x92, %al
	or	$1, %al
	out	%al, $0x92
halt:	hlt
	jmp	halt
	end_of_sector
