/* 32-bit driver of the virtio-blk device on the first virtio-mmio page, without interrupts: writes
   a number to sector 0, reads it back, says 'B' if it is the same and 'X' if not, and counts on,
   for ever. Registers and rings are those of virtio 1.2. */
#include "guest.h"
#define MMIO	0xd0000000
#define DESC	0x300000
#define AVAIL	0x300100
#define USED	0x300200
#define WRITE_HEADER	0x300300
#define READ_HEADER	0x300310
#define STATUS	0x300400
#define WRITTEN	0x301000
#define READ	0x302000
#define NEXT	1
#define DEVICE_WRITES	2

.macro reg offset value
	movl	$\value, MMIO + \offset
.endm

.macro desc index, address, size, flags, next
	movl	$\address, DESC + 16 * \index
	movl	$\size, DESC + 16 * \index + 8
	movl	$(\flags | (\next << 16)), DESC + 16 * \index + 12
.endm

/* Offer the chain at `head`, notify, and wait until it was used. */
.macro request head
	movzwl	AVAIL + 2, %eax
	mov	%eax, %ebx
	and	$7, %ebx
	movw	$\head, AVAIL + 4(, %ebx, 2)
	incw	%ax
	movw	%ax, AVAIL + 2
	reg	0x050 0
9:	cmpw	%ax, USED + 2
	jne	9b
.endm

	.globl	_start
_start:
	send	'A'
	reg	0x070 0
	reg	0x070 3
	reg	0x024 0			/* features 0..31: FLUSH */
	reg	0x020 0x200
	reg	0x024 1			/* features 32..63: VERSION_1 */
	reg	0x020 1
	reg	0x070 11
	reg	0x030 0
	reg	0x038 8
	reg	0x080 DESC
	reg	0x090 AVAIL
	reg	0x0a0 USED
	reg	0x044 1
	reg	0x070 15
	desc	0, WRITE_HEADER, 16, NEXT, 1
	desc	1, WRITTEN, 512, NEXT, 2
	desc	2, STATUS, 1, DEVICE_WRITES, 0
	desc	3, READ_HEADER, 16, NEXT, 4
	desc	4, READ, 512, (NEXT|DEVICE_WRITES), 5
	desc	5, STATUS+1, 1, DEVICE_WRITES, 0
	movl	$1, WRITE_HEADER	/* OUT; the other header is IN, all zero */
round:	incl	WRITTEN
	movw	$0x7777, STATUS
	request	0
	request	3
	cmpw	$0, STATUS
	jne	wrong
	mov	WRITTEN, %eax
	cmp	%eax, READ
	jne	wrong
	send	'B'
	jmp	round
wrong:	send	'X'
	jmp	round
