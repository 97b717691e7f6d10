/*
 * Am7990 driver.
 *
 * Each ring has 2^n descriptors of 8 bytes; the chip owns those whose OWN bit is set, we the
 * others. A received frame lies in one buffer or is chained over several, STP in the first
 * descriptor, ENP and the length in the last. What lies in one piece is handled where it is; what
 * does not (small buffers, or a buffer across a page end of scattered memory) is gathered first.
 *
 * The chip exchanges the bytes of each 16-bit word of frame data when CSR3.BSWP is 0, since SPARC
 * is big-endian; then the driver exchanges them back before anybody reads, and before it sends.
 * Descriptors and the init block are 16-bit words either way.
 *
 * lance_interrupt() runs inside wait_for_interrupt() (start.S). It acknowledges and notes what there
 * is to do; lance_receive() does it. The RX ring is not looked at before an interrupt says so: an
 * interrupt that gets lost on the way must show.
 *
 * After MERR, or when the transmitter went off, everything starts anew, as the data sheet asks.
 */
#include "lance.h"

#include "board.h"
#include "dvma.h"
#include "lib.h"
#include "prom.h"

enum {
    RDP = LANCE_BASE, RAP = LANCE_BASE + 2,
    CSR0_BABL = 0x4000, CSR0_CERR = 0x2000, CSR0_MISS = 0x1000, CSR0_MERR = 0x0800, CSR0_RINT = 0x0400,
    CSR0_TINT = 0x0200, CSR0_IDON = 0x0100, CSR0_INTR = 0x0080, CSR0_INEA = 0x0040, CSR0_RXON = 0x0020,
    CSR0_TXON = 0x0010, CSR0_TDMD = 0x0008, CSR0_STOP = 0x0004, CSR0_STRT = 0x0002, CSR0_INIT = 0x0001,
    CSR0_CAUSES = CSR0_BABL | CSR0_CERR | CSR0_MISS | CSR0_MERR | CSR0_RINT | CSR0_TINT | CSR0_IDON,
    CSR3_BSWP = 4, CSR3_ACON = 2, CSR3_BCON = 1,

    E_CSR = LEDMA_BASE, E_BASE_ADDR = LEDMA_BASE + 0xc,
    E_CSR_RESET = 0x80, E_CSR_INVALIDATE = 0x20, E_CSR_INT_EN = 0x10, E_CSR_TP = 1 << 22,

    OWN = 0x80, ERR = 0x40, STP = 0x02, ENP = 0x01,     /* RMD1 and TMD1, upper byte */
    BCNT_ONES = 0xf000,
    FCS_LEN = 4,
    MESSAGE_MAX = 4096,         /* MCNT has 12 bits */
    RING_LOG2_MAX = 7,
    TX_STRIDE = 2048,           /* a TX buffer never lies across a page end */
    IP_ALIGN = 2,               /* buffers begin here modulo 4, so that the IP header is aligned */
    INIT_READS = 100,           /* of CSR0 until IDON must be there */
};

struct descriptor {
    uint16_t ladr;      /* address 15:0 */
    uint8_t status;
    uint8_t hadr;       /* address 23:16 */
    uint16_t bcnt;      /* ones, then the buffer's length as two's complement */
    uint16_t mcnt;      /* RX: bytes of the frame with FCS, in its last descriptor. TX: errors */
};

struct init_block {
    uint16_t mode, padr[3], ladrf[4];
    uint16_t rdra, rlen_rdra, tdra, tlen_tdra;
};

struct ring {
    volatile struct descriptor *entry;
    uint32_t dvma, count, log2;
    uint32_t next;      /* index of the oldest that we have not handled */
};

static struct ring rx, tx;
static uint32_t rx_buffers, rx_buffer_len, tx_buffers, init_block;      /* DVMA, bytes */
static bool lanes_exchanged;    /* BSWP = 0 */
static bool rx_work;            /* an interrupt said so, and the ring was not found empty since */
static bool needs_restart;
static uint8_t message[IP_ALIGN + MESSAGE_MAX] __attribute__((aligned(4)));

static volatile struct descriptor *at(struct ring *ring, uint32_t ahead)
{
    return &ring->entry[(ring->next + ahead) & (ring->count - 1)];
}

static bool ring_alloc(struct ring *ring, uint32_t log2)
{
    ring->log2 = log2;
    ring->count = 1u << log2;
    ring->dvma = dvma_alloc(ring->count * sizeof(struct descriptor), 1024);
    ring->entry = (volatile struct descriptor *)dvma_to_cpu(ring->dvma);
    return ring->dvma != 0;
}

