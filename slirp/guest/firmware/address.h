/*
 * An address of either family. IPv4's is ::ffff:a.b.c.d (RFC 4291 §2.5.5.2): in a pseudo header its
 * words add up to what IPv4's own do, since ffff is a zero of ones' complement.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct address {
    uint32_t word[4];
};

static inline struct address from_ipv4(uint32_t a) { return (struct address){{0, 0, 0xffff, a}}; }
static inline uint32_t to_ipv4(const struct address *a) { return a->word[3]; }
static inline bool is_ipv4(const struct address *a) { return !(a->word[0] | a->word[1]) && a->word[2] == 0xffff; }
static inline bool is_set(const struct address *a) { return (a->word[0] | a->word[1] | a->word[3]) != 0; }
static inline bool same(const struct address *a, const struct address *b)
{
    return !((a->word[0] ^ b->word[0]) | (a->word[1] ^ b->word[1]) | (a->word[2] ^ b->word[2]) |
             (a->word[3] ^ b->word[3]));
}
