/* IPv6, ICMPv6, neighbours and routers. Every ICMPv6 message has a checksum over a pseudo header. */
#include "ip6.h"

#include "lance.h"
#include "lib.h"
#include "prom.h"

enum {
    ETHERTYPE_IPV6 = 0x86dd,
    HOP_LIMIT = 64, HOP_LIMIT_NEAR = 255,       /* RFC 4861 §7.1: what comes from further away lies */
    UNREACHABLE = 1, TIME_EXCEEDED = 3, ECHO_REQUEST = 128, ECHO_REPLY = 129,
    ROUTER_SOLICITATION = 133, ROUTER_ADVERTISEMENT = 134,
    NEIGHBOUR_SOLICITATION = 135, NEIGHBOUR_ADVERTISEMENT = 136,
    SOURCE_LINK_ADDRESS = 1, TARGET_LINK_ADDRESS = 2, PREFIX = 3, MTU = 5, RDNSS = 25,
    SOLICITED_OVERRIDE = 0x60, AUTONOMOUS = 0x40,
    RS_LEN = 16, NEIGHBOUR_LEN = 32, RA_HEADER_LEN = 16, PREFIX_LEN = 32, RDNSS_LEN = 24,
    MTU_MIN = 1280,
    TRIES = 4,
};

static const struct address all_routers = {{0xff020000, 0, 0, 2}};

/* -- addresses ------------------------------------------------------------------------------- */

static struct address get_address(const uint8_t *p)
{
    return (struct address){{get32(p), get32(p + 4), get32(p + 8), get32(p + 12)}};
}

static void put_address(uint8_t *p, const struct address *a)
{
    for (int i = 0; i < 4; i++)
        put32(p + 4 * i, a->word[i]);
}

static bool is_group(const struct address *a) { return a->word[0] >> 24 == 0xff; }
static bool is_link_local(const struct address *a) { return a->word[0] >> 22 == 0xfe80 >> 6; }

/* The interface identifier, RFC 2464 §4. */
static struct address with_own_id(uint32_t high, uint32_t low)
{
    const uint8_t *m = net.mac;
    uint32_t first = (uint32_t)(m[0] ^ 2) << 24 | (uint32_t)m[1] << 16 | (uint32_t)m[2] << 8 | 0xff;
    uint32_t second = 0xfe000000 | (uint32_t)m[3] << 16 | (uint32_t)m[4] << 8 | m[5];
    return (struct address){{high, low, first, second}};
}

static struct address solicited_node(const struct address *a)
{
    return (struct address){{0xff020000, 0, 1, 0xff000000 | (a->word[3] & 0xffffff)}};
}

static bool is_on_link(const struct address *a)
{
    return is_link_local(a) || (a->word[0] == net.address.word[0] && a->word[1] == net.address.word[1]);
}

static bool is_own(const struct address *a) { return same(a, &net.address) || same(a, &net.link_local); }

/* The one of our addresses that a packet to there comes from. */
static const struct address *source_for(const struct address *to)
{
    return is_link_local(to) || is_group(to) || !is_set(&net.address) ? &net.link_local : &net.address;
}

/* -- sending --------------------------------------------------------------------------------- */

static void send_limited(const struct peer *to, uint8_t protocol, uint32_t len, uint8_t hop_limit)
{
    uint8_t *frame = lance_tx_begin(), *ip = frame + ETHERNET_HEADER_LEN;
    ethernet_header(frame, to->mac, ETHERTYPE_IPV6);
    put32(ip, 6u << 28);
    put16(ip + 4, len);
    ip[6] = protocol;
    ip[7] = hop_limit;
    put_address(ip + 8, source_for(&to->address));
    put_address(ip + 24, &to->address);
    lance_transmit(ETHERNET_HEADER_LEN + IP6_HEADER_LEN + len);
}

static void ip6_send(const struct peer *to, uint8_t protocol, uint32_t len)
{
    send_limited(to, protocol, len, HOP_LIMIT);
}

/* The message is where ip_begin() has it, but for its checksum. */
static void icmp6_send(const struct peer *to, uint8_t *icmp, uint32_t len, uint8_t hop_limit)
{
    put16(icmp + 2, 0);
    uint32_t sum = pseudo_header_sum(source_for(&to->address), &to->address, PROTOCOL_ICMPV6, len);
    put16(icmp + 2, checksum(sum_octets(icmp, len, sum)));
    send_limited(to, PROTOCOL_ICMPV6, len, hop_limit);
}

