/*
 * SHA-256, FIPS 180-4. The CPU is big-endian, so a word of the message is one aligned load; only
 * where a piece of the stream starts at an odd address are words put together from bytes.
 *
 * The message schedule lives in a window of 16 words that is extended in place, 16 rounds at a
 * time: the compiler then keeps every index constant.
 */
#include "sha256.h"

#include "lib.h"

static const uint32_t K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

#define ROTR(x, n) (((x) >> (n)) | ((x) << (32 - (n))))
#define BIG0(x) (ROTR(x, 2) ^ ROTR(x, 13) ^ ROTR(x, 22))
#define BIG1(x) (ROTR(x, 6) ^ ROTR(x, 11) ^ ROTR(x, 25))
#define SMALL0(x) (ROTR(x, 7) ^ ROTR(x, 18) ^ ((x) >> 3))
#define SMALL1(x) (ROTR(x, 17) ^ ROTR(x, 19) ^ ((x) >> 10))
#define CHOOSE(x, y, z) ((z) ^ ((x) & ((y) ^ (z))))
#define MAJORITY(x, y, z) (((x) & (y)) | ((z) & ((x) | (y))))

/* One round; the caller rotates the eight names instead of moving eight values. */
#define ROUND(a, b, c, d, e, f, g, h, k, word)                          \
    do {                                                                \
        uint32_t t = (h) + BIG1(e) + CHOOSE(e, f, g) + (k) + (word);    \
        (d) += t;                                                       \
        (h) = t + BIG0(a) + MAJORITY(a, b, c);                          \
    } while (0)

#define EXTEND(w, i)                                                            \
    ((w)[(i) & 15] += SMALL1((w)[((i) + 14) & 15]) + (w)[((i) + 9) & 15] +      \
                      SMALL0((w)[((i) + 1) & 15]))

#define EIGHT_ROUNDS(k, i, WORD)                        \
    do {                                                \
        ROUND(a, b, c, d, e, f, g, h, (k)[0], WORD(i)); \
        ROUND(h, a, b, c, d, e, f, g, (k)[1], WORD(i + 1)); \
        ROUND(g, h, a, b, c, d, e, f, (k)[2], WORD(i + 2)); \
        ROUND(f, g, h, a, b, c, d, e, (k)[3], WORD(i + 3)); \
        ROUND(e, f, g, h, a, b, c, d, (k)[4], WORD(i + 4)); \
        ROUND(d, e, f, g, h, a, b, c, (k)[5], WORD(i + 5)); \
        ROUND(c, d, e, f, g, h, a, b, (k)[6], WORD(i + 6)); \
        ROUND(b, c, d, e, f, g, h, a, (k)[7], WORD(i + 7)); \
    } while (0)

static void compress(uint32_t state[8], const uint32_t message[16])
{
    uint32_t w[16];
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    uint32_t e = state[4], f = state[5], g = state[6], h = state[7];

#define LOADED(i) (w[i] = message[i])
#define EXTENDED(i) EXTEND(w, i)
    EIGHT_ROUNDS(K, 0, LOADED);
    EIGHT_ROUNDS(K + 8, 8, LOADED);
    for (const uint32_t *k = K + 16; k < K + 64; k += 16) {
        EIGHT_ROUNDS(k, 0, EXTENDED);
        EIGHT_ROUNDS(k + 8, 8, EXTENDED);
    }
    state[0] += a, state[1] += b, state[2] += c, state[3] += d;
    state[4] += e, state[5] += f, state[6] += g, state[7] += h;
}

void sha256_init(struct sha256 *s)
{
    static const uint32_t start[8] = {
        0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
    };
    memcpy(s->h, start, sizeof start);
    s->len = 0;
}

void sha256_update(struct sha256 *s, const uint8_t *data, uint32_t len)
{
    uint32_t held = (uint32_t)s->len % SHA256_BLOCK;
    s->len += len;
    if (held) {
        uint32_t n = len < SHA256_BLOCK - held ? len : SHA256_BLOCK - held;
        memcpy((uint8_t *)s->block + held, data, n);
        data += n, len -= n;
        if (held + n < SHA256_BLOCK)
            return;
        compress(s->h, s->block);
    }
    for (; len >= SHA256_BLOCK; data += SHA256_BLOCK, len -= SHA256_BLOCK) {
        if ((uintptr_t)data % 4 == 0) {
            compress(s->h, (const uint32_t *)data);
        } else {
            memcpy(s->block, data, SHA256_BLOCK);
            compress(s->h, s->block);
        }
    }
    memcpy(s->block, data, len);
}

void sha256_final(struct sha256 *s, uint8_t digest[SHA256_DIGEST])
{
    uint64_t bits = s->len << 3;
    static const uint8_t padding[SHA256_BLOCK] = {0x80};
    uint32_t held = (uint32_t)s->len % SHA256_BLOCK;
    sha256_update(s, padding, (held < 56 ? 56 : 120) - held);
    sha256_update(s, (const uint8_t *)&bits, sizeof bits);
    memcpy(digest, s->h, SHA256_DIGEST);
}
