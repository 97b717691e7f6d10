/* ARP, IPv4, ICMP, UDP. Frames come from lance_receive() with the IP header 4-aligned. */
#include "net.h"

#include "board.h"
#include "console.h"
#include "lance.h"
#include "lib.h"
#include "prom.h"

enum {
    ETHERTYPE_IPV4 = 0x0800, ETHERTYPE_ARP = 0x0806,
    ARP_LEN = 28, ARP_REQUEST = 1, ARP_REPLY = 2,
    ARP_ENTRIES = 8,            /* the oldest makes room for a new one */
    ARP_TRIES = 4,
    ECHO_REPLY = 0, UNREACHABLE = 3, ECHO_REQUEST = 8, TIME_EXCEEDED = 11,
    ICMP_HEADER_LEN = 8,
    TTL = 64,
    DONT_FRAGMENT = 0x4000, FRAGMENT_MASK = 0x3fff,     /* offset and more-fragments */
    PING_PAYLOAD = 56,          /* bytes */
};

struct interface net;
uint32_t now;
const struct peer everybody = {ADDRESS_BROADCAST, {255, 255, 255, 255, 255, 255}};

static const struct transport *tcp;
static struct { uint32_t address; uint8_t mac[6]; bool valid; } arp_table[ARP_ENTRIES];
static struct { uint16_t port; udp_handler *handler; bool unreachable; } udp;
static struct { uint16_t ident, seq; bool answered; } echo;

/* -- Ethernet and ARP ------------------------------------------------------------------------ */

static void ethernet_header(uint8_t *frame, const uint8_t *to, uint16_t ethertype)
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
    put32(arp + 14, net.address);
    if (request)
        memset(arp + 18, 0, 6);
    else
        memcpy(arp + 18, to_mac, 6);
    put32(arp + 24, to_address);
    lance_transmit(ETHERNET_HEADER_LEN + ARP_LEN);
}

static void arp_learn(uint32_t address, const uint8_t *mac)
{
    static uint32_t oldest;
    uint32_t slot = ARP_ENTRIES;
    for (uint32_t i = 0; i < ARP_ENTRIES; i++)
        if (arp_table[i].valid && arp_table[i].address == address)
            slot = i;
    if (slot == ARP_ENTRIES)
        slot = oldest++ % ARP_ENTRIES;
    arp_table[slot].address = address;
    arp_table[slot].valid = true;
    memcpy(arp_table[slot].mac, mac, 6);
}

static bool arp_lookup(uint32_t address, uint8_t *mac)
{
    for (uint32_t i = 0; i < ARP_ENTRIES; i++)
        if (arp_table[i].valid && arp_table[i].address == address) {
            memcpy(mac, arp_table[i].mac, 6);
            return true;
        }
    return false;
}

/* RFC 826: learn from whoever speaks to us, answer who asks for us. */
static void arp_input(const uint8_t *arp, uint32_t len)
{
    if (len < ARP_LEN || get32(arp) != 0x00010800 || get16(arp + 4) != 0x0604)
        return;
    if (!net.address || get32(arp + 24) != net.address)
        return;
    arp_learn(get32(arp + 14), arp + 8);
    if (get16(arp + 6) == ARP_REQUEST)
        arp_send(ARP_REPLY, arp + 8, get32(arp + 14));
}