static struct peer group(const struct address *a)
{
    struct peer to = {*a, {0x33, 0x33}};        /* RFC 2464 §7 */
    put32(to.mac + 2, a->word[3]);
    return to;
}

static void put_link_address(uint8_t *option, uint8_t type)
{
    option[0] = type;
    option[1] = 1;      /* of eight bytes */
    memcpy(option + 2, net.mac, 6);
}

static void solicit(const struct address *address)
{
    uint8_t *icmp = ip_begin();
    if (!icmp)
        return;
    struct address node = solicited_node(address);
    struct peer to = group(&node);
    put32(icmp, NEIGHBOUR_SOLICITATION << 24);
    put32(icmp + 4, 0);
    put_address(icmp + 8, address);
    put_link_address(icmp + 24, SOURCE_LINK_ADDRESS);
    icmp6_send(&to, icmp, NEIGHBOUR_LEN, HOP_LIMIT_NEAR);
}

static void advertise(const struct peer *to, const struct address *target)
{
    uint8_t *icmp = ip_begin();
    if (!icmp)
        return;
    put32(icmp, (uint32_t)NEIGHBOUR_ADVERTISEMENT << 24);
    put32(icmp + 4, (uint32_t)SOLICITED_OVERRIDE << 24);
    put_address(icmp + 8, target);
    put_link_address(icmp + 24, TARGET_LINK_ADDRESS);
    icmp6_send(to, icmp, NEIGHBOUR_LEN, HOP_LIMIT_NEAR);
}

static void solicit_router(void)
{
    uint8_t *icmp = ip_begin();
    if (!icmp)
        return;
    struct peer to = group(&all_routers);
    put32(icmp, (uint32_t)ROUTER_SOLICITATION << 24);
    put32(icmp + 4, 0);
    put_link_address(icmp + 8, SOURCE_LINK_ADDRESS);
    icmp6_send(&to, icmp, RS_LEN, HOP_LIMIT_NEAR);
}

static void ip6_echo(const struct peer *to, uint8_t *icmp, uint32_t len)
{
    put16(icmp, ECHO_REQUEST << 8);
    icmp6_send(to, icmp, len, HOP_LIMIT);
}

/* -- discovery ------------------------------------------------------------------------------- */

/* The link-layer address among the options, if there is one that can be. */
static const uint8_t *link_address(const uint8_t *option, const uint8_t *end, uint8_t type)
{
    for (; option + 8 <= end && option[1]; option += option[1] * 8u)
        if (option[0] == type)
            return option + 2;
    return 0;
}

static void solicitation_input(const uint8_t *frame, const struct address *from, const uint8_t *icmp,
                               uint32_t len)
{
    struct address target = len < 24 ? (struct address){{0}} : get_address(icmp + 8);
    if (!is_set(from) || !is_set(&target) || !is_own(&target))
        return;
    struct peer to = {*from, {0}};
    const uint8_t *mac = link_address(icmp + 24, icmp + len, SOURCE_LINK_ADDRESS);
    memcpy(to.mac, mac ? mac : frame + 6, 6);
    neighbour_learn(from, to.mac);
    advertise(&to, &target);
}

static void advertisement_input(const uint8_t *frame, const uint8_t *icmp, uint32_t len)
{
    if (len < 24)
        return;
    struct address target = get_address(icmp + 8);
    const uint8_t *mac = link_address(icmp + 24, icmp + len, TARGET_LINK_ADDRESS);
    neighbour_learn(&target, mac ? mac : frame + 6);
}

static void take_option(const uint8_t *option, uint32_t len)
{
    if (option[0] == PREFIX && len == PREFIX_LEN && option[2] == 64 && option[3] & AUTONOMOUS)
        net.address = with_own_id(get32(option + 16), get32(option + 20));
    else if (option[0] == MTU && len == 8 && get32(option + 4) >= MTU_MIN)
        net.mtu = min32(get32(option + 4), MTU_ETHERNET);
    else if (option[0] == RDNSS && len >= RDNSS_LEN)
        net.dns = get_address(option + 8);
}

