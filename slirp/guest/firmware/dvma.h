/* Memory that the Lance can reach: the IOMMU's table, and what is mapped through it. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum {
    DVMA_BASE = 0xfc000000u,    /* the window of 64 MiB; LEDMA's base register names its first 16 */
    PAGE_SIZE = 4096,
};

/* Build the table and switch the IOMMU on. With `scatter`, neighbours in DVMA are not neighbours
 * in RAM, so that what lies across a page end is in two pieces for the CPU as well. */
void dvma_init(bool scatter);

/* `len` bytes of DVMA space; `align` is a power of two. 0 when RAM or the 16 MiB are used up. */
uint32_t dvma_alloc(uint32_t len, uint32_t align);

/* Where the CPU finds the byte that the Lance finds at `dvma`. Holds up to the page's end. */
uint8_t *dvma_to_cpu(uint32_t dvma);
