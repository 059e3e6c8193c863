/*
 * node_table.h - the nodes that are or were backed, by node id, and each one's slot in the ledger
 */
#ifndef COWFS_NODE_TABLE_H
#define COWFS_NODE_TABLE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "backing.h"
#include "holders.h"
#include "ledger.h"
#include "writeback.h"

/* How often a node is open, by access mode. */
struct opens {
	uint32_t readers;
	uint32_t writers;
};

/* A node that is or was backed. node_table.lock protects every word of it. node_state.c says which of
 * them may be set at the same time. */
struct node {
	/* Never change. */
	uint64_t nodeid;
	uint32_t slot; /* in the ledger */

	/* Its places in the table: in its bucket, and among the cached. */
	struct node *next;
	struct node *newer, *older;
	bool cached; /* its backing is cached: it may go at any time */

	/* What is open. */
	struct backing *backing; /* NULL: nothing backs it now */
	struct opens opens;	 /* the kernel has been told of these, or is being told */
	struct opens pending;	 /* Python has counted these. Should the daemon die, the kernel asks again */
	bool revoked;		 /* the channel may not answer an OPEN of it by itself */
	bool forgotten;		 /* goes away with its last open */

	/* What outlives the backing: it is true until the kernel forgets the node. */
	bool was_passthrough; /* FUSE's own cache of it may be stale: never FOPEN_KEEP_CACHE */
	bool mappable;	      /* a passthrough mapping may change the file with no descriptor left */

	/* For whom descriptors are held; see holders.h. */
	bool charged; /* that of its backing, for charged_to, who was the first to open it */
	bool held;    /* one that Python has, for held_by, who removed its name */
	uint32_t charged_to, held_by;

	/* Errors of writing it back, for all who have it open, whatever backs it meanwhile. */
	struct writeback writeback;
	bool suspect; /* restored, and errors may be missing: see nodes_look_back() */
};

struct node_table {
	pthread_mutex_t lock;	      /* taken by nodes_lock() alone */
	struct node **buckets;	      /* lock */
	uint32_t mask;		      /* lock; number of buckets - 1 */
	uint32_t count;		      /* lock; nodes */
	struct node *newest, *oldest; /* lock; the cached ones, in the order of their last release */
	uint32_t cached;	      /* lock; how many these are */
	struct holders holders;	      /* lock; of all that is open or held, but for what is cached */
	struct backing *free_list;    /* lock; backings without a reference, which nodes_unlock() closes */
	uint32_t max_cached;	      /* never changes */
	struct ledger *ledger;	      /* never changes; its slots change under lock */
	struct backing_device device; /* see there */

	pthread_mutex_t looking_back; /* held over syncfs(2); no other lock is held when it is taken */
	int witness_fd;		      /* looking_back; -1: none is needed any more */
};

/* ---- called with the lock --------------------------------------------------------------------- */

/* The node of that id, or NULL. */
struct node *node_find_locked(const struct node_table *t, uint64_t nodeid);

/* Insert a node that is not in the table. Its slot of the ledger is the caller's until then, and stays
 * so when there is no memory: then NULL is returned. */
struct node *node_insert_locked(struct node_table *t, uint64_t nodeid, uint32_t slot);

/* The node of that id, inserted with a slot of its own if need be. NULL: there is no memory, or no
 * slot. Nothing is written to the slot: who changes the node calls node_record_locked(). */
struct node *node_find_or_insert_locked(struct node_table *t, uint64_t nodeid);

/* Take a node without a backing out of the table, clear its slot, and free it. */
void node_remove_locked(struct node_table *t, struct node *n);

/* Make the node the newest of the cached ones. */
void node_cache_locked(struct node_table *t, struct node *n);

/* The node is not among the cached ones any more; it need not have been. */
void node_uncache_locked(struct node_table *t, struct node *n);

/* Write what the next daemon has to know of the node to its slot. To be called before the lock is let
 * go, after every change of a word that the slot has. */
void node_record_locked(struct node_table *t, const struct node *n);

/* The same together with an unacknowledged request, in one step: ledger_write() says how. */
void node_record_unacked_locked(struct node_table *t, const struct node *n,
				struct unacked *unacked, uint64_t unique,
				enum unacked_kind what);

#endif
