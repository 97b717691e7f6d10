/* The first disk on the bus, as a place for a stream of bytes: written from block 0 on, read back. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "prom.h"

/* Find a disk and learn its size. STATUS_NO_DISK: there is none that is ready. */
enum status disk_init(void);

/* The next bytes. False: no room, or an error; disk_finish() says which. */
bool disk_write(const uint8_t *data, uint32_t len);

/* The last, partial block, and the disk's cache: what was written is permanent. */
enum status disk_finish(void);

/* Read what was written, and put its digest into the result block. */
enum status disk_verify(void);