static void point_at(volatile struct descriptor *d, uint32_t dvma)
{
    d->ladr = (uint16_t)dvma;
    d->hadr = (uint8_t)(dvma >> 16);
}

static void give_to_chip(volatile struct descriptor *d, uint8_t flags)
{
    d->mcnt = 0;
    d->status = (uint8_t)(OWN | flags);
}

static uint32_t rx_buffer(uint32_t index) { return rx_buffers + index * rx_buffer_len; }
static uint32_t tx_buffer(uint32_t index) { return tx_buffers + index * TX_STRIDE + IP_ALIGN; }

static void fill_rings(void)
{
    rx.next = tx.next = 0;
    for (uint32_t i = 0; i < rx.count; i++) {
        point_at(&rx.entry[i], rx_buffer(i));
        rx.entry[i].bcnt = (uint16_t)(BCNT_ONES | (-rx_buffer_len & 0xfff));
        give_to_chip(&rx.entry[i], 0);
    }
    for (uint32_t i = 0; i < tx.count; i++) {
        point_at(&tx.entry[i], tx_buffer(i));
        tx.entry[i].status = 0;
    }
}

static void fill_init_block(void)
{
    const uint8_t *mac = PARAMETERS->mac;
    struct init_block *block = (struct init_block *)dvma_to_cpu(init_block);
    memset(block, 0, sizeof *block);
    for (int i = 0; i < 3; i++)
        block->padr[i] = (uint16_t)(mac[2 * i + 1] << 8 | mac[2 * i]);
    if (PARAMETERS->ipv6)       /* every group: those of discovery are among them */
        memset(block->ladrf, 0xff, sizeof block->ladrf);
    block->rdra = (uint16_t)rx.dvma;
    block->rlen_rdra = (uint16_t)(rx.log2 << 13 | (rx.dvma >> 16 & 0xff));
    block->tdra = (uint16_t)tx.dvma;
    block->tlen_tdra = (uint16_t)(tx.log2 << 13 | (tx.dvma >> 16 & 0xff));
}

static void write_csr(uint16_t csr, uint16_t value)
{
    write16(RAP, csr);
    write16(RDP, value);
}

/* Stop, INIT, wait for IDON, STRT. RAP is left at CSR0, and stays there. */
static bool lance_start(void)
{
    write_csr(0, CSR0_STOP);
    write32(E_CSR, E_CSR_RESET);
    write32(E_CSR, E_CSR_INVALIDATE | E_CSR_TP);
    write32(E_BASE_ADDR, DVMA_BASE & 0xff000000);
    fill_rings();
    fill_init_block();
    write_csr(3, (uint16_t)(CSR3_ACON | CSR3_BCON | (lanes_exchanged ? 0 : CSR3_BSWP)));
    write_csr(1, (uint16_t)init_block);
    write_csr(2, (uint16_t)(init_block >> 16 & 0xff));
    write_csr(0, CSR0_INIT);
    for (int i = 0; i < INIT_READS; i++) {
        uint16_t csr0 = read16(RDP);
        if (csr0 & CSR0_MERR)
            return false;
        if (!(csr0 & CSR0_IDON))
            continue;
        write16(RDP, CSR0_IDON | CSR0_INEA | CSR0_STRT);
        write32(E_CSR, E_CSR_TP | E_CSR_INT_EN);
        rx_work = needs_restart = false;
        return true;
    }
    return false;
}

bool lance_init(void)
{
    lanes_exchanged = !PARAMETERS->bswp;
    rx_buffer_len = PARAMETERS->rx_buffer_len;
    if (PARAMETERS->rx_log2 > RING_LOG2_MAX || PARAMETERS->tx_log2 > RING_LOG2_MAX)
        return false;
    if (!ring_alloc(&rx, PARAMETERS->rx_log2) || !ring_alloc(&tx, PARAMETERS->tx_log2))
        return false;
    init_block = dvma_alloc(sizeof(struct init_block), 8);
    tx_buffers = dvma_alloc(tx.count * TX_STRIDE, PAGE_SIZE);
    rx_buffers = dvma_alloc(rx.count * rx_buffer_len + IP_ALIGN, PAGE_SIZE) + IP_ALIGN;
    return init_block && tx_buffers && rx_buffers != IP_ALIGN && lance_start();
}

void lance_interrupt(void)
{
    uint16_t csr0 = read16(RDP);
    RESULT->interrupts++;
    if (!(csr0 & CSR0_INTR))
        return;
    write16(RDP, (uint16_t)((csr0 & CSR0_CAUSES) | CSR0_INEA));
    if (csr0 & (CSR0_RINT | CSR0_MISS))
        rx_work = true;
    if ((csr0 & CSR0_MERR) || (csr0 & (CSR0_RXON | CSR0_TXON)) != (CSR0_RXON | CSR0_TXON))
        needs_restart = true;
}

