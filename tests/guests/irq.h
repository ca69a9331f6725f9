/* Interrupts in real mode: both 8259s at vectors 0x20 and 0x28, everything masked but MASK. */
.macro set_up_pic mask
	mov	$0x11, %al
	out	%al, $0x20
	out	%al, $0xa0
	mov	$0x20, %al
	out	%al, $0x21
	mov	$0x28, %al
	out	%al, $0xa1
	mov	$4, %al
	out	%al, $0x21
	mov	$2, %al
	out	%al, $0xa1
	mov	$1, %al
	out	%al, $0x21
	out	%al, $0xa1
	mov	$\mask, %al
	out	%al, $0x21
	mov	$0xff, %al
	out	%al, $0xa1
.endm

.macro set_vector number, handler
	movw	$\handler, 4 * \number
	movw	$0, 4 * \number + 2
.endm

.macro end_of_interrupt
	mov	$0x20, %al
	out	%al, $0x20
.endm
