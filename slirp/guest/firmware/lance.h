/* Driver of the Am7990 behind LEDMA: whole Ethernet frames in, whole Ethernet frames out. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum {
    ETHERNET_HEADER_LEN = 14,
    FRAME_MIN = 60,     /* bytes without FCS; the chip never pads */
    FRAME_MAX = 1514,
};

typedef void frame_handler(uint8_t *frame, uint32_t len);

/* Rings and buffers as the parameters say, then start the chip. False: no memory or no answer. */
bool lance_init(void);

/* Hand the oldest frame to `handler`, without FCS, contiguous, byte 14 at a multiple of 4; then
 * give its descriptors back to the chip. False: there is none, wait for an interrupt. */
bool lance_receive(frame_handler *handler);

/* Room for a frame to send, byte 14 at a multiple of 4; 0 while the chip owns the whole ring.
 * The same room until lance_transmit(). */
uint8_t *lance_tx_begin(void);
void lance_transmit(uint32_t len);

/* The handler of interrupt level 6: from the trap table, inside wait_for_interrupt(). */
void lance_interrupt(void);
