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

/* A node that is or was backed. Every word is guarded by node_table.lock; what the next daemon needs
 * is written to the node's slot of the ledger before the lock is let go. */
struct node {
	uint64_t nodeid;
	uint32_t slot;	   /* never changes */
	struct node *next; /* in its bucket */
	struct backing *backing; /* NULL: nothing backs it now */
	struct opens opens;
	/* Python has counted these, and the kernel has not been told. Should the daemon die now the
	 * kernel asks again. */
	struct opens pending;
	bool revoked;	      /* the channel may not answer an OPEN of it by itself */
	bool forgotten;	      /* goes away with its last open */
	bool was_passthrough; /* FUSE's own cache of it may be stale: never FOPEN_KEEP_CACHE */
	bool mappable;	      /* a passthrough mapping may change the file with no descriptor left */
	bool cached;	      /* is in the LRU list: SHARED, not revoked, no opens */
	bool suspect;	      /* restored, and errors may be missing: see nodes_look_back() */
	bool charged;	      /* its backing is held for `charged_to`, who was the first to open it */
	bool gone;	      /* Python holds a descriptor of it for `gone_by`, who removed its name */
	uint32_t charged_to, gone_by;
	struct writeback writeback; /* for whoever has the node open, whatever backs it meanwhile */
	struct node *newer, *older;
};

struct node_table {
	pthread_mutex_t lock;
	struct node **buckets; /* lock */
	uint32_t mask;	       /* lock; number of buckets - 1 */
	uint32_t count;	       /* lock */
	struct node *newest, *oldest; /* lock; the cached nodes, in the order of their last release */
	uint32_t cached;	       /* lock */
	uint32_t max_cached;     /* never changes */
	struct holders holders; /* lock; of all that is open or gone, but for what is cached */
	struct backing_device device;
	struct ledger *ledger; /* never changes */
	/* Held over syncfs(2); no other lock is held when it is taken. */
	pthread_mutex_t looking_back;
	int witness_fd;	       /* looking_back; -1: none is needed any more */
};

/* ---- called with the lock --------------------------------------------------------------------- */

struct node *node_find_locked(const struct node_table *t, uint64_t nodeid);
struct node *node_insert_locked(struct node_table *t, uint64_t nodeid, uint32_t slot);
struct node *node_find_or_insert_locked(struct node_table *t, uint64_t nodeid);
void node_remove_locked(struct node_table *t, struct node *n);

void node_cache_locked(struct node_table *t, struct node *n);
void node_uncache_locked(struct node_table *t, struct node *n);

void node_record_locked(struct node_table *t, const struct node *n);
/* The same together with an unacknowledged request, in one step. */
void node_record_unacked_locked(struct node_table *t, const struct node *n,
				struct unacked *unacked, uint64_t unique,
				enum unacked_kind what);

#endif
