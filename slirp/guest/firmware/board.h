/*
 * The machine: physical addresses of a SPARCstation 5, and how the program gives up the CPU.
 *
 * The CPU that runs this has no supervisor mode: no %psr, no trap table register, no interrupt
 * level. So an interrupt is taken only inside wait_for_interrupt(), by agreement with the board
 * (start.S has the details).
 */
#pragma once

#include <stdint.h>

enum {
    IOMMU_BASE = 0x10000000,
    SERIAL_A = 0x71100004,      /* Z8530 channel A: control here, data at +2 */
    COUNTER_BASE = 0x71d00000,  /* user timer: 64 bits, a tick of 500 ns is bit 9 */
    ESPDMA_BASE = 0x78400000,
    LEDMA_BASE = 0x78400010,
    ESP_BASE = 0x78800000,
    LANCE_BASE = 0x78c00000,
};

static inline uint32_t read32(uintptr_t addr) { return *(volatile uint32_t *)addr; }
static inline void write32(uintptr_t addr, uint32_t value) { *(volatile uint32_t *)addr = value; }
static inline uint16_t read16(uintptr_t addr) { return *(volatile uint16_t *)addr; }
static inline void write16(uintptr_t addr, uint16_t value) { *(volatile uint16_t *)addr = value; }
static inline uint8_t read8(uintptr_t addr) { return *(volatile uint8_t *)addr; }
static inline void write8(uintptr_t addr, uint8_t value) { *(volatile uint8_t *)addr = value; }

/* Microseconds since power on. Reading the upper word latches the lower one. */
static inline uint64_t clock_us64(void)
{
    uint32_t high = read32(COUNTER_BASE), low = read32(COUNTER_BASE + 4);
    return (uint64_t)high << 22 | low >> 10;
}

/* The same modulo 2^32, for deadlines less than half an hour away. */
static inline uint32_t clock_us(void) { return (uint32_t)clock_us64(); }

/* start.S: give up the CPU until an interrupt comes, at most `us`; it is served before the return. */
void wait_for_interrupt(uint32_t us);

/* start.S: stop the machine. */
__attribute__((noreturn)) void halt(void);
