/* Entry of the built-in guest. The VMM enters here in 64-bit mode, every vCPU at once:
 * rdi = boot info, rsi = vCPU index, rsp = top of this vCPU's stack. */
    .globl start
    .section .text.start, "ax"
start:
    cld
    call guest_main
0:  cli
    hlt
    jmp 0b
    .section .note.GNU-stack, "", @progbits
