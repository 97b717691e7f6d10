/*
 * The guest: get a lease, or with IPv6 an address of a router's prefix, ping the router, fetch a URL, say what came of it. With a disk, what is
 * fetched goes there as it comes, and is read back.
 *
 * The last line on the console, and the result block, are for a program to read:
 *
 *   RESULT status=ok http=200 bytes=4194304 sha256=… us=1234567
 */
#include "board.h"
#include "console.h"
#include "dhcp.h"
#include "disk.h"
#include "dvma.h"
#include "http.h"
#include "ip6.h"
#include "lance.h"
#include "lib.h"
#include "net.h"
#include "prom.h"
#include "tcp.h"

enum { LINGER = 20000 };        /* microseconds after the work: the last ACK may have been lost */

static const char *const STATUS_NAMES[] = {
    "running", "ok", "no-lease", "bad-url", "no-such-name", "no-resolver", "no-route", "unreachable",
    "refused", "timed-out", "reset", "truncated", "bad-response", "redirect", "http-error",
    "bad-parameters", "no-lance", "no-disk", "disk-full", "disk-error",
};

static bool parameters_are_sane(void)
{
    const struct parameters *p = PARAMETERS;
    return p->magic == PROM_MAGIC && p->version == PROM_VERSION && p->rx_buffer_len >= 64 &&
           p->rx_buffer_len <= 4096 && p->rx_buffer_len % 4 == 0 && p->rx_log2 <= 7 && p->tx_log2 <= 7 &&
           p->window >= 1024 && p->ack_every >= 1;
}

static enum status configure_ipv6(void)
{
    if (!ip6_configure())
        return STATUS_NO_LEASE;
    for (int i = 0; i < 4; i++) {
        RESULT->address6[i] = net.address.word[i];
        RESULT->router6[i] = net.router.word[i];
        RESULT->dns6[i] = net.dns.word[i];
    }
    RESULT->mtu = net.mtu;
    print("router: address %I, router %I, DNS %I, MTU %u\n", &net.address, &net.router, &net.dns, net.mtu);
    return STATUS_OK;
}

static enum status configure(void)
{
    const struct parameters *p = PARAMETERS;
    if (net.v6)
        return configure_ipv6();
    if (p->address) {
        net.address = from_ipv4(p->address), net.netmask = p->netmask;
        net.router = from_ipv4(p->router), net.dns = from_ipv4(p->dns), net.mtu = p->mtu;
    } else if (!dhcp_configure()) {
        return STATUS_NO_LEASE;
    }
    RESULT->address = to_ipv4(&net.address), RESULT->netmask = net.netmask;
    RESULT->router = to_ipv4(&net.router), RESULT->dns = to_ipv4(&net.dns), RESULT->mtu = net.mtu;
    struct address netmask = from_ipv4(net.netmask);
    print("%s: address %I, netmask %I, router %I, DNS %I, MTU %u\n", p->address ? "static" : "dhcp",
          &net.address, &netmask, &net.router, &net.dns, net.mtu);
    return STATUS_OK;
}

static void ping_router(void)
{
    uint32_t count = PARAMETERS->ping_count;
    if (!count || !is_set(&net.router))
        return;
    uint32_t answers = ping(&net.router, count);
    print("ping: %I answered %u of %u, last in %u us\n", &net.router, answers, count, RESULT->ping_us);
}

static void stay(uint32_t us)
{
    uint32_t until = now + us;
    while (before(now, until))
        net_step(until);
}

/* What was fetched is on the disk: is it? */
static enum status look_back(void)
{
    uint64_t started_at = clock_us64();
    enum status status = disk_verify();
    print("disk: %U bytes written, %U read back in %U us\n", RESULT->disk_written, RESULT->disk_read,
          clock_us64() - started_at);
    return status;
}

static enum status fetch(void)
{
    bool to_disk = PARAMETERS->disk != 0;
    print("http: GET %s\n", PARAMETERS->url);
    enum status status = http_fetch(to_disk ? disk_write : 0);
    print("http: status %u, %U bytes in %U us\n", RESULT->http_status, RESULT->octets, RESULT->fetch_us);
    if (status == STATUS_OK && to_disk)
        status = disk_finish();
    if (status == STATUS_OK && to_disk)
        status = look_back();
    return status;
}

static enum status work(void)
{
    if (!parameters_are_sane())
        return STATUS_BAD_PARAMETERS;
    net_init(&tcp_transport, PARAMETERS->ipv6 ? &ip6_family : 0);
    dvma_init(PARAMETERS->scatter);
    if (!lance_init())
        return STATUS_NO_LANCE;
    print("lance: %M, %u receive buffers of %u bytes, BSWP %u\n", net.mac, 1u << PARAMETERS->rx_log2,
          PARAMETERS->rx_buffer_len, PARAMETERS->bswp);
    enum status status = PARAMETERS->disk ? disk_init() : STATUS_OK;
    if (status == STATUS_OK)
        status = configure();
    if (status != STATUS_OK)
        return status;
    ping_router();
    if (PARAMETERS->url[0])
        status = fetch();
    stay(max32(LINGER, PARAMETERS->serve_for * 1000));
    return status;
}

int main(void)
{
    RESULT->magic = PROM_MAGIC, RESULT->version = PROM_VERSION;
    print("slirp guest, SPARC V8, %u KiB RAM\n", PARAMETERS->ram_size / 1024);
    enum status status = work();
    RESULT->status = status;
    print("RESULT status=%s http=%u bytes=%U sha256=", STATUS_NAMES[status], RESULT->http_status, RESULT->octets);
    print_hex((const uint8_t *)RESULT->digest, sizeof RESULT->digest);
    print(" us=%U\n", RESULT->fetch_us);
    return 0;
}
