/*
 * Entry, trap table, and the two ways out of the program.
 *
 * The image begins with a trap table as a SPARC kernel's does: 16 octets per trap type, at 0x4000.
 * Three entries are used: type 0 (reset, the entry point), 0x14 (interrupt level 4, SCSI) and 0x16
 * (interrupt level 6, Ethernet).
 * The CPU cannot enter it by itself, so the board does, and only while the program is at the `ta`
 * in wait_for_interrupt: it sets %o7 so that a plain `retl` comes back behind the `ta`, and jumps
 * to the table. The handler is thus an ordinary C function, and wait_for_interrupt an ordinary
 * call: no register outlives it that the calling convention does not keep.
 *
 *   ta 0x11    wait; %o0 = microseconds at most
 *   ta 0x12    stop the machine
 *
 * The program is compiled flat (-mflat): there is no window trap to spill register windows.
 */
        .section ".traps", "ax"
        .global _start
_start:                                 ! type 0x00: reset
        ba      reset
         nop
        .org    0x140                   ! type 0x14: interrupt level 4
        ba      esp_interrupt
         nop
        .org    0x160                   ! type 0x16: interrupt level 6
        ba      lance_interrupt
         nop
        .org    0x1000

        .text
reset:
        sethi   %hi(__stack_top), %sp
        or      %sp, %lo(__stack_top), %sp
        sub     %sp, 96, %sp            ! the caller's frame that a C function may write to
        mov     %g0, %fp
        call    main
         nop
        .global halt
halt:
        nop
        ta      0x12
        nop
        ba      halt
         nop

        .global wait_for_interrupt
wait_for_interrupt:
        add     %sp, -96, %sp
        st      %o7, [%sp + 92]
        nop
        ta      0x11
        nop
        ld      [%sp + 92], %o7
        retl
         add    %sp, 96, %sp

        .section .note.GNU-stack, "", @progbits
