/*
 * ledger.h - what outlives the daemon: shared memory that the keeper holds
 */
#ifndef COWFS_LEDGER_H
#define COWFS_LEDGER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "counters.h"
#include "tally.h"
#include "wire.h"

/* Changes with every change of a layout below: a daemon reads its own only. What is added at the end of the
 * header is no such change where 0, which a ledger of before has there, means that there is nothing. */
#define LEDGER_LAYOUT 3

#define LEDGER_NO_SLOT UINT32_MAX

/* Bytes of the largest file handle that is kept: XFS has 12, btrfs 20. */
#define LEDGER_HANDLE 32

enum ledger_flags {
	SLOT_BACKED = 1,
	SLOT_BYPASS = 2,
	SLOT_REVOKED = 4,
	SLOT_FORGOTTEN = 8,
	SLOT_WAS_PASSTHROUGH = 16,
	SLOT_MAPPABLE = 32,
};

/* A backing file, such that the next daemon can open it again: open_by_handle_at(2). */
struct ledger_handle {
	int32_t type;
	uint8_t bytes[LEDGER_HANDLE];
};

/* One node of nodes.c. */
struct ledger_slot {
	uint64_t nodeid; /* 0: nobody's */
	int32_t id;	 /* backing id, or 0 */
	uint32_t readers;
	uint32_t writers;
	uint8_t kind;  /* enum node_kind */
	uint8_t flags; /* enum ledger_flags */
	uint8_t handle_len; /* 0: the file system has no handles */
	uint8_t unused;
	uint16_t errors; /* like the next one: see writeback.h */
	uint16_t error;
	struct ledger_handle handle;
};

enum unacked_kind { UNACKED_READER = 1, UNACKED_WRITER, UNACKED_RELEASE };

/* An unacknowledged request: it has been counted in a slot, and the kernel may not have had its reply. If
 * it comes again after a RESEND it is not to be counted twice. */
struct unacked {
	_Atomic uint64_t unique; /* without the bit of a resent one; 0: nobody's */
	uint64_t nodeid;
	uint32_t life; /* of the daemon that counted it */
	uint32_t what; /* enum unacked_kind */
};

struct ledger_time {
	int64_t sec;
	int64_t nsec;
};

/* What kept_times.c has to set back. */
struct ledger_times {
	_Atomic uint32_t noted;	 /* 1: the rest is valid, and not set back yet */
	uint8_t handle_len;	 /* 0: the file system has no handles */
	uint8_t unused[3];
	struct ledger_handle handle; /* of the directory */
	struct ledger_time times[2]; /* of access, of change */
};

struct ledger_header;

struct ledger {
	int fd;			      /* never changes */
	struct ledger_header *header; /* never changes */
	struct ledger_slot *slots;    /* never changes; each is written by ledger_write() */
	uint32_t *unused;	      /* node_table.lock; a stack of slots below `used` */
	uint32_t unused_count;	      /* node_table.lock */
	uint32_t unused_room;	      /* node_table.lock */
	pthread_mutex_t again_lock;   /* protects the header's requests that came again */
};

/* The conversation at INIT, as it was. */
struct ledger_init {
	struct fuse_in_header head;
	struct wire_init_in_ext in;
	struct wire_init_out out;
};

/* Make a new ledger, with no slot in use. NULL, with errno set. */
struct ledger *ledger_new(void);
/* Open the ledger of the daemon before, and undo its last change if that was cut short. It takes fd over,
 * even on failure: NULL, with errno EPROTO for a ledger of another layout, EINVAL for none at all. */
struct ledger *ledger_open(int fd);
/* Unmap the ledger and close its descriptor. What it says stays, as long as anybody has another. */
void ledger_free(struct ledger *l);

/* Whether ledger_open() would take such a ledger: 0, -EPROTO, -EINVAL or another -errno. fd stays the
 * caller's. */
int ledger_check(int fd);

/* What was agreed at INIT, of a ledger that has passed this look. 0, -ENOTCONN before it was, or another
 * -errno. fd stays the caller's. */
int ledger_peek_init(int fd, struct ledger_init *init);

/* The counters of every daemon of the mount; they are valid as long as the ledger is. */
struct counters *ledger_counters(struct ledger *l);
struct tally *ledger_tally(struct ledger *l);

/* All that is counted, as others see it who have a descriptor of the ledger. */
struct ledger_counts {
	uint32_t lives;	  /* daemons there were */
	uint64_t files;	  /* nodes that are open */
	uint64_t handles; /* how often, together */
	uint64_t passed;  /* those of them whose files the kernel reads by itself */
	struct counters counters;
	struct tally tally;
};

/* Read it without a mapping, at no cost for who serves. 0, or -errno like ledger_check(). fd stays the
 * caller's. */
int ledger_peek_counts(int fd, struct ledger_counts *counts);

/* The times of a directory that is being changed, see kept_times.h, whose lock it has. */
struct ledger_times *ledger_times(struct ledger *l);

/* What was agreed at INIT, or NULL before it was. */
const struct ledger_init *ledger_init(const struct ledger *l);

/* Note what was agreed at INIT. To be called before the kernel has the answer, by the one thread there
 * is. */
void ledger_set_init(struct ledger *l, const struct ledger_init *init);

/* ---- with node_table.lock ------------------------------------------------------------------------ */

/* Give out a slot that is nobody's; LEDGER_NO_SLOT when all are taken. */
uint32_t ledger_take_slot(struct ledger *l);

/* The number of slots that were ever given out: only those may be somebody's. */
uint32_t ledger_used(const struct ledger *l);

/* Take back a slot that is nobody's any more, to give it out again. */
void ledger_give_slot(struct ledger *l, uint32_t slot);

/* Write a slot, and with it an unacknowledged request unless it is NULL. If the daemon is killed in
 * between, neither is written. */
void ledger_write(struct ledger *l, uint32_t slot, const struct ledger_slot *now,
		  struct unacked *unacked, uint64_t unique, uint64_t nodeid,
		  enum unacked_kind what);

/* A place for one more unacknowledged request, for ledger_write(). Never NULL: if need be, a place of
 * which the request has been answered long ago. */
struct unacked *ledger_unacked(struct ledger *l);

/* The unacknowledged request of that number, or NULL. */
struct unacked *ledger_find_unacked(struct ledger *l, uint64_t unique);

/* The kernel has had the reply. Needs no lock. */
void ledger_acknowledge(struct unacked *unacked);

/* Note that a backing id is about to be closed, lest it be lost when the daemon is killed before. Returns
 * where that is noted, for the caller to clear after the id is closed, which needs no lock; or NULL when
 * there is no room. */
_Atomic int32_t *ledger_closing(struct ledger *l, int32_t id);

/* ---- requests that come again -------------------------------------------------------------------- */

/* A request has come again, as every daemon that read it has ended. Returns how often by now. Takes
 * again_lock. */
uint32_t ledger_came_again(struct ledger *l, uint64_t unique);

/* ---- backing ids --------------------------------------------------------------------------------- */

/* Note the id that the kernel has just given out. Needs no lock: one thread at a time does so. */
void ledger_registered(struct ledger *l, int32_t id);

/* Take the ids that the daemon before may have left to the kernel. Returns how many, at most `room`. */
uint32_t ledger_stray_ids(struct ledger *l, int32_t *ids, uint32_t room);

#define LEDGER_STRAYS 130

_Static_assert(sizeof(struct ledger_slot) == 64, "ledger_slot");
_Static_assert(sizeof(struct unacked) == 24, "unacked");

#endif
