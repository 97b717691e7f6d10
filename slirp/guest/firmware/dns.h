/* A stub resolver (RFC 1035): one A query at a time to one server. */
#pragma once

#include <stdint.h>

#include "prom.h"

/* STATUS_OK and an address, or why not. A dotted quad is its own answer. */
enum status dns_resolve(const char *name, uint32_t *address);
