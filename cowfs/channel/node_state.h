/*
 * node_state.h - what a node goes through between its first open and its end
 */
#ifndef COWFS_NODE_STATE_H
#define COWFS_NODE_STATE_H

#include <stdbool.h>
#include <stdint.h>

#include "node_table.h"

/* What an OPEN or CREATE reply says. */
struct open_answer {
	uint64_t fh;
	uint32_t open_flags;
	int32_t backing_id;
};

/* Take node_table.lock. */
void nodes_lock(struct node_table *t);

/* Let node_table.lock go, and then close every backing that has lost its last reference under it. In a
 * build for a sanitizer every node of a small table is checked before: a state that node_state.c does not
 * know aborts. */
void nodes_unlock(struct node_table *t);

/* ---- called with the lock --------------------------------------------------------------------- */

uint32_t opens_total(const struct opens *o);
void opens_add(struct opens *o, bool writing);
/* Count one open less, of the other access mode if there is none of this one: Python may have taken the
 * mode for something else than the kernel does. Never below zero. */
void opens_remove(struct opens *o, bool writing);

/* Whether anybody has the node open, or is about to. */
bool node_is_open(const struct node *n);

/* Whether the kernel reads and writes the node's file by itself. */
bool node_is_passthrough(const struct node *n);

/* Whether one more descriptor may be held for this user. Cached backings make room for it, the oldest
 * first, as they are held for nobody: so the caller must not rely on a cached node afterwards. */
bool node_have_room_locked(struct node_table *t, uint32_t uid);

/* From now on the descriptor of the node's backing is held for this user, unless it is held for another
 * one. */
void node_charge_locked(struct node_table *t, struct node *n, uint32_t uid);

/* Count an open of a backed node that Python will answer. */
void node_pending_locked(struct node_table *t, struct node *n, bool writing);

/* Python has a use for the node that it has forgotten: it does not go away with its last open. */
void node_remember_locked(struct node_table *t, struct node *n);

/* Python holds no descriptor of the node any more; it need not have held one. */
void node_unhold_locked(struct node_table *t, struct node *n);

/* The last open of a backed node has gone: cache its backing, or drop it. The node may be gone
 * afterwards. */
void node_close_locked(struct node_table *t, struct node *n);

/* Take the backing, if there is one, from a node that nobody needs it of. The node is only left in the
 * table for what outlives a backing, and is gone otherwise. */
void node_drop_backing_locked(struct node_table *t, struct node *n);

/* What the reply to an OPEN of a backed node says, when the request has this number. */
struct open_answer node_describe(const struct node *n, uint64_t unique);

#endif
