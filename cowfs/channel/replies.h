/*
 * replies.h - what libfuse wrote into the socket, completed and passed on to the kernel
 */
#ifndef COWFS_REPLIES_H
#define COWFS_REPLIES_H

#include <stdint.h>

#include "channel.h"

/* Pass on every reply that libfuse has written so far, and return how many there were. Never blocks. */
int channel_drain(struct channel *ch);

/* The age in nanoseconds of the oldest request that libfuse has not answered; 0: there is none. */
uint64_t channel_oldest(struct channel *ch);

/* The inode number that users see for a node id. */
uint64_t shown_ino(const struct channel *ch, uint64_t nodeid);

#endif
