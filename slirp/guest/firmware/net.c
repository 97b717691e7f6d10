/* Neighbours, IPv4 with ARP and ICMP, UDP. Frames come from lance_receive() with the IP header 4-aligned. */
#include "net.h"

#include "board.h"
#include "console.h"
#include "lance.h"
#include "lib.h"
#include "prom.h"

enum {
    ETHERTYPE_IPV4 = 0x0800, ETHERTYPE_ARP = 0x0806,
    ARP_LEN = 28, ARP_REQUEST = 1, ARP_REPLY = 2,
    NEIGHBOURS = 8,             /* the oldest makes room for a new one */
    RESOLVE_TRIES = 4,
    ECHO_REPLY = 0, UNREACHABLE = 3, ECHO_REQUEST = 8, TIME_EXCEEDED = 11,
    ICMP_HEADER_LEN = 8,
    TTL = 64,
    DONT_FRAGMENT = 0x4000, FRAGMENT_MASK = 0x3fff,     /* offset and more-fragments */
};

struct interface net;
uint32_t now;
const struct peer everybody = {{{0, 0, 0xffff, ADDRESS_BROADCAST}}, {255, 255, 255, 255, 255, 255}};

static const struct transport *tcp;
static const struct family *family;
static struct { struct address address; uint8_t mac[6]; bool valid; } neighbours[NEIGHBOURS];
static struct { uint16_t port; udp_handler *handler; bool unreachable; } udp;
static struct { uint16_t ident, seq; bool answered; } echo;

/* -- neighbours ------------------------------------------------------------------------------ */

void neighbour_learn(const struct address *address, const uint8_t *mac)
{
    static uint32_t oldest;
    uint32_t slot = NEIGHBOURS;
    for (uint32_t i = 0; i < NEIGHBOURS; i++)
        if (neighbours[i].valid && same(&neighbours[i].address, address))
            slot = i;
    if (slot == NEIGHBOURS)
        slot = oldest++ % NEIGHBOURS;
    neighbours[slot].address = *address;
    neighbours[slot].valid = true;
    memcpy(neighbours[slot].mac, mac, 6);
}

static bool neighbour_lookup(const struct address *address, uint8_t *mac)
{
    for (uint32_t i = 0; i < NEIGHBOURS; i++)
        if (neighbours[i].valid && same(&neighbours[i].address, address)) {
            memcpy(mac, neighbours[i].mac, 6);
            return true;
        }
    return false;
}

/* -- Ethernet and ARP ------------------------------------------------------------------------ */

void ethernet_header(uint8_t *frame, const uint8_t *to, uint16_t ethertype)
{
    memcpy(frame, to, 6);
    memcpy(frame + 6, net.mac, 6);
    put16(frame + 12, ethertype);
}

static void arp_send(uint16_t operation, const uint8_t *to_mac, uint32_t to_address)
{
    static const uint8_t ethernet_ipv4[6] = {0, 1, 8, 0, 6, 4};
    uint8_t *frame = lance_tx_begin();
    if (!frame)
        return;
    bool request = operation == ARP_REQUEST;
    ethernet_header(frame, request ? everybody.mac : to_mac, ETHERTYPE_ARP);
    uint8_t *arp = frame + ETHERNET_HEADER_LEN;
    memcpy(arp, ethernet_ipv4, 6);
    put16(arp + 6, operation);
    memcpy(arp + 8, net.mac, 6);
    put32(arp + 14, to_ipv4(&net.address));
    if (request)
        memset(arp + 18, 0, 6);
    else
        memcpy(arp + 18, to_mac, 6);
    put32(arp + 24, to_address);
    lance_transmit(ETHERNET_HEADER_LEN + ARP_LEN);
}

/* RFC 826: learn from whoever speaks to us, answer who asks for us. */
static void arp_input(const uint8_t *arp, uint32_t len)
{
    if (len < ARP_LEN || get32(arp) != 0x00010800 || get16(arp + 4) != 0x0604)
        return;
    if (!is_set(&net.address) || get32(arp + 24) != to_ipv4(&net.address))
        return;
    struct address sender = from_ipv4(get32(arp + 14));
    neighbour_learn(&sender, arp + 8);
    if (get16(arp + 6) == ARP_REQUEST)
        arp_send(ARP_REPLY, arp + 8, get32(arp + 14));
}

