/*
 * DISCOVER, OFFER, REQUEST, ACK, with the retransmissions of RFC 2131 §4.1 shortened to suit a
 * network inside a process. The client has no address, so it asks for nothing by unicast, and
 * takes answers that come by unicast to the address on offer.
 */
#include "dhcp.h"

#include "console.h"
#include "lib.h"
#include "net.h"
#include "prom.h"

enum {
    SERVER_PORT = 67, CLIENT_PORT = 68,
    FIXED_LEN = 236, COOKIE = 0x63825363, MESSAGE_LEN_MIN = 300,
    DISCOVER = 1, OFFER = 2, REQUEST = 3, ACK = 5, NAK = 6,
    OPTION_PAD = 0, OPTION_NETMASK = 1, OPTION_ROUTER = 3, OPTION_DNS = 6, OPTION_HOST_NAME = 12,
    OPTION_MTU = 26, OPTION_REQUESTED = 50, OPTION_LEASE = 51, OPTION_TYPE = 53, OPTION_SERVER = 54,
    OPTION_PARAMETERS = 55, OPTION_MAX_SIZE = 57, OPTION_CLIENT_ID = 61, OPTION_END = 255,
    TRIES = 5,
    MTU_MIN = 576,
};

struct answer {
    uint32_t type;      /* 0: none yet */
    uint32_t address, netmask, router, dns, server, lease, mtu;
};

static uint32_t xid;
static struct answer answer;

static void take_option(struct answer *a, uint8_t code, const uint8_t *value, uint32_t len)
{
    if (code == OPTION_TYPE && len >= 1)
        a->type = value[0];
    if (code == OPTION_MTU && len >= 2)
        a->mtu = get16(value);
    if (len < 4)
        return;
    switch (code) {
    case OPTION_NETMASK: a->netmask = get32(value); break;
    case OPTION_ROUTER: a->router = get32(value); break;
    case OPTION_DNS: a->dns = get32(value); break;
    case OPTION_LEASE: a->lease = get32(value); break;
    case OPTION_SERVER: a->server = get32(value); break;
    }
}

static void dhcp_input(const struct address *from, uint16_t from_port, const uint8_t *message, uint32_t len)
{
    (void)from;
    if (from_port != SERVER_PORT || len < FIXED_LEN + 4 || message[0] != 2)
        return;
    if (get32(message + 4) != xid || get32(message + FIXED_LEN) != COOKIE)
        return;
    if (memcmp(message + 28, net.mac, 6) != 0)
        return;
    struct answer a = {.address = get32(message + 16)};
    for (uint32_t i = FIXED_LEN + 4; i < len && message[i] != OPTION_END;) {
        if (message[i] == OPTION_PAD) {
            i++;
            continue;
        }
        if (i + 2 > len || i + 2 + message[i + 1] > len)
            return;
        take_option(&a, message[i], message + i + 2, message[i + 1]);
        i += 2u + message[i + 1];
    }
    answer = a;
}

static uint8_t *put_option(uint8_t *at, uint8_t code, const void *value, uint32_t len)
{
    *at++ = code;
    *at++ = (uint8_t)len;
    memcpy(at, value, len);
    return at + len;
}

static uint8_t *put_option32(uint8_t *at, uint8_t code, uint32_t value)
{
    return put_option(at, code, &value, 4);
}

static void dhcp_send(uint8_t type, const struct answer *offer)
{
    static const uint8_t wanted[] = {
        OPTION_NETMASK, OPTION_ROUTER, OPTION_DNS, OPTION_MTU, OPTION_LEASE,
    };
    static const char host_name[] = {'s', 'p', 'a', 'r', 'c'};
    uint8_t *message = udp_begin();
    if (!message)
        return;
    memset(message, 0, MESSAGE_LEN_MIN);
    put32(message, 0x01010600);     /* BOOTREQUEST, Ethernet, 6 bytes, no hops */
    put32(message + 4, xid);
    memcpy(message + 28, net.mac, 6);
    put32(message + FIXED_LEN, COOKIE);
    uint8_t client_id[7] = {1};
    memcpy(client_id + 1, net.mac, 6);
    uint8_t *at = put_option(message + FIXED_LEN + 4, OPTION_TYPE, &type, 1);
    at = put_option(at, OPTION_CLIENT_ID, client_id, sizeof client_id);
    if (offer) {
        at = put_option32(at, OPTION_REQUESTED, offer->address);
        at = put_option32(at, OPTION_SERVER, offer->server);
    }
    static const uint8_t max_size[2] = {MTU_ETHERNET >> 8, MTU_ETHERNET & 255};
    at = put_option(at, OPTION_MAX_SIZE, max_size, sizeof max_size);
    at = put_option(at, OPTION_HOST_NAME, host_name, sizeof host_name);
    at = put_option(at, OPTION_PARAMETERS, wanted, sizeof wanted);
    *at++ = OPTION_END;
    udp_send(&everybody, CLIENT_PORT, SERVER_PORT, max32((uint32_t)(at - message), MESSAGE_LEN_MIN));
}

/* Send until an answer of the wanted type comes; NAK is an answer as well. */
static bool ask(uint8_t type, const struct answer *offer, uint32_t wanted)
{
    for (int tries = 0; tries < TRIES; tries++) {
        answer.type = 0;
        dhcp_send(type, offer);
        uint32_t deadline = now + (SECOND << tries);
        while (before(now, deadline)) {
            net_step(deadline);
            if (answer.type == wanted && answer.address && (wanted != OFFER || answer.server))
                return true;
            if (answer.type == NAK && wanted == ACK)
                return false;
        }
    }
    return false;
}

static void configure(const struct answer *a)
{
    net.address = from_ipv4(a->address);
    net.netmask = a->netmask ? a->netmask : 0xffffff00;
    net.router = from_ipv4(a->router);
    net.dns = from_ipv4(a->dns);
    if (a->mtu >= MTU_MIN && a->mtu < MTU_ETHERNET)
        net.mtu = a->mtu;
    RESULT->lease_seconds = a->lease;
}

bool dhcp_configure(void)
{
    bool leased = false;
    udp_listen(CLIENT_PORT, dhcp_input);
    for (int tries = 0; tries < TRIES && !leased; tries++) {
        xid = random32();
        if (!ask(DISCOVER, 0, OFFER))
            break;
        struct answer offer = answer;
        leased = ask(REQUEST, &offer, ACK);
    }
    udp_listen(0, 0);
    if (leased)
        configure(&answer);
    return leased;
}
