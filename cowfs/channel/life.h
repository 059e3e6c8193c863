/*
 * life.h - making, closing and freeing a channel
 */
#ifndef COWFS_LIFE_H
#define COWFS_LIFE_H

#include <stdbool.h>
#include <stdint.h>

#include "channel.h"

/* Make a channel that nothing is mounted by yet, with the socket pair. max_cached is cut to what
 * RLIMIT_NOFILE has for users. ledger_fd is the ledger of the daemon before, which is taken over (see
 * ledger_open()), or -1 for a new one. NULL, with errno set. */
struct channel *channel_new(bool passthrough, uint64_t root_ino, uint32_t max_cached,
			    const struct backing_ops *ops, int ledger_fd);

/* Stop everything, and close every descriptor but daemon_fd and closed_fd. May be called twice. */
void channel_close(struct channel *ch);

/* Close the channel, and free it. Nobody may use it any more. */
void channel_free(struct channel *ch);

/* Every call from outside that uses a descriptor or a table stands between these two, as nothing is
 * closed then. false: it is closed already, and there is nothing to leave. */
bool channel_enter(struct channel *ch);
void channel_leave(struct channel *ch);

#endif