/* Exchange the bytes of each 16-bit word. `at` is even; an odd length means one byte more. */
static void exchange_lanes(uint8_t *at, uint32_t len)
{
    if (len && ((uintptr_t)at & 2)) {
        *(uint16_t *)at = __builtin_bswap16(*(uint16_t *)at);
        at += 2, len = len > 2 ? len - 2 : 0;
    }
    uint32_t *word = (uint32_t *)at;
    for (; len > 2; len = len > 4 ? len - 4 : 0, word++)
        *word = (*word & 0x00ff00ff) << 8 | (*word >> 8 & 0x00ff00ff);
    if (len)
        *(uint16_t *)word = __builtin_bswap16(*(uint16_t *)word);
}

/* The descriptors of the frame at rx.next: their number; 0 while the chip is not through with it.
 * `*good` is false where the frame is damaged or incomplete. */
static uint32_t frame_descriptors(bool *good)
{
    *good = (at(&rx, 0)->status & STP) != 0;
    for (uint32_t n = 0; n < rx.count; n++) {
        uint8_t status = at(&rx, n)->status;
        if (status & OWN)
            return 0;
        if (status & ERR)
            *good = false;
        if (status & (ENP | ERR))
            return n + 1;
    }
    *good = false;      /* the whole ring, and no end */
    return rx.count;
}

/* Copy the chain's bytes in order, piece by piece; a piece ends with its buffer or its page. */
static uint8_t *gather(uint32_t len)
{
    uint8_t *out = message + IP_ALIGN;
    uint32_t done = 0;
    for (uint32_t n = 0; done < len; n++) {
        uint32_t from = rx_buffer((rx.next + n) & (rx.count - 1));
        uint32_t left = min32(rx_buffer_len, len - done);
        while (left) {
            uint32_t piece = min32(left, PAGE_SIZE - from % PAGE_SIZE);
            memcpy(out + done, dvma_to_cpu(from), piece);
            from += piece, done += piece, left -= piece;
        }
    }
    return out;
}

static uint8_t *frame_octets(uint32_t descriptors, uint32_t len)
{
    uint32_t first = rx_buffer(rx.next & (rx.count - 1));
    bool across_page = first % PAGE_SIZE + len > PAGE_SIZE;
    bool in_one_piece = descriptors == 1 && !(PARAMETERS->scatter && across_page);
    uint32_t even_len = (len + 1) & ~1u;
    uint8_t *frame = in_one_piece ? dvma_to_cpu(first) : gather(even_len);
    if (lanes_exchanged)
        exchange_lanes(frame, even_len);
    return frame;
}

bool lance_receive(frame_handler *handler)
{
    if (needs_restart) {
        RESULT->restarts++;
        lance_start();
    }
    bool good;
    uint32_t descriptors = rx_work ? frame_descriptors(&good) : 0;
    if (!descriptors) {
        rx_work = false;
        return false;
    }
    uint32_t len = at(&rx, descriptors - 1)->mcnt & 0xfff;
    if (good && len > ETHERNET_HEADER_LEN + FCS_LEN && len <= descriptors * rx_buffer_len) {
        RESULT->rx_frames++;
        handler(frame_octets(descriptors, len - FCS_LEN), len - FCS_LEN);
    } else {
        RESULT->rx_dropped++;
    }
    RESULT->rx_descriptors += descriptors;
    for (uint32_t n = 0; n < descriptors; n++)
        give_to_chip(at(&rx, n), 0);
    rx.next += descriptors;
    return true;
}

uint8_t *lance_tx_begin(void)
{
    if (at(&tx, 0)->status & OWN) {
        RESULT->tx_full++;
        return 0;
    }
    return dvma_to_cpu(tx_buffer(tx.next & (tx.count - 1)));
}

void lance_transmit(uint32_t len)
{
    uint8_t *frame = dvma_to_cpu(tx_buffer(tx.next & (tx.count - 1)));
    if (len < FRAME_MIN) {
        memset(frame + len, 0, FRAME_MIN - len);
        len = FRAME_MIN;
    }
    if (lanes_exchanged)
        exchange_lanes(frame, (len + 1) & ~1u);
    volatile struct descriptor *d = at(&tx, 0);
    d->bcnt = (uint16_t)(BCNT_ONES | (-len & 0xfff));
    give_to_chip(d, STP | ENP);
    tx.next++;
    RESULT->tx_frames++;
    write16(RDP, CSR0_INEA | CSR0_TDMD);
}
