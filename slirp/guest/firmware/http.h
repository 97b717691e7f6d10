/* An HTTP/1.1 client (RFC 9112): one GET, the body digested and not kept. */
#pragma once

#include "prom.h"

/* Fetch the URL of the parameters; progress and digest go to the result block. */
enum status http_fetch(void);

/* Does the URL name a scheme and host that can be fetched? */
enum status http_parse_url(const char *text);
