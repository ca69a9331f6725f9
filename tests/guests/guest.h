/* What every test guest shares: the serial port. The macros work in 16, 32 and 64-bit code and
   use al and dx. A guest says 'A' once, when it starts, so a second 'A' is a second start. */
#define COM1 0x3f8
#define COM1_IER (COM1 + 1)
#define COM1_LSR (COM1 + 5)
#define LSR_DATA_READY 0x01
#define LSR_THRE 0x20

.macro send char
	mov	$COM1_LSR, %dx
8:	in	%dx, %al
	test	$LSR_THRE, %al
	jz	8b
	mov	$COM1, %dx
	mov	$\char, %al
	out	%al, %dx
.endm

/* Wait for a byte and leave it in al. */
.macro receive
	mov	$COM1_LSR, %dx
8:	in	%dx, %al
	test	$LSR_DATA_READY, %al
	jz	8b
	mov	$COM1, %dx
	in	%dx, %al
.endm

.macro end_of_sector
	.org	510
	.word	0xaa55
.endm
