#include "lib.h"

#include "board.h"
#include "prom.h"

void *memcpy(void *restrict to, const void *restrict from, size_t len)
{
    uint8_t *d = to;
    const uint8_t *s = from;
    if ((((uintptr_t)d ^ (uintptr_t)s) & 3) == 0) {
        for (; len && ((uintptr_t)d & 3); len--)
            *d++ = *s++;
        for (; len >= 16; len -= 16, d += 16, s += 16) {
            const uint32_t *from4 = (const uint32_t *)s;
            uint32_t *to4 = (uint32_t *)d;
            uint32_t w0 = from4[0], w1 = from4[1], w2 = from4[2], w3 = from4[3];
            to4[0] = w0, to4[1] = w1, to4[2] = w2, to4[3] = w3;
        }
        for (; len >= 4; len -= 4, d += 4, s += 4)
            *(uint32_t *)d = *(const uint32_t *)s;
    } else if ((((uintptr_t)d ^ (uintptr_t)s) & 1) == 0) {
        if (len && ((uintptr_t)d & 1))
            *d++ = *s++, len--;
        for (; len >= 2; len -= 2, d += 2, s += 2)
            *(uint16_t *)d = *(const uint16_t *)s;
    }
    while (len--)
        *d++ = *s++;
    return to;
}

void *memmove(void *to, const void *from, size_t len)
{
    uint8_t *d = to;
    const uint8_t *s = from;
    if (d < s)
        for (size_t i = 0; i < len; i++)
            d[i] = s[i];
    else
        while (len--)
            d[len] = s[len];
    return to;
}

void *memset(void *to, int octet, size_t len)
{
    uint8_t *d = to;
    while (len--)
        *d++ = (uint8_t)octet;
    return to;
}

int memcmp(const void *a, const void *b, size_t len)
{
    const uint8_t *p = a, *q = b;
    for (; len; len--, p++, q++)
        if (*p != *q)
            return *p - *q;
    return 0;
}

size_t strlen(const char *s)
{
    size_t n = 0;
    while (s[n])
        n++;
    return n;
}

bool starts_with_nocase(const char *s, const char *with)
{
    for (; *with; s++, with++) {
        char c = *s >= 'A' && *s <= 'Z' ? (char)(*s + 32) : *s;
        if (c != *with)
            return false;
    }
    return true;
}

uint32_t random32(void)
{
    static uint32_t state;
    if (!state)
        state = PARAMETERS->seed | 1;
    state ^= clock_us();
    state ^= state << 13, state ^= state >> 17, state ^= state << 5;    /* xorshift32, Marsaglia */
    return state * 0x9e3779b1;
}
