/*
 * channel.h - the channel as a whole: its one struct, and what its rooms offer each other
 *
 *                  /dev/fuse                                   socket pair
 *   kernel  ---- requests ---->  serve.c  ---- relayed requests ---->  libfuse, pyfuse3
 *                                   |                                        |
 *           <---- replies ----  dataplane.c                                  |
 *           <---- replies ----  replies.c  <-------------- replies ----------+
 *           <-- notifications - kernel.c
 *
 * handshake.c brings it up, channel.c makes, closes and frees it. ahead.c, nodes.c, holders.c,
 * ledger.c, pending.c, primed.c, stock.c, touch.c, counters.c, writeback.c and opcodes.c know nothing of this
 * struct.
 *
 * Threads:  workers (serve.c) read the kernel's descriptor and answer or relay; the thread that
 *           runs pyfuse3 calls channel_drain(); one notifier (kernel.c) writes what may block.
 * Locks:    each is held for a few instructions and never while another is taken, except `life`,
 *           which is taken first and shared by every call from outside; `touch.lock`, which is held
 *           over the system calls of one change of attributes, and is taken next; and backing.syncing
 *           and node_table.looking_back, which wait for a disk and are taken before node_table.lock.
 */
#ifndef COWFS_CHANNEL_H
#define COWFS_CHANNEL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

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

#define MAX_WORKERS 32

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

/* ---- channel.c ---------------------------------------------------------------------------------- */

/* NULL with errno set. max_kept is cut to what RLIMIT_NOFILE has for users. ledger_fd is the ledger of the daemon
 * before, which is taken over (see ledger_open()), or -1 for a new one. */
struct channel *channel_new(bool passthrough, uint64_t root_ino, uint32_t max_kept,
			    const struct backing_ops *ops, int ledger_fd);
/* Stop everything and close every descriptor but daemon_fd and closed_fd. Idempotent. */
void channel_close(struct channel *ch);
/* Close, and free. Nobody may use the channel any more. */
void channel_free(struct channel *ch);
/* Between these two nothing is closed; false: it is closed already. */
bool channel_enter(struct channel *ch);
void channel_leave(struct channel *ch);

/* ---- handshake.c --------------------------------------------------------------------------------- */

/* 0 or -errno of opening the mountpoint (ELOOP, ENOTDIR for a symlink) or /dev/fuse, or of mount(2). */
int channel_mount(struct channel *ch, const char *source, const char *mountpoint,
		  unsigned long flags, const char *options);
/* Use this descriptor as the kernel's; the tests' way in. Takes it over. */
void channel_adopt(struct channel *ch, int dev_fd);
/* INIT with both sides, then start the threads. 0 or -errno. */
int channel_start(struct channel *ch);
/* Go on with a connection that another daemon has started: INIT with libfuse alone, the open files of
 * the ledger, and the kernel is asked for every request that had no answer. Takes dev_fd over;
 * volume_fd is of the volume, and one open file description for every daemon of this mount. How many open
 * files are lost, or -errno: -EPROTO when this version would have agreed on something else at INIT, -EINVAL
 * when the kernel cannot send again. */
int channel_resume(struct channel *ch, int dev_fd, int volume_fd);

/* How many pages make up WIRE_MAX_DATA. The kernel counts in its own, and makes READs as large as so many
 * of them, whatever max_write says; on some machines a page has 64 KiB. */
uint16_t channel_max_pages(long page_size);

/* ---- serve.c ------------------------------------------------------------------------------------- */

int serve_start(struct channel *ch); /* 0 or -errno */
void serve_stop(struct channel *ch);
/* Handle one message from the kernel, of len bytes at message. */
void serve_message(struct channel *ch, uint8_t *message, size_t len, uint8_t *scratch);

/* ---- dataplane.c ----------------------------------------------------------------------------------- */

/* Answer one request of ROUTE_HERE whose body is at least as long as its row in opcodes.c says. */
void dataplane_answer(struct channel *ch, const struct request *rq);

/* ---- privileges.c -------------------------------------------------------------------------------- */

/* Which of setuid and setgid a change of data or owner takes from a file of that mode, when the caller has
 * no CAP_FSETID. */
mode_t lost_privileges(mode_t mode, bool in_group);
/* Take setuid and setgid from the file, whose data the caller of rq is about to change without
 * CAP_FSETID. 0 or errno. */
int drop_privileges(struct channel *ch, const struct request *rq, uint64_t nodeid, int fd);
/* The same where the kernel does not say whether the caller has it, which a WRITE alone does: root has. */
int drop_privileges_of_user(struct channel *ch, const struct request *rq, uint64_t nodeid, int fd);

/* ---- replies.c ----------------------------------------------------------------------------------- */

/* Pass on every reply that libfuse has written so far; returns how many. Never blocks. */
int channel_drain(struct channel *ch);
/* The age in nanoseconds of the oldest request that libfuse has not answered; 0: there is none. */
uint64_t channel_oldest(struct channel *ch);
/* The inode number that users see for a node id. */
uint64_t shown_ino(const struct channel *ch, uint64_t nodeid);

/* ---- kernel.c ------------------------------------------------------------------------------------ */

/* Write one whole message; 0 or -errno. */
int kernel_write(struct channel *ch, const struct iovec *iov, int count);
/* Answer a request. error is a positive errno or 0; then body follows. 0 or -errno: what the
 * kernel said of the reply. -ENOENT means that it does not wait for it any more. */
int kernel_answer(struct channel *ch, uint64_t unique, int error, const void *body, size_t len);
/* The same for a request that a worker holds; counts it as answered here. */
int answer_here(struct channel *ch, const struct request *rq, int error, const void *body,
		size_t len);
/* Nothing can be read from the kernel any more: make closed_fd readable. err is the positive errno of
 * read(2), or 0: that the connection has ended is known, and needs no asking. */
void kernel_gone(struct channel *ch, int err);

int notifier_start(struct channel *ch); /* 0 or -errno */
void notifier_stop(struct channel *ch);
/* Queue a notification whose write may wait for a directory's lock. 0 or -ENOMEM. */
int notify_later(struct channel *ch, const void *message, size_t len);
/* FUSE_NOTIFY_INVAL_ENTRY, queued. 0, -EINVAL for an impossible name, -ENOMEM. */
int notify_inval_entry(struct channel *ch, uint64_t parent, const char *name, size_t len);
/* FUSE_NOTIFY_INVAL_INODE for the attributes alone, sent at once. 0 or -errno; a node that the
 * kernel does not know is no error. */
int notify_inval_attr(struct channel *ch, uint64_t nodeid);
/* The same and everything that is cached: of a directory the listing, of a file its pages. Returns when
 * dirty pages have been written, which takes other workers. */
int notify_inval_data(struct channel *ch, uint64_t nodeid);
/* FUSE_NOTIFY_INVAL_INODE for the pages of a range, queued: it waits for those that a READ has
 * locked. 0 or -ENOMEM. */
int notify_inval_pages(struct channel *ch, uint64_t nodeid, uint64_t offset, uint32_t size);
/* FUSE_NOTIFY_RESEND: every request that has no answer yet comes again. 0 or -errno. */
int notify_resend(struct channel *ch);

#endif
