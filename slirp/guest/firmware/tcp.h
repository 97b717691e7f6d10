/*
 * A TCP client (RFC 9293), one connection at a time: send a request, take the answer, close.
 *
 * Does not do: listening, SACK, timestamps, urgent data, congestion control (a request is a few
 * segments), Nagle. Bytes that come out of order are kept, up to TCP_HOLES stretches of them.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "net.h"
#include "prom.h"

enum {
    TCP_WINDOW_MAX = 1 << 18,   /* bytes that may wait out of order */
    TCP_HOLES = 8,
};

/* Take bytes in order, as they come. False: enough, the rest is of no interest. */
typedef bool tcp_consumer(const uint8_t *data, uint32_t len);

/* STATUS_OK once the handshake is through. */
enum status tcp_connect(const struct peer *peer, uint16_t port);

/* Send a request and feed the consumer until it has enough or the peer has no more (STATUS_OK). */
enum status tcp_exchange(const void *request, uint32_t len, tcp_consumer *consume);

void tcp_close(void);   /* FIN, and wait for the peer's, within bounds */
void tcp_abort(void);   /* RST */

extern const struct transport tcp_transport;    /* for net_init() */
