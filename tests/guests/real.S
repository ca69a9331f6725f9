/* Boot sector that stays in real mode: adds one to a byte of each of 64 pages, then says 'B', for
   ever. The pages are 0x20000 to 0x60000. */
#include "guest.h"
	.code16
	.globl	_start
_start:
	cli
	send	'A'
round:	mov	$0x2000, %bx
page:	mov	%bx, %es
	incb	%es:0
	add	$0x100, %bx
	cmp	$0x6000, %bx
	jne	page
	send	'B'
	jmp	round
	end_of_sector
