/*
 * The sun4m IOMMU: one big-endian IOPTE per 4 KiB page of the window, in a table aligned to its
 * own size. Allocation only moves forward; nothing is ever unmapped.
 *
 * DVMA page 1 is the first in use (an address of 0 in a descriptor is then a fault, not a page),
 * and it lies behind __dvma_pool in RAM.
 */
#include "dvma.h"

#include "board.h"
#include "lib.h"
#include "prom.h"

enum {
    IOMMU_CTRL = IOMMU_BASE + 0x0,
    IOMMU_TABLE = IOMMU_BASE + 0x4,
    IOMMU_TLBFLUSH = IOMMU_BASE + 0x14,
    CTRL_ENABLE = 1,
    CTRL_RANGE_64M = 2 << 2,
    IOPTE_CACHE = 0x80, IOPTE_WRITE = 0x04, IOPTE_VALID = 0x02,
    WINDOW_PAGES = (64 << 20) / PAGE_SIZE,
    LANCE_SPACE = 16 << 20,     /* bytes that the Lance's 24 bits address */
};

extern uint8_t __dvma_pool[];
static uint32_t iopte[WINDOW_PAGES] __attribute__((aligned(WINDOW_PAGES * 4)));
static uint32_t next_dvma;      /* first free byte */
static uint32_t mapped_to;      /* first page without an IOPTE */
static bool scattered;

void dvma_init(bool scatter)
{
    scattered = scatter;
    next_dvma = mapped_to = DVMA_BASE + PAGE_SIZE;
    write32(IOMMU_TABLE, (uintptr_t)iopte >> 4);
    write32(IOMMU_CTRL, CTRL_RANGE_64M | CTRL_ENABLE);
    write32(IOMMU_TLBFLUSH, 0);
}

uint8_t *dvma_to_cpu(uint32_t dvma)
{
    uint32_t offset = dvma - DVMA_BASE - PAGE_SIZE;
    if (scattered)
        offset ^= PAGE_SIZE;    /* pages change places in pairs */
    return __dvma_pool + offset;
}

static void map_page(uint32_t dvma)
{
    uint32_t phys = (uintptr_t)dvma_to_cpu(dvma);
    iopte[(dvma - DVMA_BASE) / PAGE_SIZE] = (phys >> 12) << 8 | IOPTE_CACHE | IOPTE_WRITE | IOPTE_VALID;
}

uint32_t dvma_alloc(uint32_t len, uint32_t align)
{
    uint32_t start = (next_dvma + align - 1) & -align;
    uint32_t end = start + len;
    /* Scattered pages need the other page of the last pair in RAM too. */
    uint32_t ram_end = (uintptr_t)__dvma_pool + (end - DVMA_BASE) + PAGE_SIZE;
    if (end - DVMA_BASE > LANCE_SPACE || ram_end > PARAMETERS->ram_size)
        return 0;
    for (; mapped_to < end; mapped_to += PAGE_SIZE)
        map_page(mapped_to);
    write32(IOMMU_TLBFLUSH, 0);
    next_dvma = end;
    return start;
}
