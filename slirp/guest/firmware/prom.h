/*
 * What the board tells the program before it starts, and what the program tells the board: two
 * blocks in the RAM below the image, where a boot PROM would keep its variables. All words are
 * big-endian. slirp/guest/prom.py has the same layouts; both change together, with PROM_VERSION.
 */
#pragma once

#include <stdint.h>

enum {
    PROM_MAGIC = 0x534c5250,    /* "SLRP" */
    PROM_VERSION = 3,
    PROM_HOST_LEN = 256,
    PROM_URL_LEN = 1024,
};

struct parameters {
    uint32_t magic, version;
    uint32_t ram_size;          /* bytes from address 0 */
    uint32_t seed;              /* for random numbers */
    uint8_t mac[6];
    uint16_t scatter;           /* 1: physical pages behind consecutive DVMA pages are not consecutive */
    uint32_t rx_log2, tx_log2;  /* descriptors per ring: 1 to 128 */
    uint32_t rx_buffer_len;     /* bytes, 64 to 4096, a multiple of 4 */
    uint32_t bswp;              /* CSR3.BSWP */
    uint32_t window;            /* bytes of TCP receive window */
    uint32_t ack_every;         /* full-sized segments */
    uint32_t ping_count;        /* echo requests to the router */
    uint32_t serve_for;         /* milliseconds to stay and answer pings after the work is done */
    uint32_t address, netmask, router, dns, mtu;    /* address 0: ask DHCP */
    uint32_t disk;              /* 1: what is fetched goes to the first disk, and is read back */
    uint32_t ipv6;              /* 1: speak IPv6 only, configured by a router; the addresses are not used */
    char connect_host[PROM_HOST_LEN];   /* connect here instead of to the URL's host, unless empty */
    char url[PROM_URL_LEN];             /* empty: nothing to fetch */
};

enum status {
    STATUS_RUNNING,
    STATUS_OK,
    STATUS_NO_LEASE,        /* no DHCP server gave an address, no router a prefix */
    STATUS_BAD_URL,         /* not http://host[:port][/path] */
    STATUS_NO_NAME,         /* the name does not exist or has no address */
    STATUS_NO_RESOLVER,     /* no answer from the DNS server */
    STATUS_NO_ROUTE,        /* nobody answers for the next hop */
    STATUS_UNREACHABLE,     /* ICMP said so */
    STATUS_REFUSED,         /* RST in answer to SYN */
    STATUS_TIMED_OUT,
    STATUS_RESET,           /* RST later */
    STATUS_TRUNCATED,       /* the connection ended before the body did */
    STATUS_BAD_RESPONSE,    /* not HTTP/1.x as we know it */
    STATUS_REDIRECT,        /* 3xx: not followed */
    STATUS_HTTP_ERROR,      /* any other status but 200 */
    STATUS_BAD_PARAMETERS,
    STATUS_NO_LANCE,        /* no answer from the chip, or its rings do not fit the RAM */
    STATUS_NO_DISK,         /* no disk on the bus, or none that is ready */
    STATUS_DISK_FULL,       /* the body is longer than the disk */
    STATUS_DISK_ERROR,      /* a command failed */
};

struct result {
    uint32_t magic, version, status, http_status;
    uint64_t octets;            /* of the body, as they come */
    uint64_t expected;          /* Content-Length, or all ones while unknown */
    uint64_t fetch_us;          /* from the SYN to the end of the body */
    uint8_t digest[32];
    uint32_t address, netmask, router, dns, mtu, lease_seconds;
    uint32_t ping_sent, ping_received, ping_us;     /* the last round trip */
    uint32_t rx_frames, rx_dropped, rx_descriptors, tx_frames, tx_full, interrupts, restarts;
    uint32_t waits;
    uint32_t tcp_segments, tcp_acks, tcp_out_of_order, tcp_retransmits, tcp_bad_checksums;
    uint32_t disk_commands, disk_interrupts;
    uint32_t disk_blocks;       /* of 512 bytes; 0: no disk */
    uint32_t reserved;
    uint64_t disk_written, disk_read;   /* bytes of blocks */
    uint8_t disk_digest[32];    /* of as many bytes as were fetched, read back */
    uint32_t address6[4], router6[4], dns6[4];  /* with IPv6, instead of those above */
};

/* Python's layouts have these sizes. */
_Static_assert(sizeof(struct parameters) == 1364, "parameters");
_Static_assert(sizeof(struct result) == 272, "result");

#define PARAMETERS ((const struct parameters *)0x2000)
#define RESULT ((volatile struct result *)0x3000)
