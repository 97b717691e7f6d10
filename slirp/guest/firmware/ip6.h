/*
 * IPv6 (RFC 8200), ICMPv6 and neighbour discovery (RFC 4861), for an interface that speaks nothing
 * else: an address of the router's prefix and the MAC (RFC 4862, RFC 2464), its resolver (RFC 8106).
 *
 * Does not do: extension headers (dropped), fragments, duplicate address detection, MLD, redirects,
 * address lifetimes.
 */
#pragma once

#include "net.h"

extern const struct family ip6_family;

/* Ask for a router until one says how to be configured. False: there is none. */
bool ip6_configure(void);
