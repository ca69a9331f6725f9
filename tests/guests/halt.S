/* Boot sector that halts for good; an 'X' would say that something woke it. */
#include "guest.h"
	.code16
	.globl	_start
_start:
	cli
	send	'A'
halt:	hlt
	send	'X'
	jmp	halt
	end_of_sector
