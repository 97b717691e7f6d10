/* Driver of the ESP behind ESPDMA: one SCSI command at a time, run by its interrupts. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum {
    ESP_TARGETS = 7,            /* ids 0 to 6; 7 is the chip's own */
    ESP_CDB_MAX = 12,
    ESP_SEGMENT_MAX = 32768,    /* bytes per transfer command: the counter has 16 bits */
};

enum esp_outcome {
    ESP_BUSY,       /* under way */
    ESP_GOOD,
    ESP_CHECK,      /* CHECK CONDITION: ask for the sense data */
    ESP_ABSENT,     /* nobody answered the selection */
    ESP_FAILED,     /* a memory error, or the chip did what it should not; the bus was reset */
};

struct esp_command {
    uint8_t target, cdb_len, cdb[ESP_CDB_MAX];
    uint32_t dvma, len;         /* of the data; len 0: none */
    bool to_target;
};

/* Reset channel, chip and bus. False: no memory for a command block, or no answer from the chip. */
bool esp_init(void);

/* Start a command; the one before must be over. */
void esp_start(const struct esp_command *command);

/* How it stands, without waiting; and at its end, after at most some seconds. */
enum esp_outcome esp_state(void);
enum esp_outcome esp_wait(void);

/* Bytes of data that the last command moved. */
uint32_t esp_moved(void);

/* The handler of interrupt level 4: from the trap table, inside wait_for_interrupt(). */
void esp_interrupt(void);