static bool ip4_is_on_link(const struct address *address)
{
    return ((to_ipv4(address) ^ to_ipv4(&net.address)) & net.netmask) == 0;
}

static void arp_solicit(const struct address *address) { arp_send(ARP_REQUEST, 0, to_ipv4(address)); }

bool net_resolve(struct peer *peer, const struct address *address)
{
    struct address hop = family->is_on_link(address) ? *address : net.router;
    peer->address = *address;
    if (net.v6 == is_ipv4(address) || !is_set(&hop))
        return false;
    for (int tries = 0; tries < RESOLVE_TRIES; tries++) {
        if (neighbour_lookup(&hop, peer->mac))
            return true;
        family->solicit(&hop);
        for (uint32_t deadline = now + SECOND / 2;
             before(now, deadline) && !neighbour_lookup(&hop, peer->mac);)
            net_step(deadline);
    }
    return neighbour_lookup(&hop, peer->mac);
}

/* -- IPv4 ------------------------------------------------------------------------------------ */

uint32_t sum_octets(const uint8_t *octets, uint32_t len, uint32_t sum)
{
    uint32_t carries = 0;
    if (((uintptr_t)octets & 2) && len >= 2)
        sum += *(const uint16_t *)octets, octets += 2, len -= 2;
    const uint32_t *word = (const uint32_t *)octets;
    for (; len >= 4; len -= 4) {
        uint32_t w = *word++;
        sum += w;
        carries += sum < w;
    }
    sum = (sum >> 16) + (sum & 0xffff) + carries;
    if (len & 2)
        sum += *(const uint16_t *)word;
    if (len & 1)
        sum += (uint32_t)((const uint8_t *)word)[len & 2] << 8;
    return sum;
}

uint16_t checksum(uint32_t sum)
{
    sum = (sum >> 16) + (sum & 0xffff);
    return (uint16_t)~((sum >> 16) + sum);
}

uint32_t pseudo_header_sum(const struct address *from, const struct address *to, uint8_t protocol,
                           uint32_t len)
{
    uint32_t sum = protocol + len;
    for (int i = 0; i < 4; i++)
        sum += (from->word[i] >> 16) + (from->word[i] & 0xffff) + (to->word[i] >> 16) + (to->word[i] & 0xffff);
    return sum;
}

uint32_t ip_header_len(void) { return family->header_len; }

uint8_t *ip_begin(void)
{
    uint8_t *frame = lance_tx_begin();
    return frame ? frame + ETHERNET_HEADER_LEN + ip_header_len() : 0;
}

static void ip4_send(const struct peer *to, uint8_t protocol, uint32_t len)
{
    static uint16_t ident;
    uint8_t *frame = lance_tx_begin(), *ip = frame + ETHERNET_HEADER_LEN;
    ethernet_header(frame, to->mac, ETHERTYPE_IPV4);
    put16(ip, 0x4500);
    put16(ip + 2, IP4_HEADER_LEN + len);
    put16(ip + 4, ident++);
    put16(ip + 6, DONT_FRAGMENT);
    ip[8] = TTL;
    ip[9] = protocol;
    put16(ip + 10, 0);
    put32(ip + 12, to_ipv4(&net.address));
    put32(ip + 16, to_ipv4(&to->address));
    put16(ip + 10, checksum(sum_octets(ip, IP4_HEADER_LEN, 0)));
    lance_transmit(ETHERNET_HEADER_LEN + IP4_HEADER_LEN + len);
}

void ip_send(const struct peer *to, uint8_t protocol, uint32_t len) { family->send(to, protocol, len); }

static bool is_for_us(uint32_t to)
{
    uint32_t own = to_ipv4(&net.address);
    return !is_set(&net.address) || to == own || to == ADDRESS_BROADCAST || to == (own | ~net.netmask);
}

/* -- ICMP ------------------------------------------------------------------------------------ */

