/* An HTTP/1.1 client (RFC 9112): one GET, the body digested and not kept. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "prom.h"

/* Bytes of the body, in order. False: no more of them. */
typedef bool http_sink(const uint8_t *data, uint32_t len);

/* Fetch the URL of the parameters; progress and digest go to the result block, the body to `sink`,
 * if there is one. STATUS_OK too where the sink had enough: it knows why. */
enum status http_fetch(http_sink *sink);

/* Does the URL name a scheme and host that can be fetched? */
enum status http_parse_url(const char *text);
