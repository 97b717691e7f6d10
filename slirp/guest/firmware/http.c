/*
 * GET with Host, and a body that ends by Content-Length, by its last chunk, or with the connection.
 *
 * The response is parsed as it comes, in pieces of any length: lines are put together in `line`
 * (what is beyond its end is dropped; nothing that matters is that long), body bytes go to
 * SHA-256 where they lie.
 *
 * Does not do: TLS, content codings (asks for identity), redirects (reported), authentication,
 * user names in URLs.
 */
#include "http.h"

#include "board.h"
#include "console.h"
#include "dns.h"
#include "lib.h"
#include "net.h"
#include "sha256.h"
#include "tcp.h"

enum {
    HTTP_PORT = 80,
    LINE_MAX = 512,
    HEADERS_MAX = 65536,        /* bytes of status line, fields and trailer; more is an error */
    REQUEST_MAX = PROM_URL_LEN + 512,
    OK = 200,
};

enum state {
    STATUS_LINE, FIELDS, BODY_LENGTH, BODY_TO_END, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER, DONE, BAD,
};

static const uint64_t UNKNOWN = ~0ull;

static struct {
    char host[PROM_HOST_LEN];   /* without port */
    char authority[PROM_HOST_LEN];
    uint16_t port;
    const char *path;           /* with its query; "" means "/" */
} url;

static struct {
    enum state state;
    char line[LINE_MAX];
    uint32_t line_len, header_octets;
    uint32_t code;
    bool chunked;
    uint64_t length, left;      /* of the body; of the body or chunk */
    uint64_t taken;
    http_sink *sink;
    struct sha256 sha256;
} response;

/* -- URL ------------------------------------------------------------------------------------- */

static bool parse_port(const char *text)
{
    uint32_t port = 0;
    for (; *text >= '0' && *text <= '9' && port < 65536; text++)
        port = port * 10 + (uint32_t)(*text - '0');
    url.port = (uint16_t)port;
    return !*text && port > 0 && port < 65536;
}

enum status http_parse_url(const char *text)
{
    if (!starts_with_nocase(text, "http://"))
        return STATUS_BAD_URL;
    text += 7;
    uint32_t len = 0, host_len = 0;
    for (; text[len] && text[len] != '/' && text[len] != '?' && text[len] != '#'; len++) {
        if (len + 1 >= PROM_HOST_LEN || text[len] == '@' || text[len] <= ' ')
            return STATUS_BAD_URL;
        url.authority[len] = text[len];
    }
    url.authority[len] = 0;
    const char *host = url.authority;
    if (*host == '[') {         /* an IPv6 address, RFC 3986 §3.2.2 */
        while (host[host_len] && host[host_len] != ']')
            host_len++;
        if (!host[host_len])
            return STATUS_BAD_URL;
        host++, host_len--;
    } else {
        while (host[host_len] && host[host_len] != ':')
            host_len++;
    }
    memcpy(url.host, host, host_len);
    url.host[host_len] = 0;
    const char *rest = host + host_len + (host != url.authority);       /* behind a bracket */
    url.port = HTTP_PORT;
    if (!host_len || (*rest && (*rest != ':' || !parse_port(rest + 1))))
        return STATUS_BAD_URL;
    url.path = text + len;
    for (const char *p = url.path; *p; p++)
        if (*p <= ' ')
            return STATUS_BAD_URL;
    return STATUS_OK;
}

static char *append(char *at, const char *text)
{
    while (*text && *text != '#')
        *at++ = *text++;
    return at;
}

static uint32_t put_request(char *request)
{
    char *at = append(request, "GET ");
    at = append(at, *url.path == '/' ? "" : "/");
    at = append(at, url.path);
    at = append(at, " HTTP/1.1\r\nHost: ");
    at = append(at, url.authority);
    at = append(at, "\r\nUser-Agent: slirp-guest\r\nAccept: */*\r\nAccept-Encoding: identity\r\n"
                    "Connection: close\r\n\r\n");
    return (uint32_t)(at - request);
}

/* -- response -------------------------------------------------------------------------------- */

static bool parse_decimal(const char *text, uint64_t *value)
{
    uint64_t n = 0;
    int digits = 0;
    for (; *text >= '0' && *text <= '9' && digits < 19; digits++)
        n = (n << 3) + (n << 1) + (uint32_t)(*text++ - '0');
    while (*text == ' ' || *text == '\t')
        text++;
    *value = n;
    return digits && !*text;
}

static bool parse_chunk_size(const char *text, uint64_t *value)
{
    uint64_t n = 0;
    int digits = 0;
    for (;; text++, digits++) {
        char c = (char)(*text | 0x20);
        if (*text >= '0' && *text <= '9')
            n = n << 4 | (uint32_t)(*text - '0');
        else if (c >= 'a' && c <= 'f')
            n = n << 4 | (uint32_t)(c - 'a' + 10);
        else
            break;
    }
    *value = n;
    return digits && digits <= 15 && (!*text || *text == ';' || *text == ' ');
}

static enum state parse_status_line(const char *line)
{
    uint64_t code;
    if (!starts_with_nocase(line, "http/1.") || strlen(line) < 12 || line[8] != ' ')
        return BAD;
    char digits[4] = {line[9], line[10], line[11], 0};
    if (!parse_decimal(digits, &code) || code < 100 || (line[12] && line[12] != ' '))
        return BAD;
    response.code = (uint32_t)code;
    response.chunked = false;
    response.length = UNKNOWN;
    return FIELDS;
}