static void echo_reply(const uint8_t *frame, const struct address *from, const uint8_t *icmp, uint32_t len)
{
    uint8_t *reply = ip_begin();
    if (!reply || len > net.mtu - IP4_HEADER_LEN)
        return;
    struct peer to = {*from, {0}};
    memcpy(to.mac, frame + 6, 6);
    memcpy(reply, icmp, len);
    put16(reply, ECHO_REPLY << 8);
    put16(reply + 2, 0);
    put16(reply + 2, checksum(sum_octets(reply, len, 0)));
    ip_send(&to, PROTOCOL_ICMP, len);
}

void error_about(uint8_t protocol, const struct address *to, const uint8_t *ports)
{
    if (protocol == PROTOCOL_TCP)
        tcp->unreachable(to, get16(ports), get16(ports + 2));
    if (protocol == PROTOCOL_UDP && get16(ports) == udp.port)
        udp.unreachable = true;
}

/* An error quotes the header of what we sent and 8 bytes after it: whose was it? */
static void icmp_error(const uint8_t *quoted, uint32_t len)
{
    uint32_t header_len = len < IP4_HEADER_LEN ? len : (quoted[0] & 15) * 4u;
    if (len < header_len + 8 || get32(quoted + 12) != to_ipv4(&net.address))
        return;
    struct address to = from_ipv4(get32(quoted + 16));
    error_about(quoted[9], &to, quoted + header_len);
}

void echo_answered(const uint8_t *icmp)
{
    if (get16(icmp + 4) == echo.ident && get16(icmp + 6) == echo.seq)
        echo.answered = true;
}

static void icmp_input(const uint8_t *frame, const struct address *from, const uint8_t *icmp, uint32_t len)
{
    if (len < ICMP_HEADER_LEN || checksum(sum_octets(icmp, len, 0)))
        return;
    switch (icmp[0]) {
    case ECHO_REQUEST:
        echo_reply(frame, from, icmp, len);
        break;
    case ECHO_REPLY:
        echo_answered(icmp);
        break;
    case UNREACHABLE:
    case TIME_EXCEEDED:
        icmp_error(icmp + ICMP_HEADER_LEN, len - ICMP_HEADER_LEN);
        break;
    }
}

static void icmp_echo(const struct peer *to, uint8_t *icmp, uint32_t len)
{
    put16(icmp, ECHO_REQUEST << 8);
    put16(icmp + 2, 0);
    put16(icmp + 2, checksum(sum_octets(icmp, len, 0)));
    ip_send(to, PROTOCOL_ICMP, len);
}

static bool ping_once(const struct peer *peer)
{
    uint8_t *icmp = ip_begin();
    if (!icmp)
        return false;
    echo.seq++;
    echo.answered = false;
    put16(icmp + 4, echo.ident);
    put16(icmp + 6, echo.seq);
    for (uint32_t i = 0; i < PING_PAYLOAD; i++)
        icmp[ECHO_HEADER_LEN + i] = (uint8_t)i;
    family->echo(peer, icmp, ECHO_HEADER_LEN + PING_PAYLOAD);
    uint32_t sent_at = now = clock_us();
    while (!echo.answered && before(now, sent_at + SECOND))
        net_step(sent_at + SECOND);
    RESULT->ping_us = clock_us() - sent_at;
    return echo.answered;
}

uint32_t ping(const struct address *address, uint32_t count)
{
    struct peer peer;
    uint32_t answers = 0;
    if (!net_resolve(&peer, address))
        return 0;
    echo.ident = (uint16_t)random32();
    for (uint32_t i = 0; i < count; i++) {
        RESULT->ping_sent = i + 1;
        if (ping_once(&peer))
            RESULT->ping_received = ++answers;
    }
    return answers;
}

/* -- UDP ------------------------------------------------------------------------------------- */

void udp_listen(uint16_t port, udp_handler *handler)
{
    udp.port = port;
    udp.handler = handler;
    udp.unreachable = false;
}

bool udp_unreachable(void)
{
    bool was = udp.unreachable;
    udp.unreachable = false;
    return was;
}

