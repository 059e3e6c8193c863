/*
 * channel.h - the one struct of a channel, and how its files and locks are ordered
 *
 *                  /dev/fuse                                 socket pair
 *   kernel  ---- requests ---->  workers.c
 *                                serve.c  ---->  relay.c  ---- requests ---->  libfuse, pyfuse3
 *                                   |                                                |
 *           <---- replies ----  dataplane.c                                          |
 *           <---- replies ----  replies.c  <---------------- replies ----------------+
 *           <-- notifications - kernel.c
 *
 * Files, each of which calls only what stands below it:
 *
 *   life.c      makes, closes and frees a channel      handshake.c  brings it up, or goes on
 *   workers.c   the threads that read requests
 *   serve.c     where a request goes                   replies.c    what libfuse has answered
 *   relay.c     to libfuse                             dataplane.c  answered from the backing file
 *                                                      privileges.c
 *   kernel.c    writes to the kernel
 *   - - - - - - what knows nothing of this struct: - - - - - - - - - - - - - - - - - - - - - - - - - -
 *   node_restore.c, nodes.c      what backs the opens of a node
 *   node_state.c
 *   node_table.c
 *                                                      touch.c      changes of mode and owner
 *   backing.c                    one open file         stock.c      clones that it has made ahead
 *   ledger.c                     outlives the daemon   primed.c     answers to LOOKUPs to come
 *   agreement.c, ahead.c, writeback.c, holders.c, pending.c, counters.c, tally.c, served.c, opcodes.c
 *
 * Threads: workers read the kernel's descriptor and answer or relay; the thread that runs pyfuse3 calls
 * channel_drain(); one notifier (kernel.c) writes what may block.
 *
 * Locks, each taken after those to the left of it that lead to it. Those on the right are held for a
 * few instructions; touch.lock is held over the system calls of one change of attributes; syncing and
 * looking_back wait for a disk. Who has touch.lock may wait for a clone that is just being made
 * (stock.made): who makes it takes no lock until it is there.
 *
 *   life --+-- touch.lock --+-- primed.lock, touch.told_lock, stock.lock
 *          |                |
 *          +----------------+-- node_table.lock
 *          |                |
 *          +-- draining ----+-- pending.lock, notifier.lock
 *
 *   backing.syncing, looking_back --- node_table.lock
 *   flushing, pool.lock, ledger.again_lock, served.lock: alone
 *
 * Against this order Python takes `life`, shared, while it has touch.lock from hold_touches(). That is
 * safe as one thread, the event loop's, makes all calls from outside that take touch.lock, which is
 * recursive.
 *
 * A function whose name ends in _locked is called with the lock of the table that it works on.
 */
#ifndef COWFS_CHANNEL_H
#define COWFS_CHANNEL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "agreement.h"
#include "ahead.h"
#include "counters.h"
#include "ledger.h"
#include "nodes.h"
#include "pending.h"
#include "primed.h"
#include "served.h"
#include "touch.h"
#include "wire.h"

/* Largest message on the socket pair. The kernel's socket code needs no large contiguous memory
 * for it, libfuse's buffer holds it, and the largest xattr (64 KiB) fits with its name. */
#define RELAY_MAX (80u * 1024u)

/* What READDIRPLUS may ask pyfuse3 for at once. */
#define READDIR_MAX (64u * 1024u)

struct worker;
struct notice;

/* The threads of workers.c. */
struct worker_pool {
	pthread_mutex_t lock; /* protects the four below */
	struct worker *running;
	struct worker *finished; /* to be joined */
	unsigned total;		 /* running workers */
	unsigned idle;		 /* those of them that wait for a request */
	pthread_cond_t changed;	 /* a worker has finished */
	atomic_bool stopping;	 /* set once */
};

/* The thread of kernel.c that sends what may block. */
struct notifier {
	pthread_mutex_t lock; /* protects the two below */
	struct notice *first, *last;
	bool stopping;
	pthread_cond_t changed; /* there is something to send, or stopping was set */
	bool running;		/* used by notifier_start() and notifier_stop() alone */
	pthread_t thread;	/* the same */
};

struct channel {
	/* Shared by every call from outside that uses a descriptor or a table, exclusive in
	 * channel_close(): nothing is closed underneath a call. */
	pthread_rwlock_t life;
	bool closed; /* life protects it */

	/* Never change. */
	bool want_passthrough;
	uint64_t root_ino;     /* the inode number shown for node id 1 */
	int relay_fd;	       /* our end of the socket pair */
	int daemon_fd;	       /* libfuse's end */
	int closed_fd;	       /* eventfd; readable when the kernel's end is gone, or cannot be read */
	struct ledger *ledger; /* what the next daemon takes over */
	struct counters *counters; /* in the ledger */
	struct tally *tally;	   /* the same */

	/* Set before any thread runs. */
	int dev_fd;	       /* the kernel; -1 until it is mounted or adopted */
	char *mountpoint;      /* NULL unless channel_mount() has mounted it */
	bool passthrough;      /* what was agreed at INIT */
	bool resends;	       /* whether another channel could go on with the connection */
	uint8_t setxattr_head; /* bytes before the name in a SETXATTR */
	size_t max_read;       /* bytes that one READ may ask for, or more */
	size_t max_write;      /* bytes that one WRITE may bring, or more */

	/* Each has a lock of its own. */
	struct node_table nodes;
	struct pending_table pending;
	struct primed_table primed;
	struct touch_table touch;
	struct worker_pool pool;
	struct notifier notifier;
	struct ahead ahead;
	struct served served;

	pthread_mutex_t flushing;  /* held by the one worker that waits for dirty pages */
	pthread_mutex_t draining;  /* protects drain_buffer: there is one drain at a time */
	uint8_t *drain_buffer;	   /* RELAY_MAX bytes */
	atomic_int read_error;	   /* why closed_fd is readable: an errno, or 0: unmounted or aborted */
	atomic_bool libfuse_alive; /* it has answered INIT, hence owns daemon_fd */
};

/* A request as a worker read it. */
struct request {
	struct fuse_in_header head;
	uint64_t start_ns;
	uint8_t *body;
	uint32_t body_len;
	bool resent;	  /* an earlier daemon has read it, and may have done what it asks for */
	uint8_t *scratch; /* max_read bytes; may overlap the payload of a WRITE, no more */
};

/* The number of a request, whether it comes for the first time or again. */
static inline uint64_t first_unique(uint64_t unique)
{
	return unique & ~WIRE_UNIQUE_RESEND;
}

#endif
