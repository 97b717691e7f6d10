/*
 * ARP, IPv4, ICMP and UDP of one interface, and the one loop that everything waits in. Where the
 * interface speaks IPv6 instead, that `family` stands in the place of the first three.
 *
 * A caller that waits for an answer runs net_step() until the answer is there or its deadline has
 * come; replies to others (ARP, echo) and TCP's timers are looked after on the way.
 *
 * Does not do: IP fragments and options (dropped), more than one interface, multicast.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "address.h"

enum {
    PROTOCOL_ICMP = 1, PROTOCOL_TCP = 6, PROTOCOL_UDP = 17, PROTOCOL_ICMPV6 = 58,
    IP4_HEADER_LEN = 20, IP6_HEADER_LEN = 40, UDP_HEADER_LEN = 8,
    ECHO_HEADER_LEN = 8, PING_PAYLOAD = 56,     /* bytes */
    MTU_ETHERNET = 1500,
    ADDRESS_BROADCAST = 0xffffffff,
    SECOND = 1000000,           /* microseconds */
};

struct interface {
    bool v6;                    /* else IPv4 */
    struct address address, router, dns;            /* address not set: not configured yet */
    struct address link_local;  /* of IPv6 */
    uint32_t netmask, mtu;      /* IPv6's networks have 64 bits here */
    uint8_t mac[6];
};
extern struct interface net;
extern uint32_t now;            /* microseconds modulo 2^32, read after each wait */

/* Somebody to send to: an address, and the MAC of the next hop on the way there. */
struct peer {
    struct address address;
    uint8_t mac[6];
};
extern const struct peer everybody;

/* What TCP hears from the network, which knows no more of it than this. */
struct transport {
    /* A segment; `mac` is where an answer to a stranger would go. */
    void (*input)(const struct address *from, const uint8_t *mac, const uint8_t *segment, uint32_t len);
    /* An ICMP error about a segment of ours. */
    void (*unreachable)(const struct address *to, uint16_t from_port, uint16_t to_port);
    /* No frame waits: send what is due. The earlier of `deadline` and the connection's own. */
    uint32_t (*idle)(uint32_t deadline);
};

/* What is between Ethernet and UDP or TCP. */
struct family {
    uint32_t header_len;
    bool (*is_on_link)(const struct address *address);
    void (*solicit)(const struct address *address);     /* ask who has it */
    void (*send)(const struct peer *to, uint8_t protocol, uint32_t len);
    /* An echo request that lacks its type and checksum. */
    void (*echo)(const struct peer *to, uint8_t *icmp, uint32_t len);
    void (*input)(const uint8_t *frame, uint16_t ethertype, const uint8_t *packet, uint32_t len);
};

/* `ipv6`: what the interface speaks instead of IPv4; 0: IPv4. */
void net_init(const struct transport *tcp, const struct family *ipv6);

/* Handle one frame; where there is none, wait for an interrupt until the deadline at most. */
void net_step(uint32_t deadline);

/* Find the next hop's MAC, asking for it if need be. False: nobody answers. Not for handlers. */
bool net_resolve(struct peer *peer, const struct address *address);

/* Bytes of the IP header, which is the interface's family's. */
uint32_t ip_header_len(void);
/* Room for the payload of a packet, 4-aligned; 0 while the transmitter is full. */
uint8_t *ip_begin(void);
void ip_send(const struct peer *to, uint8_t protocol, uint32_t len);

/* The ones' complement sum of 2-aligned bytes, and a sum folded and inverted. */
uint32_t sum_octets(const uint8_t *octets, uint32_t len, uint32_t initial);
uint16_t checksum(uint32_t sum);
uint32_t pseudo_header_sum(const struct address *from, const struct address *to, uint8_t protocol,
                           uint32_t len);

typedef void udp_handler(const struct address *from, uint16_t from_port, const uint8_t *data,
                         uint32_t len);
void udp_listen(uint16_t port, udp_handler *handler);   /* 0: to nobody; one port at a time */
uint8_t *udp_begin(void);
void udp_send(const struct peer *to, uint16_t from_port, uint16_t to_port, uint32_t len);
/* Did ICMP say that what was sent from the listening port cannot be delivered? Forgets it. */
bool udp_unreachable(void);

/* Echo requests to `address`, a second for each answer; the number of answers. */
uint32_t ping(const struct address *address, uint32_t count);

/* For a family: what is the same for both. */
void ethernet_header(uint8_t *frame, const uint8_t *to, uint16_t ethertype);
void neighbour_learn(const struct address *address, const uint8_t *mac);
void packet_input(const uint8_t *frame, const struct address *from, const struct address *to,
                  uint8_t protocol, const uint8_t *payload, uint32_t len);
void echo_answered(const uint8_t *echo);
void error_about(uint8_t protocol, const struct address *to, const uint8_t *ports);

static inline uint16_t get16(const uint8_t *p) { return (uint16_t)(p[0] << 8 | p[1]); }
static inline uint32_t get32(const uint8_t *p) { return (uint32_t)get16(p) << 16 | get16(p + 2); }
static inline void put16(uint8_t *p, uint32_t v) { p[0] = (uint8_t)(v >> 8), p[1] = (uint8_t)v; }
static inline void put32(uint8_t *p, uint32_t v) { put16(p, v >> 16), put16(p + 2, v); }
