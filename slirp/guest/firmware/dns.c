/*
 * A query from a random port with a random id; an answer counts only if it comes from the server's
 * port to that port and repeats id and question. Aliases need no second query: the server recurses,
 * and any address of the answer section belongs to the name asked for.
 *
 * Does not do: TCP after truncation, search lists, caching.
 */
#include "dns.h"

#include "lib.h"
#include "net.h"

enum {
    DNS_PORT = 53,
    HEADER_LEN = 12,
    FLAG_RESPONSE = 0x8000, FLAG_RECURSE = 0x0100, RCODE_MASK = 15, RCODE_NO_NAME = 3,
    TYPE_A = 1, TYPE_AAAA = 28, CLASS_IN = 1,
    NAME_MAX = 255, LABEL_MAX = 63,
    QUESTION_MAX = NAME_MAX + 1 + 4,
    TRIES = 4,
};

static struct {
    uint16_t id;
    uint8_t question[QUESTION_MAX];
    uint32_t question_len;
    struct address server;
    enum status status;     /* STATUS_RUNNING until an answer decides */
    struct address address;
} query;

static bool parse_ipv4(const char *text, uint32_t *address)
{
    uint32_t value = 0;
    for (int part = 0; part < 4; part++) {
        uint32_t n = 0;
        int digits = 0;
        for (; *text >= '0' && *text <= '9' && digits < 4; digits++)
            n = n * 10 + (uint32_t)(*text++ - '0');
        if (!digits || n > 255 || (part < 3 && *text++ != '.'))
            return false;
        value = value << 8 | n;
    }
    *address = value;
    return !*text;
}

/* RFC 4291 §2.2, without IPv4 at the end. */
static bool parse_ipv6(const char *text, struct address *address)
{
    uint16_t group[8] = {0};
    uint32_t count = 0, gap = 8;
    if (text[0] == ':' && text[1] == ':')
        gap = 0, text += 2;
    while (*text && count < 8) {
        uint32_t n = 0, digits = 0;
        for (char c = (char)(*text | 0x20); digits < 5; c = (char)(*text | 0x20), digits++) {
            if (*text >= '0' && *text <= '9')
                n = n << 4 | (uint32_t)(*text - '0');
            else if (c >= 'a' && c <= 'f')
                n = n << 4 | (uint32_t)(c - 'a' + 10);
            else
                break;
            text++;
        }
        if (!digits || digits > 4)
            return false;
        group[count++] = (uint16_t)n;
        if (*text == ':' && text[1] == ':' && gap == 8)
            gap = count, text += 2;
        else if (*text == ':' && text[1])
            text++;
        else if (*text)
            return false;
    }
    if (*text || (gap == 8) != (count == 8))
        return false;
    uint8_t octets[16] = {0};
    for (uint32_t i = 0; i < count; i++)
        put16(octets + 2 * (i < gap ? i : 8 - count + i), group[i]);
    for (uint32_t i = 0; i < 4; i++)
        address->word[i] = get32(octets + 4 * i);
    return true;
}

static uint16_t wanted_type(void) { return net.v6 ? TYPE_AAAA : TYPE_A; }

/* The name as labels, the type that we want, class IN. False: not a host name. */
static bool put_question(const char *name)
{
    uint8_t *at = query.question;
    while (*name) {
        uint32_t len = 0;
        while (name[len] && name[len] != '.')
            len++;
        if (!len || len > LABEL_MAX || at + 1 + len > query.question + NAME_MAX - 1)
            return false;
        *at++ = (uint8_t)len;
        memcpy(at, name, len);
        at += len, name += len;
        if (*name == '.')
            name++;
    }
    if (at == query.question)
        return false;
    *at++ = 0;
    put16(at, wanted_type()), put16(at + 2, CLASS_IN);
    query.question_len = (uint32_t)(at + 4 - query.question);
    return true;
}

/* The offset behind a name, compressed or not; 0: it runs out of the message. */
static uint32_t skip_name(const uint8_t *message, uint32_t at, uint32_t len)
{
    while (at < len) {
        uint8_t label = message[at];
        if (!label)
            return at + 1;
        if (label >= 0xc0)
            return at + 2;
        at += 1u + label;
    }
    return 0;
}

static enum status find_address(const uint8_t *message, uint32_t at, uint32_t len)
{
    for (uint32_t left = get16(message + 6); left; left--) {
        at = skip_name(message, at, len);
        if (!at || at + 10 > len)
            break;
        uint32_t data_len = get16(message + at + 8);
        bool is_address = get16(message + at) == wanted_type() && get16(message + at + 2) == CLASS_IN;
        at += 10 + data_len;
        if (at > len)
            break;
        if (is_address && data_len == (net.v6 ? 16 : 4)) {
            query.address = from_ipv4(get32(message + at - 4));
            for (uint32_t i = 0; i < 4 && net.v6; i++)
                query.address.word[i] = get32(message + at - 16 + 4 * i);
            return STATUS_OK;
        }
    }
    return STATUS_NO_NAME;
}

static void dns_input(const struct address *from, uint16_t from_port, const uint8_t *message, uint32_t len)
{
    if (!same(from, &query.server) || from_port != DNS_PORT || len < HEADER_LEN + query.question_len)
        return;
    if (get16(message) != query.id || !(get16(message + 2) & FLAG_RESPONSE) || get16(message + 4) != 1)
        return;
    if (memcmp(message + HEADER_LEN, query.question, query.question_len) != 0)
        return;
    uint32_t rcode = get16(message + 2) & RCODE_MASK;
    if (rcode == RCODE_NO_NAME)
        query.status = STATUS_NO_NAME;
    else if (rcode)
        query.status = STATUS_NO_RESOLVER;
    else
        query.status = find_address(message, HEADER_LEN + query.question_len, len);
}

static void send_query(const struct peer *server, uint16_t port)
{
    uint8_t *message = udp_begin();
    if (!message)
        return;
    put16(message, query.id);
    put16(message + 2, FLAG_RECURSE);
    put16(message + 4, 1);
    memset(message + 6, 0, 6);
    memcpy(message + HEADER_LEN, query.question, query.question_len);
    udp_send(server, port, DNS_PORT, HEADER_LEN + query.question_len);
}

/* A server that fails may do better when asked again; one that says "no such name" will not. */
static enum status ask(const struct peer *server)
{
    uint16_t port = (uint16_t)(49152 + random32() % 16384);
    udp_listen(port, dns_input);
    query.id = (uint16_t)random32();
    query.status = STATUS_RUNNING;
    for (int tries = 0; tries < TRIES && query.status != STATUS_OK; tries++) {
        query.status = STATUS_RUNNING;
        send_query(server, port);
        uint32_t deadline = now + (SECOND << tries);
        while (query.status == STATUS_RUNNING && before(now, deadline) && !udp_unreachable())
            net_step(deadline);
        if (query.status == STATUS_NO_NAME)
            break;
    }
    udp_listen(0, 0);
    return query.status == STATUS_RUNNING ? STATUS_NO_RESOLVER : query.status;
}

enum status dns_resolve(const char *name, struct address *address)
{
    struct peer server;
    uint32_t ipv4;
    if (parse_ipv6(name, address))
        return STATUS_OK;
    if (parse_ipv4(name, &ipv4)) {
        *address = from_ipv4(ipv4);
        return STATUS_OK;
    }
    if (!put_question(name))
        return STATUS_NO_NAME;
    query.server = net.dns;
    if (!is_set(&net.dns) || !net_resolve(&server, &net.dns))
        return STATUS_NO_RESOLVER;
    enum status status = ask(&server);
    *address = query.address;
    return status;
}
