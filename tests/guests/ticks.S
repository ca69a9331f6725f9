/* Boot sector that counts the PIT's interrupts (200 Hz) at 0x500 and says 'B' at every fourth;
   needs kernel-irqchip=on. */
#include "guest.h"
#include "irq.h"
#define DIVISOR 5966
#define TICKS 0x500
	.code16
	.globl	_start
_start:
	cli
	xor	%ax, %ax
	mov	%ax, %ds
	mov	%ax, %ss
	mov	$0x7c00, %sp
	movw	$0, TICKS
	set_vector 0x20, tick
	set_up_pic 0xfe
	mov	$0x34, %al
	out	%al, $0x43
	mov	$DIVISOR & 0xff, %al
	out	%al, $0x40
	mov	$DIVISOR >> 8, %al
	out	%al, $0x40
	send	'A'
	sti
idle:	hlt
	jmp	idle

tick:	incw	TICKS
	testw	$3, TICKS
	jnz	done
	send	'B'
done:	end_of_interrupt
	iretw
	end_of_sector
