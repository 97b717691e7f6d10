/*
 * ESP driver (NCR53C90 family).
 *
 * A command is: select the target and send IDENTIFY and the command block by DMA; as many transfers
 * as the data need; status and message; bus free. Each step ends in an interrupt, and the handler
 * starts the next one, so a command runs on while the program does something else, as long as that
 * waits now and then (board.h).
 *
 * The handler reads STATUS and the sequence step before INTERRUPT, which clears both, and insists on
 * the values that the book has for each step; anything else ends the command with a bus reset. So
 * does a memory error of the channel (ERR_PEND).
 */
#include "esp.h"

#include "board.h"
#include "dvma.h"
#include "lib.h"
#include "prom.h"

enum {
    D_CSR = ESPDMA_BASE, D_ADDR = ESPDMA_BASE + 4,
    D_ERR_PEND = 0x2, D_INT_EN = 0x10, D_INVALIDATE = 0x20, D_RESET = 0x80, D_WRITE = 0x100, D_EN_DMA = 0x200,

    /* Registers are bytes, four apart. */
    COUNT_LOW = ESP_BASE, COUNT_MID = ESP_BASE + 0x4, FIFO = ESP_BASE + 0x8, COMMAND = ESP_BASE + 0xc,
    STATUS = ESP_BASE + 0x10, BUS_ID = ESP_BASE + 0x10, INTERRUPT = ESP_BASE + 0x14, TIMEOUT = ESP_BASE + 0x14,
    STEP = ESP_BASE + 0x18, CONFIG1 = ESP_BASE + 0x20, CLOCK = ESP_BASE + 0x24, CONFIG2 = ESP_BASE + 0x2c,

    DMA = 0x80,                 /* of a command */
    NOP = 0x00, FLUSH_FIFO = 0x01, CHIP_RESET = 0x02, BUS_RESET = 0x03, TRANSFER = 0x10, COMPLETE = 0x11,
    MESSAGE_ACCEPTED = 0x12, SELECT_ATN = 0x42, ENABLE_SELECTION = 0x44,
    FUNCTION_COMPLETE = 0x08, BUS_SERVICE = 0x10, DISCONNECTED = 0x20,     /* INTERRUPT */
    PHASE_MASK = 7, DATA_OUT = 0, DATA_IN = 1, STATUS_PHASE = 3,
    OWN_ID = 7, NO_RESET_INTERRUPT = 0x40,      /* CONFIG1 */
    SCSI_2 = 0x08,              /* CONFIG2 */
    CLOCK_FACTOR = 8 & 7,       /* 40 MHz */
    SELECT_TIMEOUT = 153,       /* 250 ms: 40 MHz * 0.25 s / (8192 * 8) */
    SELECTED_STEP = 4,

    IDENTIFY = 0x80,            /* logical unit 0, no disconnection */
    CHECK_CONDITION = 0x02,
    PATIENCE = 5000000,         /* microseconds for one command */
};

enum step { IDLE, SELECTING, MOVING, ENDING, FREEING };

static struct {
    enum step step;
    enum esp_outcome outcome;
    struct esp_command command;
    uint32_t moved, segment;    /* bytes of data: done, and of the transfer under way */
    uint8_t status;
} now_running;

static uint32_t block;          /* DVMA of the command block */

static void command(uint8_t code) { write8(COMMAND, code); }

static void dma_command(uint8_t code, uint32_t dvma, uint32_t len, uint32_t direction)
{
    write32(D_CSR, D_INT_EN | D_EN_DMA | direction);
    write32(D_ADDR, dvma);
    write8(COUNT_LOW, (uint8_t)len);
    write8(COUNT_MID, (uint8_t)(len >> 8));
    command(DMA | code);
}

static void dma_off(void)
{
    write32(D_CSR, D_INT_EN | D_INVALIDATE);
    write32(D_CSR, D_INT_EN);
}

static void reset_all(void)
{
    write32(D_CSR, D_RESET);
    write32(D_CSR, 0);
    command(CHIP_RESET);
    command(NOP);
    write8(CONFIG1, OWN_ID | NO_RESET_INTERRUPT);
    write8(CONFIG2, SCSI_2);
    write8(CLOCK, CLOCK_FACTOR);
    write8(TIMEOUT, SELECT_TIMEOUT);
    command(BUS_RESET);
    read8(INTERRUPT);
    write32(D_CSR, D_INT_EN);
}

