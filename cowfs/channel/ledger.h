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
#include "wire.h"

/* Changes with every change of a layout below: a daemon reads its own only. */
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

struct ledger_header;

struct ledger {
	int fd;			      /* never changes */
	struct ledger_header *header; /* never changes */
	struct ledger_slot *slots;    /* never changes; each is written by ledger_write() */
	uint32_t *unused;	      /* node_table.lock; a stack of slots below `used` */
	uint32_t unused_count;	      /* node_table.lock */
	uint32_t unused_room;	      /* node_table.lock */
	pthread_mutex_t again_lock;   /* the header's requests that came again */
};

/* The conversation at INIT, as it was. */
struct ledger_init {
	struct fuse_in_header head;
	struct wire_init_in_ext in;
	struct wire_init_out out;
};

/* A new one, with no slot. NULL with errno set. */
struct ledger *ledger_new(void);
/* That of the daemon before, whose last change is undone if it was cut short. Takes fd over, even on
 * failure: NULL with errno EPROTO for one of another layout, EINVAL for none at all. */
struct ledger *ledger_open(int fd);
void ledger_free(struct ledger *l);

/* The same look without opening: 0, -EPROTO, -EINVAL or another -errno. fd stays the caller's. */
int ledger_check(int fd);

struct counters *ledger_counters(struct ledger *l);

/* What was agreed at INIT, or NULL before it was. */
const struct ledger_init *ledger_init(const struct ledger *l);
void ledger_set_init(struct ledger *l, const struct ledger_init *init);

/* ---- with node_table.lock ------------------------------------------------------------------------ */

/* LEDGER_NO_SLOT when all are taken. */
uint32_t ledger_take_slot(struct ledger *l);
/* Slots below this one may be somebody's. */
uint32_t ledger_used(const struct ledger *l);
/* A daemon that took over has no use for this slot. */
void ledger_give_slot(struct ledger *l, uint32_t slot);

/* Write a slot, and with it an unacknowledged request unless it is NULL: whoever is killed in between has written
 * neither. */
void ledger_write(struct ledger *l, uint32_t slot, const struct ledger_slot *now,
		  struct unacked *unacked, uint64_t unique, uint64_t nodeid,
		  enum unacked_kind what);

/* A place for an unacknowledged request. Never NULL: if need be, one that no request of our time can come for. */
struct unacked *ledger_unacked(struct ledger *l);
/* That of a request that came again, or NULL. */
struct unacked *ledger_find_unacked(struct ledger *l, uint64_t unique);
/* The kernel has had the reply. Needs no lock. */
void ledger_acknowledge(struct unacked *unacked);

/* A backing id that is about to be closed; gives where that is noted. Needs no lock to clear. */
_Atomic int32_t *ledger_closing(struct ledger *l, int32_t id);

/* ---- requests that come again -------------------------------------------------------------------- */

/* A request has come again, as every daemon that read it has ended: how often by now. Takes a lock of
 * its own. */
uint32_t ledger_came_again(struct ledger *l, uint64_t unique);

/* ---- backing ids --------------------------------------------------------------------------------- */

/* The kernel has just given out this id. Needs no lock: one thread at a time does so. */
void ledger_registered(struct ledger *l, int32_t id);
/* Ids that the daemon before may have left to the kernel; returns how many, at most `room`. */
uint32_t ledger_stray_ids(struct ledger *l, int32_t *ids, uint32_t room);

#define LEDGER_STRAYS 130

_Static_assert(sizeof(struct ledger_slot) == 64, "ledger_slot");
_Static_assert(sizeof(struct unacked) == 24, "unacked");

#endif
