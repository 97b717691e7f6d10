/*
 * SCSI-2 commands to a disk of 512-byte blocks, through two buffers.
 *
 * Bytes are gathered in one buffer while the other is being written; when both are taken,
 * disk_write() waits for the disk, and frames wait in the Lance's ring. Reading back, one buffer is
 * digested while the other is being filled. So both chips do DMA at once, either way.
 *
 * Buffers lie in DVMA and may be scattered over RAM (dvma.h): they are touched page by page.
 */
#include "disk.h"

#include "board.h"
#include "console.h"
#include "dvma.h"
#include "esp.h"
#include "lib.h"
#include "sha256.h"

enum {
    TEST_UNIT_READY = 0x00, REQUEST_SENSE = 0x03, INQUIRY = 0x12, READ_CAPACITY = 0x25, READ_10 = 0x28,
    WRITE_10 = 0x2a, SYNCHRONIZE_CACHE = 0x35,
    INQUIRY_LEN = 36, SENSE_LEN = 18, CAPACITY_LEN = 8,
    TYPE_DISK = 0x00,           /* INQUIRY byte 0: connected, direct access */
    UNIT_ATTENTION = 6,         /* sense key */
    TRIES = 3,                  /* of a command that meets unit attention */
    BLOCK = 512,                /* bytes */
    BUFFER = 32768,             /* bytes, a multiple of BLOCK */
};

static uint32_t buffers[2], scratch;    /* DVMA */
static struct {
    uint8_t target;
    uint32_t blocks;
    uint32_t next_block;        /* where the next write goes */
    uint32_t filling, filled;   /* which buffer, and its bytes so far */
    uint64_t octets;            /* taken so far */
    bool pending;               /* a write or read may be under way */
    enum status status;         /* STATUS_OK until something went wrong */
} disk;

/* -- commands -------------------------------------------------------------------------------- */

static void put_cdb32(uint8_t *at, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        at[i] = (uint8_t)(value >> (24 - 8 * i));
}

static struct esp_command command_6(uint8_t target, uint8_t opcode, uint32_t len)
{
    struct esp_command c = {target, 6, {opcode, 0, 0, 0, (uint8_t)len}, scratch, len, false};
    return c;
}

static struct esp_command command_10(uint8_t opcode, uint32_t block, uint32_t count)
{
    struct esp_command c = {disk.target, 10, {opcode}, 0, 0, false};
    put_cdb32(c.cdb + 2, block);
    c.cdb[7] = (uint8_t)(count >> 8);
    c.cdb[8] = (uint8_t)count;
    return c;
}

/* Why did the last command end in CHECK CONDITION? The sense key. */
static uint8_t ask_sense(uint8_t target)
{
    struct esp_command c = command_6(target, REQUEST_SENSE, SENSE_LEN);
    esp_start(&c);
    if (esp_wait() != ESP_GOOD || esp_moved() < SENSE_LEN)
        return 0xff;
    const uint8_t *sense = dvma_to_cpu(scratch);
    uint8_t key = sense[2] & 15;
    if (key != UNIT_ATTENTION)
        print("disk: target %u, sense %x/%x/%x\n", (uint32_t)target, (uint32_t)key, (uint32_t)sense[12],
              (uint32_t)sense[13]);
    return key;
}

/* Run a command; where it meets unit attention, once more. */
static enum esp_outcome run(const struct esp_command *command)
{
    enum esp_outcome outcome = ESP_FAILED;
    for (int tries = 0; tries < TRIES; tries++) {
        esp_start(command);
        outcome = esp_wait();
        if (outcome != ESP_CHECK || ask_sense(command->target) != UNIT_ATTENTION)
            break;
    }
    return outcome;
}

/* -- finding a disk -------------------------------------------------------------------------- */

static bool is_disk(uint8_t target)
{
    struct esp_command inquiry = command_6(target, INQUIRY, INQUIRY_LEN);
    if (run(&inquiry) != ESP_GOOD || esp_moved() < INQUIRY_LEN)
        return false;
    char name[INQUIRY_LEN - 8 + 1];
    const uint8_t *data = dvma_to_cpu(scratch);
    uint8_t type = data[0];
    memcpy(name, data + 8, sizeof name - 1);
    name[sizeof name - 1] = 0;
    print("scsi: target %u is %s\n", (uint32_t)target, name);
    return type == TYPE_DISK;
}

static bool learn_size(void)
{
    struct esp_command ready = command_6(disk.target, TEST_UNIT_READY, 0);
    struct esp_command capacity = command_10(READ_CAPACITY, 0, 0);
    capacity.dvma = scratch, capacity.len = CAPACITY_LEN;
    if (run(&ready) != ESP_GOOD || run(&capacity) != ESP_GOOD || esp_moved() != CAPACITY_LEN)
        return false;
    const uint32_t *data = (const uint32_t *)dvma_to_cpu(scratch);
    if (data[1] != BLOCK)
        return false;
    disk.blocks = data[0] + 1 ? data[0] + 1 : data[0];
    RESULT->disk_blocks = disk.blocks;
    print("disk: target %u, %u blocks of %u bytes\n", (uint32_t)disk.target, disk.blocks, data[1]);
    return true;
}

