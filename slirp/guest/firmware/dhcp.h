/* A DHCP client (RFC 2131): gets a lease once, does not renew it. */
#pragma once

#include <stdbool.h>

/* Fill `net` from a server's offer. False: no server answered, or each offer was withdrawn. */
bool dhcp_configure(void);
