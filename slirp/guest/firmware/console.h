/* The console: serial line A, 8-bit text. */
#pragma once

#include <stdint.h>

void console_char(char c);

/* %s string, %u unsigned, %U unsigned 64, %x hexadecimal, %I struct address, %M MAC, %% */
void print(const char *format, ...);

void print_hex(const uint8_t *octets, uint32_t len);
