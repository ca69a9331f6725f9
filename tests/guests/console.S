/* Boot sector that speaks on the debug console (port 0xe9): 'A', then the small letters in order,
   for ever, slowly enough for any reader. */
	.code16
	.globl	_start
_start:
	cli
	mov	$'A', %al
	out	%al, $0xe9
first:	mov	$'a', %al
next:	out	%al, $0xe9
	mov	$0x2000, %cx
pause:	loop	pause
	inc	%al
	cmp	$'z', %al
	jbe	next
	jmp	first
	.org	510
	.word	0xaa55
