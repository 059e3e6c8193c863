/*
 * serve.h - one request of the kernel: have it answered or relay it
 */
#ifndef COWFS_SERVE_H
#define COWFS_SERVE_H

#include <stddef.h>
#include <stdint.h>

#include "channel.h"

/* Handle one message from the kernel, of len bytes at message. Behind it there is room for RELAY_MAX
 * bytes in all, as relaying may add to it. scratch has max_read bytes, and may overlap the payload
 * of a WRITE, no more. */
void serve_message(struct channel *ch, uint8_t *message, size_t len, uint8_t *scratch);

#endif
