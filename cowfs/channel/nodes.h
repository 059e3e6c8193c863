/*
 * nodes.h - what backs the opens of each node
 */
#ifndef COWFS_NODES_H
#define COWFS_NODES_H

#include <stdbool.h>
#include <stdint.h>

#include "node_state.h"
#include "node_table.h"

/* How the kernel reads a file. */
enum node_reading {
	READ_CACHED = 0,      /* in pieces, from the channel, into pages of FUSE's own */
	READ_PASSTHROUGH = 1, /* by itself, from the backing file */
	READ_BYPASS = 2,      /* from the channel straight into the reader's memory; mmap: cached.
			       * For two nodes of one file, which only passthrough brings about. */
};

struct node_state {
	enum node_kind kind;
	uint32_t readers;
	uint32_t writers;
	bool passthrough;
};

/* max_held: descriptors of files that are open or have no name, those that are cached among them. */
int nodes_init(struct node_table *t, uint32_t max_cached, uint32_t max_held,
	       const struct backing_ops *ops, struct ledger *ledger);
/* Closes every backing. Nobody else may use the table any more. */
void nodes_destroy(struct node_table *t);

/* ---- called by Python; the promises are those of _channel.pyi ------------------------------- */

/* 1, 0 when nothing backs the node, -ENFILE. */
int nodes_open(struct node_table *t, uint64_t nodeid, bool writing, uint32_t uid);
/* Take back what nodes_open() or nodes_attach() has counted. */
void nodes_unopen(struct node_table *t, uint64_t nodeid, bool writing);
/* 0 or -errno, -ENFILE when this user holds enough; takes over fd in every case. */
int nodes_attach(struct node_table *t, uint64_t nodeid, int fd, enum node_kind kind,
		 enum node_reading reading, bool writing, uint32_t uid);
/* Whether one more descriptor may be held for this user; what is cached makes room. */
bool nodes_have_room(struct node_table *t, uint32_t uid);
/* Whether so many are held that it matters for whom. */
bool nodes_scarce(struct node_table *t);
/* 0, -ENFILE, -ENOMEM. */
int nodes_hold(struct node_table *t, uint64_t nodeid, uint32_t uid);
void nodes_let(struct node_table *t, uint64_t nodeid);
/* 1: done, fd is taken over. 0: nothing is open any more, -errno: not a node to switch; in both
 * cases fd stays the caller's. */
int nodes_switch(struct node_table *t, uint64_t nodeid, int fd);
bool nodes_revoke(struct node_table *t, uint64_t nodeid, struct node_state *out);
void nodes_mark_mappable(struct node_table *t, uint64_t nodeid);
bool nodes_is_volatile(struct node_table *t, uint64_t nodeid);
uint32_t nodes_writers(struct node_table *t, uint64_t nodeid);
/* A duplicate of the descriptor that backs the node, or -EBADF, -EMFILE. */
int nodes_backing_fd(struct node_table *t, uint64_t nodeid);
/* Whether the node is open, or cached, as a file of the template. */
bool nodes_is_shared(struct node_table *t, uint64_t nodeid);
void nodes_forget(struct node_table *t, uint64_t nodeid);

/* ---- called by the channel's threads ----------------------------------------------------------
 *
 * What changes a count notes the request as unacknowledged, to be acknowledged when the kernel has the
 * reply (ledger.h). unique is that of the request without WIRE_UNIQUE_RESEND. */

/* Count one reader of a node whose opens the channel may answer; false: relay the OPEN. */
bool nodes_repeat_open(struct node_table *t, uint64_t nodeid, uint64_t unique, uint32_t uid,
		       struct open_answer *out, struct unacked **unacked);
/* The reply to an OPEN that Python has counted is on its way; false: nothing backs the node. */
bool nodes_opened(struct node_table *t, uint64_t nodeid, bool writing, uint64_t unique,
		  struct open_answer *out, struct unacked **unacked);
/* The kernel did not take that reply. */
void nodes_not_opened(struct node_table *t, uint64_t nodeid, bool writing,
		      struct unacked *unacked);
/* One open less. A node that is not known is no error: after a failed reply both sides may
 * disagree for a moment. *unacked is NULL then. true: the last writer of a file that is not passed
 * through has left, and its descriptor with it unless readers are there. */
bool nodes_release(struct node_table *t, uint64_t nodeid, uint64_t fh, bool writing,
		   uint64_t unique, struct unacked **unacked);
/* The kernel has sent a request again. Of an OPEN: take back what it was counted as. Of a RELEASE:
 * true when it was counted already, and is only to be answered; then it is to be acknowledged. */
bool nodes_resent(struct node_table *t, uint64_t unique, struct unacked **unacked);
/* The backing of a node with a reference of the caller's own, or NULL. */
struct backing *nodes_borrow(struct node_table *t, uint64_t nodeid);
void nodes_return(struct node_table *t, struct backing *b);

/* A sync of the node's backing, through this handle, has failed with this errno, or 0: what the handle has
 * to be told. Called with backing.syncing. */
int nodes_synced(struct node_table *t, uint64_t nodeid, uint64_t fh, int error);

#endif
