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
 *   life.c      makes, closes and frees a channel      handshake.c  brings it up, or goes on with another's
 *   workers.c   the threads that read requests
 *   serve.c     where a request goes                   replies.c    what libfuse has answered
 *   relay.c     to libfuse                             dataplane.c  answered from the backing file
 *                                                      privileges.c
 *   kernel.c    writes to the kernel
 *   - - - - - - what knows nothing of this struct: - - - - - - - - - - - - - - - - - - - - - - - - - -
 *   node_restore.c, nodes.c      what backs the opens of a node
 *   node_state.c
 *   node_table.c
 *   backing.c                    one open file         touch.c      changes of mode and owner
 *   ledger.c                     outlives the daemon   primed.c     answers to LOOKUPs to come
 *   ahead.c, writeback.c, holders.c, pending.c, counters.c, opcodes.c
 *
 * Threads: workers read the kernel's descriptor and answer or relay; the thread that runs pyfuse3 calls
 * channel_drain(); one notifier (kernel.c) writes what may block.
 *
 * Locks, each taken after those to the left of it that lead to it. Those on the right are held for a few
 * instructions; touch.lock is held over the system calls of one change of attributes; syncing and looking_back
 * wait for a disk.
 *
 *   life --+-- touch.lock --+-- primed.lock, touch.told_lock
 *          |                |
 *          +----------------+-- node_table.lock
 *          |                |
 *          +-- draining ----+-- pending.lock, notifier.lock
 *
 *   backing.syncing, looking_back --- node_table.lock
 *   flushing, pool.lock, ledger.again_lock: alone
 *
 * Against this order Python takes `life`, shared, while it has touch.lock from hold_touches(). That is safe as
 * one thread, the event loop's, makes all calls from outside that take touch.lock, which is recursive.
 */
#ifndef COWFS_CHANNEL_H
#define COWFS_CHANNEL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "ahead.h"
#include "counters.h"
#include "ledger.h"
#include "nodes.h"
#include "pending.h"
#include "primed.h"
#include "touch.h"
#include "wire.h"

/* Largest message on the socket pair. The kernel's socket code needs no large contiguous memory
 * for it, libfuse's buffer holds it, and the largest xattr (64 KiB) fits with its name. */
#define RELAY_MAX (80u * 1024u)

/* What READDIRPLUS may ask pyfuse3 for at once. */
#define READDIR_MAX (64u * 1024u)

struct worker;
struct notice;

struct worker_pool {
	pthread_mutex_t lock;
	pthread_cond_t changed;	  /* a worker has finished */
	struct worker *running;	  /* lock */
	struct worker *finished;  /* lock; to be joined */
	unsigned total;		  /* lock; running workers */
	unsigned idle;		  /* lock; those of them that wait for a request */
	atomic_bool stopping;	  /* set once */
};

struct notifier {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct notice *first, *last; /* lock */
	bool stopping;		     /* lock */
	bool running;		     /* channel_start and channel_close only */
	pthread_t thread;
};

struct channel {
	/* Shared by every call from outside that uses a descriptor or a table, exclusive in
	 * channel_close(): nothing is closed underneath a call. */
	pthread_rwlock_t life;
	bool closed; /* life */

	bool want_passthrough; /* never changes */
	bool passthrough;      /* set by channel_start() before any thread runs */
	bool resends;	       /* the same: whether another channel could go on with the connection */
	uint8_t setxattr_head; /* the same: bytes before the name in a SETXATTR */
	uint64_t root_ino;     /* never changes; the inode number shown for node id 1 */

	int dev_fd;    /* the kernel; set by mount or adopt, before any thread runs */
	int relay_fd;  /* our end of the socket pair; never changes */
	int daemon_fd; /* libfuse's end; never changes */
	int closed_fd; /* eventfd; readable when the kernel's end is gone, or cannot be read */
	atomic_int read_error; /* errno of the second case, set before; 0: unmounted or aborted */
	char *mountpoint; /* set by channel_mount(), used by channel_start() */

	struct ledger *ledger; /* never changes; what the next daemon takes over */
	struct node_table nodes;
	struct pending_table pending;
	struct primed_table primed;
	struct touch_table touch;
	struct counters *counters; /* in the ledger */
	struct worker_pool pool;
	struct notifier notifier;
	struct ahead ahead;

	pthread_mutex_t flushing; /* held by the one worker that waits for dirty pages */
	pthread_mutex_t draining; /* one drain at a time: it owns drain_buffer */
	uint8_t *drain_buffer;	  /* draining; RELAY_MAX bytes */
	atomic_bool libfuse_alive; /* it has answered INIT, hence owns daemon_fd */
};

/* A request as a worker read it. */
struct request {
	struct fuse_in_header head;
	uint64_t start_ns;
	uint8_t *body;
	uint32_t body_len;
	bool resent;	  /* an earlier daemon has read it, and may have done what it asks for */
	uint8_t *scratch; /* WIRE_MAX_DATA bytes; may overlap the payload of a WRITE, no more */
};

/* The number of a request, whether it comes for the first time or again. */
static inline uint64_t first_unique(uint64_t unique)
{
	return unique & ~WIRE_UNIQUE_RESEND;
}

#endif
