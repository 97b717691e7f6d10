/* SHA-256 (FIPS 180-4) of a stream that comes in pieces of any length and alignment. */
#pragma once

#include <stdint.h>

enum { SHA256_BLOCK = 64, SHA256_DIGEST = 32 };

struct sha256 {
    uint32_t h[8];
    uint32_t block[SHA256_BLOCK / 4];   /* bytes of an unfinished block, `len` % 64 of them */
    uint64_t len;                       /* bytes so far */
};

void sha256_init(struct sha256 *s);
void sha256_update(struct sha256 *s, const uint8_t *data, uint32_t len);
void sha256_final(struct sha256 *s, uint8_t digest[SHA256_DIGEST]);
