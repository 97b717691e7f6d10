#include "console.h"

#include <stdarg.h>

#include "address.h"
#include "board.h"

enum { RR0_TX_EMPTY = 0x04, SERIAL_DATA = SERIAL_A + 2 };

void console_char(char c)
{
    if (c == '\n')
        console_char('\r');
    while (!(read8(SERIAL_A) & RR0_TX_EMPTY))
        ;
    write8(SERIAL_DATA, (uint8_t)c);
}

static void put_string(const char *s)
{
    while (*s)
        console_char(*s++);
}

/* Long division, sixteen bits at a time: there is no 64-bit divide without a support library. */
static uint32_t divide_by_10(uint64_t *n)
{
    uint64_t quotient = 0;
    uint32_t rest = 0;
    for (int shift = 3; shift >= 0; shift--) {
        uint32_t part = rest << 16 | ((const uint16_t *)n)[3 - shift];
        ((uint16_t *)&quotient)[3 - shift] = (uint16_t)(part / 10);
        rest = part % 10;
    }
    *n = quotient;
    return rest;
}

static void put_unsigned(uint64_t n)
{
    char digits[21];
    char *at = digits + sizeof digits;
    *--at = 0;
    do
        *--at = (char)('0' + divide_by_10(&n));
    while (n);
    put_string(at);
}

static void put_hex_digit(uint32_t n) { console_char("0123456789abcdef"[n & 15]); }

void print_hex(const uint8_t *octets, uint32_t len)
{
    for (uint32_t i = 0; i < len; i++)
        put_hex_digit(octets[i] >> 4), put_hex_digit(octets[i]);
}

static void put_hex(uint32_t n)
{
    int shift = 28;
    while (shift && !(n >> shift))
        shift -= 4;
    for (; shift >= 0; shift -= 4)
        put_hex_digit(n >> shift);
}

static void put_ipv4(uint32_t addr)
{
    for (int shift = 24; shift >= 0; shift -= 8) {
        put_unsigned(addr >> shift & 255);
        if (shift)
            console_char('.');
    }
}

/* The first of the longest runs of zeros is "::", RFC 5952 §4.2. */
static void put_ipv6(const struct address *a)
{
    const uint16_t *group = (const uint16_t *)a->word;
    uint32_t gap = 8, longest = 1;
    for (uint32_t i = 0; i < 8; i++) {
        uint32_t end = i;
        while (end < 8 && !group[end])
            end++;
        if (end - i > longest)
            gap = i, longest = end - i;
    }
    for (uint32_t i = 0; i < 8; i++) {
        if (i == gap) {
            put_string("::");
            i += longest - 1;
            continue;
        }
        if (i && i != gap + longest)
            console_char(':');
        put_hex(group[i]);
    }
}

static void put_address(const struct address *a)
{
    if (is_ipv4(a) || !is_set(a))
        put_ipv4(to_ipv4(a));
    else
        put_ipv6(a);
}

static void put_mac(const uint8_t *mac)
{
    for (int i = 0; i < 6; i++) {
        if (i)
            console_char(':');
        print_hex(mac + i, 1);
    }
}

void print(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    for (; *format; format++) {
        if (*format != '%') {
            console_char(*format);
            continue;
        }
        switch (*++format) {
        case 's': put_string(va_arg(args, const char *)); break;
        case 'u': put_unsigned(va_arg(args, uint32_t)); break;
        case 'U': put_unsigned(va_arg(args, uint64_t)); break;
        case 'x': put_hex(va_arg(args, uint32_t)); break;
        case 'I': put_address(va_arg(args, const struct address *)); break;
        case 'M': put_mac(va_arg(args, const uint8_t *)); break;
        default: console_char(*format); break;
        }
    }
    va_end(args);
}