static void end(enum esp_outcome outcome)
{
    now_running.step = IDLE;
    now_running.outcome = outcome;
}

static void fail(void)
{
    reset_all();
    end(ESP_FAILED);
}

bool esp_init(void)
{
    block = dvma_alloc(1 + ESP_CDB_MAX, 16);
    if (!block)
        return false;
    reset_all();
    return read8(CONFIG2) == SCSI_2;
}

void esp_start(const struct esp_command *wanted)
{
    now_running.step = SELECTING;
    now_running.outcome = ESP_BUSY;
    now_running.command = *wanted;
    now_running.moved = now_running.segment = 0;
    uint8_t *octets = dvma_to_cpu(block);
    octets[0] = IDENTIFY;
    memcpy(octets + 1, wanted->cdb, wanted->cdb_len);
    RESULT->disk_commands++;
    write8(BUS_ID, wanted->target);
    dma_command(SELECT_ATN, block, 1u + wanted->cdb_len, 0);
}

/* The target asks for the next phase. */
static void next_phase(uint8_t phase)
{
    const struct esp_command *c = &now_running.command;
    uint32_t left = c->len - now_running.moved;
    if (phase == STATUS_PHASE) {
        now_running.step = ENDING;
        command(FLUSH_FIFO);
        command(COMPLETE);
    } else if (left && phase == (c->to_target ? DATA_OUT : DATA_IN)) {
        now_running.step = MOVING;
        now_running.segment = min32(left, ESP_SEGMENT_MAX);
        dma_command(TRANSFER, c->dvma + now_running.moved, now_running.segment, c->to_target ? 0 : D_WRITE);
    } else {
        fail();
    }
}

static void selected(uint8_t phase, uint8_t step, uint8_t interrupt)
{
    dma_off();
    if (interrupt == DISCONNECTED)
        end(ESP_ABSENT);
    else if (interrupt == (BUS_SERVICE | FUNCTION_COMPLETE) && step == SELECTED_STEP)
        next_phase(phase);
    else
        fail();
}

static void moved(uint8_t phase, uint8_t interrupt)
{
    if (interrupt != BUS_SERVICE) {
        fail();
        return;
    }
    uint32_t residue = read8(COUNT_LOW) | (uint32_t)read8(COUNT_MID) << 8;
    now_running.moved += now_running.segment - residue;
    dma_off();
    next_phase(phase);
}

static void ended(uint8_t interrupt)
{
    now_running.status = read8(FIFO);
    uint8_t message = read8(FIFO);
    if (interrupt != FUNCTION_COMPLETE || message) {
        fail();
        return;
    }
    now_running.step = FREEING;
    command(MESSAGE_ACCEPTED);
}

static void freed(uint8_t interrupt)
{
    if (interrupt != DISCONNECTED) {
        fail();
        return;
    }
    command(ENABLE_SELECTION);
    if (now_running.status == 0)
        end(ESP_GOOD);
    else
        end(now_running.status == CHECK_CONDITION ? ESP_CHECK : ESP_FAILED);
}

void esp_interrupt(void)
{
    RESULT->disk_interrupts++;
    if (read32(D_CSR) & D_ERR_PEND) {
        fail();
        return;
    }
    uint8_t phase = read8(STATUS) & PHASE_MASK, step = read8(STEP) & 7, interrupt = read8(INTERRUPT);
    switch (now_running.step) {
    case SELECTING: selected(phase, step, interrupt); break;
    case MOVING: moved(phase, interrupt); break;
    case ENDING: ended(interrupt); break;
    case FREEING: freed(interrupt); break;
    case IDLE: break;
    }
}

enum esp_outcome esp_state(void) { return now_running.outcome; }

enum esp_outcome esp_wait(void)
{
    uint32_t deadline = clock_us() + PATIENCE;
    while (now_running.outcome == ESP_BUSY) {
        uint32_t now = clock_us();
        if (!before(now, deadline)) {
            fail();
            break;
        }
        wait_for_interrupt(deadline - now);
    }
    return now_running.outcome;
}

uint32_t esp_moved(void) { return now_running.moved; }
