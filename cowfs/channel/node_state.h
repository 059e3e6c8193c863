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

/* ---- called with the lock --------------------------------------------------------------------- */

uint32_t opens_total(const struct opens *o);
void opens_add(struct opens *o, bool writing);
/* Never below zero, whatever Python took the access mode for. */
void opens_remove(struct opens *o, bool writing);

bool node_is_open(const struct node *n);
/* Whether the kernel goes to the file by itself. */
bool node_is_passthrough(const struct node *n);

/* What is cached is nobody's, and makes room. */
bool node_have_room_locked(struct node_table *t, uint32_t uid, struct backing **dead);
/* The descriptor of the node's backing is held for this user from now on, unless it is for another one. */
void node_charge_locked(struct node_table *t, struct node *n, uint32_t uid);
void node_uncharge_gone_locked(struct node_table *t, struct node *n);

/* Python has counted an open. */
void node_count_pending_locked(struct node_table *t, struct node *n, bool writing);
/* The last open has gone. */
void node_close_locked(struct node_table *t, struct node *n, struct backing **dead);
/* Take the backing from a node without opens. What is left of the node is only worth keeping for
 * its memory of a stale page cache, or of a mapping. */
void node_drop_backing_locked(struct node_table *t, struct node *n, struct backing **dead);
void node_describe(const struct node *n, uint64_t unique, struct open_answer *out);

#endif