uint8_t *udp_begin(void)
{
    uint8_t *header = ip_begin();
    return header ? header + UDP_HEADER_LEN : 0;
}

void udp_send(const struct peer *to, uint16_t from_port, uint16_t to_port, uint32_t len)
{
    uint8_t *header = ip_begin();
    len += UDP_HEADER_LEN;
    put16(header, from_port);
    put16(header + 2, to_port);
    put16(header + 4, len);
    put16(header + 6, 0);
    uint32_t sum = pseudo_header_sum(&net.address, &to->address, PROTOCOL_UDP, len);
    uint16_t check = checksum(sum_octets(header, len, sum));
    put16(header + 6, check ? check : 0xffff);
    ip_send(to, PROTOCOL_UDP, len);
}

static void udp_input(const struct address *from, const struct address *to, const uint8_t *header,
                      uint32_t len)
{
    uint32_t udp_len = len < UDP_HEADER_LEN ? 0 : get16(header + 4);
    if (udp_len < UDP_HEADER_LEN || udp_len > len)
        return;
    uint32_t sum = pseudo_header_sum(from, to, PROTOCOL_UDP, udp_len);
    if (!get16(header + 6) ? net.v6 : checksum(sum_octets(header, udp_len, sum)))
        return;     /* RFC 8200 §8.1: IPv6's have one */
    if (udp.handler && get16(header + 2) == udp.port)
        udp.handler(from, get16(header), header + UDP_HEADER_LEN, udp_len - UDP_HEADER_LEN);
}

/* -- dispatch -------------------------------------------------------------------------------- */

static void ip_input(const uint8_t *frame, const uint8_t *ip, uint32_t len)
{
    if (len < IP4_HEADER_LEN || ip[0] >> 4 != 4)
        return;
    uint32_t header_len = (ip[0] & 15) * 4u, total_len = get16(ip + 2);
    if (header_len < IP4_HEADER_LEN || total_len < header_len || total_len > len)
        return;
    if (checksum(sum_octets(ip, header_len, 0)) || (get16(ip + 6) & FRAGMENT_MASK))
        return;
    if (!is_for_us(get32(ip + 16)))
        return;
    struct address from = from_ipv4(get32(ip + 12)), to = from_ipv4(get32(ip + 16));
    packet_input(frame, &from, &to, ip[9], ip + header_len, total_len - header_len);
}

void packet_input(const uint8_t *frame, const struct address *from, const struct address *to,
                  uint8_t protocol, const uint8_t *payload, uint32_t len)
{
    if (protocol == PROTOCOL_TCP && same(to, &net.address))
        tcp->input(from, frame + 6, payload, len);
    else if (protocol == PROTOCOL_UDP)
        udp_input(from, to, payload, len);
    else if (protocol == PROTOCOL_ICMP && same(to, &net.address))
        icmp_input(frame, from, payload, len);
}

static void ip4_family_input(const uint8_t *frame, uint16_t ethertype, const uint8_t *packet, uint32_t len)
{
    if (ethertype == ETHERTYPE_IPV4)
        ip_input(frame, packet, len);
    else if (ethertype == ETHERTYPE_ARP)
        arp_input(packet, len);
}

static const struct family ip4_family = {
    IP4_HEADER_LEN, ip4_is_on_link, arp_solicit, ip4_send, icmp_echo, ip4_family_input,
};

static void ethernet_input(uint8_t *frame, uint32_t len)
{
    family->input(frame, get16(frame + 12), frame + ETHERNET_HEADER_LEN, len - ETHERNET_HEADER_LEN);
}

void net_init(const struct transport *transport, const struct family *ipv6)
{
    tcp = transport;
    family = ipv6 ? ipv6 : &ip4_family;
    net.v6 = ipv6 != 0;
    memcpy(net.mac, PARAMETERS->mac, 6);
    net.mtu = MTU_ETHERNET;
    now = clock_us();
}

void net_step(uint32_t deadline)
{
    if (lance_receive(ethernet_input))
        return;
    deadline = tcp->idle(deadline);
    RESULT->waits++;
    wait_for_interrupt(before(now, deadline) ? deadline - now : 0);
    now = clock_us();
}