static void router_input(const uint8_t *frame, const struct address *from, const uint8_t *icmp, uint32_t len)
{
    if (len < RA_HEADER_LEN || !is_link_local(from) || is_set(&net.address))
        return;
    for (uint32_t at = RA_HEADER_LEN; at + 8 <= len && icmp[at + 1]; at += icmp[at + 1] * 8u)
        if (at + icmp[at + 1] * 8u <= len)
            take_option(icmp + at, icmp[at + 1] * 8u);
    const uint8_t *mac = link_address(icmp + RA_HEADER_LEN, icmp + len, SOURCE_LINK_ADDRESS);
    neighbour_learn(from, mac ? mac : frame + 6);
    if (get16(icmp + 6))        /* its lifetime as a router */
        net.router = *from;
}

bool ip6_configure(void)
{
    net.link_local = with_own_id(0xfe800000, 0);
    for (int tries = 0; tries < TRIES && !is_set(&net.address); tries++) {
        solicit_router();
        uint32_t deadline = now + (SECOND << tries);
        while (before(now, deadline) && !is_set(&net.address))
            net_step(deadline);
    }
    return is_set(&net.address);
}

/* -- receiving ------------------------------------------------------------------------------- */

static void echo_reply(const uint8_t *frame, const struct address *from, const uint8_t *icmp, uint32_t len)
{
    uint8_t *reply = ip_begin();
    if (!reply || len > net.mtu - IP6_HEADER_LEN)
        return;
    struct peer to = {*from, {0}};
    memcpy(to.mac, frame + 6, 6);
    memcpy(reply, icmp, len);
    put16(reply, ECHO_REPLY << 8);
    icmp6_send(&to, reply, len, HOP_LIMIT);
}

/* An error quotes the header of what we sent, and as much as there was room for behind it. */
static void icmp6_error(const uint8_t *quoted, uint32_t len)
{
    if (len < IP6_HEADER_LEN + 8)
        return;
    struct address from = get_address(quoted + 8), to = get_address(quoted + 24);
    if (is_own(&from))
        error_about(quoted[6], &to, quoted + IP6_HEADER_LEN);
}

static void icmp6_input(const uint8_t *frame, const struct address *from, const struct address *to,
                        const uint8_t *icmp, uint32_t len, uint8_t hop_limit)
{
    if (len < 8 || checksum(sum_octets(icmp, len, pseudo_header_sum(from, to, PROTOCOL_ICMPV6, len))))
        return;
    bool near = hop_limit == HOP_LIMIT_NEAR;
    switch (icmp[0]) {
    case ECHO_REQUEST: echo_reply(frame, from, icmp, len); break;
    case ECHO_REPLY: echo_answered(icmp); break;
    case UNREACHABLE:
    case TIME_EXCEEDED: icmp6_error(icmp + 8, len - 8); break;
    case NEIGHBOUR_SOLICITATION:
        if (near)
            solicitation_input(frame, from, icmp, len);
        break;
    case NEIGHBOUR_ADVERTISEMENT:
        if (near)
            advertisement_input(frame, icmp, len);
        break;
    case ROUTER_ADVERTISEMENT:
        if (near)
            router_input(frame, from, icmp, len);
        break;
    }
}

static bool is_for_us(const struct address *to)
{
    if (!is_group(to))
        return is_own(to);
    struct address link = solicited_node(&net.link_local), own = solicited_node(&net.address);
    static const struct address all_nodes = {{0xff020000, 0, 0, 1}};
    return same(to, &all_nodes) || same(to, &link) || same(to, &own);
}

static void ip6_input(const uint8_t *frame, uint16_t ethertype, const uint8_t *ip, uint32_t len)
{
    if (ethertype != ETHERTYPE_IPV6)
        return;
    uint32_t payload_len = len < IP6_HEADER_LEN ? 0 : get16(ip + 4);
    if (len < IP6_HEADER_LEN || ip[0] >> 4 != 6 || payload_len > len - IP6_HEADER_LEN)
        return;
    struct address from = get_address(ip + 8), to = get_address(ip + 24);
    const uint8_t *payload = ip + IP6_HEADER_LEN;
    if (!is_for_us(&to) || is_group(&from))
        return;
    if (ip[6] == PROTOCOL_ICMPV6)
        icmp6_input(frame, &from, &to, payload, payload_len, ip[7]);
    else if (ip[6] == PROTOCOL_TCP || ip[6] == PROTOCOL_UDP)
        packet_input(frame, &from, &to, ip[6], payload, payload_len);
}

const struct family ip6_family = {IP6_HEADER_LEN, is_on_link, solicit, ip6_send, ip6_echo, ip6_input};
