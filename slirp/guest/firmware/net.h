/*
 * ARP, IPv4, ICMP and UDP of one interface, and the one loop that everything waits in.
 *
 * A caller that waits for an answer runs net_step() until the answer is there or its deadline has
 * come; replies to others (ARP, echo) and TCP's timers are looked after on the way.
 *
 * Does not do: IP fragments and options (dropped), more than one interface, multicast.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum {
    PROTOCOL_ICMP = 1, PROTOCOL_TCP = 6, PROTOCOL_UDP = 17,
    IP_HEADER_LEN = 20, UDP_HEADER_LEN = 8,
    MTU_ETHERNET = 1500,
    ADDRESS_BROADCAST = 0xffffffff,
    SECOND = 1000000,           /* microseconds */
};

struct interface {
    uint32_t address, netmask, router, dns, mtu;    /* address 0: not configured yet */
    uint8_t mac[6];
};
extern struct interface net;
extern uint32_t now;            /* microseconds modulo 2^32, read after each wait */

/* Somebody to send to: an address, and the MAC of the next hop on the way there. */
struct peer {
    uint32_t address;
    uint8_t mac[6];
};
extern const struct peer everybody;

/* What TCP hears from the network, which knows no more of it than this. */
struct transport {
    /* A segment; `mac` is where an answer to a stranger would go. */
    void (*input)(uint32_t from, const uint8_t *mac, const uint8_t *segment, uint32_t len);
    /* An ICMP error about a segment of ours. */
    void (*unreachable)(uint32_t to, uint16_t from_port, uint16_t to_port);
    /* No frame waits: send what is due. The earlier of `deadline` and the connection's own. */
    uint32_t (*idle)(uint32_t deadline);
};

void net_init(const struct transport *tcp);

/* Handle one frame; where there is none, wait for an interrupt until the deadline at most. */
void net_step(uint32_t deadline);

/* Find the next hop's MAC, asking with ARP if need be. False: nobody answers. Not for handlers. */
bool net_resolve(struct peer *peer, uint32_t address);

/* Room for the payload of an IPv4 packet, 4-aligned; 0 while the transmitter is full. */
uint8_t *ip_begin(void);
void ip_send(const struct peer *to, uint8_t protocol, uint32_t len);

/* The ones' complement sum of 2-aligned bytes, and a sum folded and inverted. */
uint32_t sum_octets(const uint8_t *octets, uint32_t len, uint32_t initial);
uint16_t checksum(uint32_t sum);
uint32_t pseudo_header_sum(uint32_t from, uint32_t to, uint8_t protocol, uint32_t len);

typedef void udp_handler(uint32_t from, uint16_t from_port, const uint8_t *data, uint32_t len);
void udp_listen(uint16_t port, udp_handler *handler);   /* 0: to nobody; one port at a time */
uint8_t *udp_begin(void);
void udp_send(const struct peer *to, uint16_t from_port, uint16_t to_port, uint32_t len);
/* Did ICMP say that what was sent from the listening port cannot be delivered? Forgets it. */
bool udp_unreachable(void);

/* Echo requests to `address`, a second for each answer; the number of answers. */
uint32_t ping(uint32_t address, uint32_t count);

static inline uint16_t get16(const uint8_t *p) { return (uint16_t)(p[0] << 8 | p[1]); }
static inline uint32_t get32(const uint8_t *p) { return (uint32_t)get16(p) << 16 | get16(p + 2); }
static inline void put16(uint8_t *p, uint32_t v) { p[0] = (uint8_t)(v >> 8), p[1] = (uint8_t)v; }
static inline void put32(uint8_t *p, uint32_t v) { put16(p, v >> 16), put16(p + 2, v); }
