/* The little of a C library that a freestanding program needs. GCC may call the mem* by itself. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

void *memcpy(void *restrict to, const void *restrict from, size_t len);
void *memmove(void *to, const void *from, size_t len);
void *memset(void *to, int octet, size_t len);
int memcmp(const void *a, const void *b, size_t len);
size_t strlen(const char *s);

/* Is `s` equal to `with` up to its end, letters of either case? `with` is given in lower case. */
bool starts_with_nocase(const char *s, const char *with);

/* Instants wrap; two are comparable while less than half the range apart. Sequence numbers too. */
static inline bool before(uint32_t a, uint32_t b) { return (int32_t)(a - b) < 0; }
static inline bool at_or_before(uint32_t a, uint32_t b) { return (int32_t)(a - b) <= 0; }

static inline uint32_t min32(uint32_t a, uint32_t b) { return a < b ? a : b; }
static inline uint32_t max32(uint32_t a, uint32_t b) { return a > b ? a : b; }

/* A number that a stranger off the path does not guess: seeded by the board, stirred by the clock. */
uint32_t random32(void);