bool net_resolve(struct peer *peer, uint32_t address)
{
    bool on_link = ((address ^ net.address) & net.netmask) == 0;
    uint32_t hop = on_link ? address : net.router;
    peer->address = address;
    for (int tries = 0; tries < ARP_TRIES; tries++) {
        if (arp_lookup(hop, peer->mac))
            return true;
        if (!hop)
            return false;
        arp_send(ARP_REQUEST, 0, hop);
        for (uint32_t deadline = now + SECOND / 2; before(now, deadline) && !arp_lookup(hop, peer->mac);)
            net_step(deadline);
    }
    return arp_lookup(hop, peer->mac);
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

uint32_t pseudo_header_sum(uint32_t from, uint32_t to, uint8_t protocol, uint32_t len)
{
    return (from >> 16) + (from & 0xffff) + (to >> 16) + (to & 0xffff) + protocol + len;
}

uint8_t *ip_begin(void)
{
    uint8_t *frame = lance_tx_begin();
    return frame ? frame + ETHERNET_HEADER_LEN + IP_HEADER_LEN : 0;
}

void ip_send(const struct peer *to, uint8_t protocol, uint32_t len)
{
    static uint16_t ident;
    uint8_t *frame = lance_tx_begin(), *ip = frame + ETHERNET_HEADER_LEN;
    ethernet_header(frame, to->mac, ETHERTYPE_IPV4);
    put16(ip, 0x4500);
    put16(ip + 2, IP_HEADER_LEN + len);
    put16(ip + 4, ident++);
    put16(ip + 6, DONT_FRAGMENT);
    ip[8] = TTL;
    ip[9] = protocol;
    put16(ip + 10, 0);
    put32(ip + 12, net.address);
    put32(ip + 16, to->address);
    put16(ip + 10, checksum(sum_octets(ip, IP_HEADER_LEN, 0)));
    lance_transmit(ETHERNET_HEADER_LEN + IP_HEADER_LEN + len);
}

static bool is_for_us(uint32_t to)
{
    return !net.address || to == net.address || to == ADDRESS_BROADCAST ||
           to == (net.address | ~net.netmask);
}

/* -- ICMP ------------------------------------------------------------------------------------ */

static void echo_reply(const uint8_t *frame, uint32_t from, const uint8_t *icmp, uint32_t len)
{
    uint8_t *reply = ip_begin();
    if (!reply || len > net.mtu - IP_HEADER_LEN)
        return;
    struct peer to = {from, {0}};
    memcpy(to.mac, frame + 6, 6);
    memcpy(reply, icmp, len);
    put16(reply, ECHO_REPLY << 8);
    put16(reply + 2, 0);
    put16(reply + 2, checksum(sum_octets(reply, len, 0)));
    ip_send(&to, PROTOCOL_ICMP, len);
}

/* An error quotes the header of what we sent and 8 bytes after it: whose was it? */
static void icmp_error(const uint8_t *quoted, uint32_t len)
{
    uint32_t header_len = len < IP_HEADER_LEN ? len : (quoted[0] & 15) * 4u;
    if (len < header_len + 8 || get32(quoted + 12) != net.address)
        return;
    const uint8_t *ports = quoted + header_len;
    if (quoted[9] == PROTOCOL_TCP)
        tcp->unreachable(get32(quoted + 16), get16(ports), get16(ports + 2));
    if (quoted[9] == PROTOCOL_UDP && get16(ports) == udp.port)
        udp.unreachable = true;
}

static void icmp_input(const uint8_t *frame, uint32_t from, const uint8_t *icmp, uint32_t len)
{
    if (len < ICMP_HEADER_LEN || checksum(sum_octets(icmp, len, 0)))
        return;
    switch (icmp[0]) {
    case ECHO_REQUEST:
        echo_reply(frame, from, icmp, len);
        break;
    case ECHO_REPLY:
        if (get16(icmp + 4) == echo.ident && get16(icmp + 6) == echo.seq)
            echo.answered = true;
        break;
    case UNREACHABLE:
    case TIME_EXCEEDED:
        icmp_error(icmp + ICMP_HEADER_LEN, len - ICMP_HEADER_LEN);
        break;
    }
}

static bool ping_once(const struct peer *peer)
{
    uint8_t *icmp = ip_begin();
    if (!icmp)
        return false;
    echo.seq++;
    echo.answered = false;
    put16(icmp, ECHO_REQUEST << 8);
    put16(icmp + 2, 0);
    put16(icmp + 4, echo.ident);
    put16(icmp + 6, echo.seq);
    for (uint32_t i = 0; i < PING_PAYLOAD; i++)
        icmp[ICMP_HEADER_LEN + i] = (uint8_t)i;
    put16(icmp + 2, checksum(sum_octets(icmp, ICMP_HEADER_LEN + PING_PAYLOAD, 0)));
    ip_send(peer, PROTOCOL_ICMP, ICMP_HEADER_LEN + PING_PAYLOAD);
    uint32_t sent_at = now = clock_us();
    while (!echo.answered && before(now, sent_at + SECOND))
        net_step(sent_at + SECOND);
    RESULT->ping_us = clock_us() - sent_at;
    return echo.answered;
}

uint32_t ping(uint32_t address, uint32_t count)
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
    uint32_t sum = pseudo_header_sum(net.address, to->address, PROTOCOL_UDP, len);
    uint16_t check = checksum(sum_octets(header, len, sum));
    put16(header + 6, check ? check : 0xffff);
    ip_send(to, PROTOCOL_UDP, len);
}

static void udp_input(uint32_t from, uint32_t to, const uint8_t *header, uint32_t len)
{
    uint32_t udp_len = len < UDP_HEADER_LEN ? 0 : get16(header + 4);
    if (udp_len < UDP_HEADER_LEN || udp_len > len)
        return;
    uint32_t sum = pseudo_header_sum(from, to, PROTOCOL_UDP, udp_len);
    if (get16(header + 6) && checksum(sum_octets(header, udp_len, sum)))
        return;
    if (udp.handler && get16(header + 2) == udp.port)
        udp.handler(from, get16(header), header + UDP_HEADER_LEN, udp_len - UDP_HEADER_LEN);
}

/* -- dispatch -------------------------------------------------------------------------------- */

static void ip_input(const uint8_t *frame, const uint8_t *ip, uint32_t len)
{
    if (len < IP_HEADER_LEN || ip[0] >> 4 != 4)
        return;
    uint32_t header_len = (ip[0] & 15) * 4u, total_len = get16(ip + 2);
    if (header_len < IP_HEADER_LEN || total_len < header_len || total_len > len)
        return;
    if (checksum(sum_octets(ip, header_len, 0)) || (get16(ip + 6) & FRAGMENT_MASK))
        return;
    uint32_t from = get32(ip + 12), to = get32(ip + 16);
    if (!is_for_us(to))
        return;
    const uint8_t *payload = ip + header_len;
    uint32_t payload_len = total_len - header_len;
    if (ip[9] == PROTOCOL_TCP && to == net.address)
        tcp->input(from, frame + 6, payload, payload_len);
    else if (ip[9] == PROTOCOL_UDP)
        udp_input(from, to, payload, payload_len);
    else if (ip[9] == PROTOCOL_ICMP && to == net.address)
        icmp_input(frame, from, payload, payload_len);
}

static void ethernet_input(uint8_t *frame, uint32_t len)
{
    const uint8_t *payload = frame + ETHERNET_HEADER_LEN;
    uint16_t ethertype = get16(frame + 12);
    if (ethertype == ETHERTYPE_IPV4)
        ip_input(frame, payload, len - ETHERNET_HEADER_LEN);
    else if (ethertype == ETHERTYPE_ARP)
        arp_input(payload, len - ETHERNET_HEADER_LEN);
}

void net_init(const struct transport *transport)
{
    tcp = transport;
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
