/* A stub resolver (RFC 1035, RFC 3596): one query at a time to one server, for A or, with IPv6, AAAA. */
#pragma once

#include <stdint.h>

#include "address.h"
#include "prom.h"

/* STATUS_OK and an address, or why not. An address in text is its own answer. */
enum status dns_resolve(const char *name, struct address *address);
