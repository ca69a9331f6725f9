/* Boot sector that waits for a byte and writes it to the debug-exit port. */
#include "guest.h"
	.code16
	.globl	_start
_start:
	cli
	send	'A'
	receive
	mov	$0x501, %dx
	out	%al, %dx
halt:	hlt
	jmp	halt
	end_of_sector
