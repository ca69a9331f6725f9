/* Entered in 64-bit or flat 32-bit mode, as a flat binary or an ELF file: adds one to a byte of
   each of PAGES pages from START on, then says 'B', for ever. */
#include "guest.h"
#ifdef __x86_64__
#define COUNT %rcx
#define PAGE %rbx
#define LOAD movabs
#else
#define COUNT %ecx
#define PAGE %ebx
#define LOAD mov
#endif
	.globl	_start
_start:
	send	'A'
round:	LOAD	$START, PAGE
	mov	$PAGES, COUNT
page:	incb	(PAGE)
	add	$0x1000, PAGE
	dec	COUNT
	jnz	page
	send	'B'
	jmp	round
