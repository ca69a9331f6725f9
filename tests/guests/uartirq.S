/* Boot sector that sends back every byte it gets, from the serial port's interrupt (IRQ 4); needs
   kernel-irqchip=on. */
#include "guest.h"
#include "irq.h"
	.code16
	.globl	_start
_start:
	cli
	xor	%ax, %ax
	mov	%ax, %ds
	mov	%ax, %ss
	mov	$0x7c00, %sp
	set_vector 0x24, received
	set_up_pic 0xef
	mov	$COM1 + 2, %dx
	mov	$1, %al
	out	%al, %dx
	mov	$COM1_IER, %dx
	out	%al, %dx
	send	'A'
	sti
idle:	hlt
	jmp	idle

received:
	mov	$COM1_LSR, %dx
	in	%dx, %al
	test	$LSR_DATA_READY, %al
	jz	done
	mov	$COM1, %dx
	in	%dx, %al
	mov	%al, %bl
	mov	$COM1_LSR, %dx
wait:	in	%dx, %al
	test	$LSR_THRE, %al
	jz	wait
	mov	$COM1, %dx
	mov	%bl, %al
	out	%al, %dx
	jmp	received
done:	end_of_interrupt
	iretw
	end_of_sector