enum status disk_init(void)
{
    scratch = dvma_alloc(64, 64);
    buffers[0] = dvma_alloc(BUFFER, PAGE_SIZE);
    buffers[1] = dvma_alloc(BUFFER, PAGE_SIZE);
    if (!scratch || !buffers[0] || !buffers[1] || !esp_init())
        return STATUS_NO_DISK;
    disk.status = STATUS_OK;
    bool found = false;
    for (uint8_t target = 0; target < ESP_TARGETS; target++) {
        if (!is_disk(target) || found)
            continue;
        disk.target = target;
        found = learn_size();
    }
    return found ? STATUS_OK : STATUS_NO_DISK;
}

/* -- writing --------------------------------------------------------------------------------- */

static void start(const struct esp_command *command)
{
    disk.pending = true;
    esp_start(command);
}

/* The write or read under way, if any, is over. */
static bool settle(void)
{
    bool was_pending = disk.pending;
    disk.pending = false;
    if (!was_pending || esp_wait() == ESP_GOOD)
        return true;
    if (esp_state() == ESP_CHECK)
        ask_sense(disk.target);
    disk.status = STATUS_DISK_ERROR;
    return false;
}

/* Start to write the buffer that was filled, and go on with the other one. */
static bool write_buffer(void)
{
    uint32_t count = (disk.filled + BLOCK - 1) / BLOCK;
    if (!settle())
        return false;
    if (count > disk.blocks - disk.next_block) {
        disk.status = STATUS_DISK_FULL;
        return false;
    }
    struct esp_command c = command_10(WRITE_10, disk.next_block, count);
    c.dvma = buffers[disk.filling], c.len = count * BLOCK, c.to_target = true;
    start(&c);
    disk.next_block += count;
    RESULT->disk_written += c.len;
    disk.filling ^= 1;
    disk.filled = 0;
    return true;
}

bool disk_write(const uint8_t *data, uint32_t len)
{
    while (len && disk.status == STATUS_OK) {
        uint32_t at = buffers[disk.filling] + disk.filled;
        uint32_t piece = min32(min32(len, BUFFER - disk.filled), PAGE_SIZE - at % PAGE_SIZE);
        memcpy(dvma_to_cpu(at), data, piece);
        data += piece, len -= piece;
        disk.filled += piece, disk.octets += piece;
        if (disk.filled == BUFFER)
            write_buffer();
    }
    return disk.status == STATUS_OK;
}

enum status disk_finish(void)
{
    static const uint8_t zeros[BLOCK];
    uint64_t octets = disk.octets;
    if (disk.filled % BLOCK)
        disk_write(zeros, BLOCK - disk.filled % BLOCK);
    disk.octets = octets;
    if (disk.status == STATUS_OK && disk.filled)
        write_buffer();
    if (disk.status == STATUS_OK && settle()) {
        struct esp_command c = command_10(SYNCHRONIZE_CACHE, 0, 0);
        if (run(&c) != ESP_GOOD)
            disk.status = STATUS_DISK_ERROR;
    }
    return disk.status;
}

/* -- reading back ---------------------------------------------------------------------------- */

static uint32_t read_buffer(uint32_t which, uint32_t block)
{
    uint32_t count = min32(disk.next_block - block, BUFFER / BLOCK);
    struct esp_command c = command_10(READ_10, block, count);
    c.dvma = buffers[which], c.len = count * BLOCK;
    start(&c);
    return count;
}

static void digest_buffer(struct sha256 *sha256, uint32_t which, uint32_t len)
{
    for (uint32_t at = buffers[which]; len;) {
        uint32_t piece = min32(len, PAGE_SIZE);
        sha256_update(sha256, dvma_to_cpu(at), piece);
        at += piece, len -= piece;
    }
}

enum status disk_verify(void)
{
    struct sha256 sha256;
    uint64_t left = disk.octets;
    uint32_t block = 0, which = 0;
    sha256_init(&sha256);
    uint32_t count = left ? read_buffer(which, block) : 0;
    while (count) {
        if (!settle())
            return disk.status;
        uint32_t came = esp_moved(), ready = which;
        RESULT->disk_read += came;
        block += count, which ^= 1;
        count = block < disk.next_block ? read_buffer(which, block) : 0;
        uint32_t len = left < came ? (uint32_t)left : came;
        digest_buffer(&sha256, ready, len);
        left -= len;
    }
    uint8_t digest[SHA256_DIGEST];
    sha256_final(&sha256, digest);
    for (uint32_t i = 0; i < SHA256_DIGEST; i++)
        RESULT->disk_digest[i] = digest[i];
    return left ? STATUS_DISK_ERROR : STATUS_OK;
}