static const char *skip_blanks(const char *text)
{
    while (*text == ' ' || *text == '\t')
        text++;
    return text;
}

static enum state parse_field(const char *line)
{
    uint64_t length;
    if (starts_with_nocase(line, "transfer-encoding:")) {
        if (!starts_with_nocase(skip_blanks(line + 18), "chunked"))
            return BAD;
        response.chunked = true;
    }
    if (starts_with_nocase(line, "content-length:")) {
        if (!parse_decimal(skip_blanks(line + 15), &length))
            return BAD;
        if (response.length != UNKNOWN && response.length != length)
            return BAD;
        response.length = length;
    }
    return FIELDS;
}

/* The empty line. Chunks win over a length, RFC 9112 §6.3; other answers than 200 have no body here. */
static enum state begin_body(void)
{
    if (response.code < 200)
        return STATUS_LINE;
    RESULT->http_status = response.code;
    if (response.code != OK)
        return DONE;
    if (response.chunked)
        return CHUNK_SIZE;
    RESULT->expected = response.left = response.length;
    if (response.length == UNKNOWN)
        return BODY_TO_END;
    return response.length ? BODY_LENGTH : DONE;
}

static enum state handle_line(const char *line)
{
    switch (response.state) {
    case STATUS_LINE: return parse_status_line(line);
    case FIELDS: return *line ? parse_field(line) : begin_body();
    case CHUNK_SIZE:
        if (!parse_chunk_size(line, &response.left))
            return BAD;
        return response.left ? CHUNK_DATA : TRAILER;
    case CHUNK_END: return *line ? BAD : CHUNK_SIZE;
    case TRAILER: return *line ? TRAILER : DONE;
    default: return BAD;
    }
}

/* Bytes up to a line's end; the bytes used. */
static uint32_t take_line(const uint8_t *data, uint32_t len)
{
    for (uint32_t i = 0; i < len; i++) {
        if (data[i] != '\n') {
            if (response.line_len < LINE_MAX - 1)
                response.line[response.line_len++] = (char)data[i];
            continue;
        }
        if (response.line_len && response.line[response.line_len - 1] == '\r')
            response.line_len--;
        response.line[response.line_len] = 0;
        response.line_len = 0;
        response.state = handle_line(response.line);
        return i + 1;
    }
    return len;
}

static uint32_t take_body(const uint8_t *data, uint32_t len)
{
    bool bounded = response.state != BODY_TO_END;
    if (bounded && response.left < len)
        len = (uint32_t)response.left;
    sha256_update(&response.sha256, data, len);
    bool has_room = !response.sink || response.sink(data, len);
    response.taken += len;
    RESULT->octets = response.taken;
    if (bounded && !(response.left -= len))
        response.state = response.state == CHUNK_DATA ? CHUNK_END : DONE;
    if (!has_room)
        response.state = DONE;
    return len;
}

static bool consume(const uint8_t *data, uint32_t len)
{
    while (len && response.state != DONE && response.state != BAD) {
        bool body = response.state == BODY_LENGTH || response.state == BODY_TO_END ||
                    response.state == CHUNK_DATA;
        uint32_t used = body ? take_body(data, len) : take_line(data, len);
        data += used, len -= used;
        if (response.state == STATUS_LINE || response.state == FIELDS || response.state == TRAILER)
            response.header_octets += used;
        if (response.header_octets > HEADERS_MAX)
            response.state = BAD;
    }
    return response.state != DONE && response.state != BAD;
}

static enum status verdict(void)
{
    if (response.state == BODY_TO_END)
        response.state = DONE;
    if (response.state == BAD)
        return STATUS_BAD_RESPONSE;
    if (response.state != DONE)
        return STATUS_TRUNCATED;
    if (response.code >= 300 && response.code < 400)
        return STATUS_REDIRECT;
    return response.code == OK ? STATUS_OK : STATUS_HTTP_ERROR;
}

static enum status find_server(struct peer *peer)
{
    struct address address;
    const char *name = PARAMETERS->connect_host[0] ? PARAMETERS->connect_host : url.host;
    enum status status = dns_resolve(name, &address);
    if (status != STATUS_OK)
        return status;
    print("dns: %s is %I\n", name, &address);
    return net_resolve(peer, &address) ? STATUS_OK : STATUS_NO_ROUTE;
}

enum status http_fetch(http_sink *sink)
{
    static char request[REQUEST_MAX];
    struct peer peer;
    enum status status = http_parse_url(PARAMETERS->url);
    if (status == STATUS_OK)
        status = find_server(&peer);
    if (status != STATUS_OK)
        return status;
    uint64_t started_at = clock_us64();
    sha256_init(&response.sha256);
    response.sink = sink;
    RESULT->expected = UNKNOWN;
    status = tcp_connect(&peer, url.port);
    if (status == STATUS_OK) {
        print("tcp: connected to %I port %u\n", &peer.address, (uint32_t)url.port);
        status = tcp_exchange(request, put_request(request), consume);
    }
    RESULT->fetch_us = clock_us64() - started_at;
    if (status != STATUS_OK) {
        tcp_abort();
        return status;
    }
    status = verdict();
    if (status == STATUS_OK)
        tcp_close();
    else
        tcp_abort();
    uint8_t digest[SHA256_DIGEST];
    sha256_final(&response.sha256, digest);
    for (uint32_t i = 0; i < SHA256_DIGEST; i++)
        RESULT->digest[i] = digest[i];
    return status;
}
