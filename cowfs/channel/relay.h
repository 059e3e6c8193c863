/*
 * relay.h - requests that go to libfuse, and what has to be changed in them
 */
#ifndef COWFS_RELAY_H
#define COWFS_RELAY_H

#include "channel.h"

/* Send a well-formed request to libfuse. The reply comes back through channel_drain(); what cannot be
 * sent is answered with EIO. The request is changed. */
void relay(struct channel *ch, struct request *rq);

/* The same for FORGET and BATCH_FORGET, which have no reply. */
void relay_mute(struct channel *ch, struct request *rq);

#endif
