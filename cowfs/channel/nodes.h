/*
 * nodes.h - what backs the opens of each node: what Python and the channel's threads may ask and change
 */
#ifndef COWFS_NODES_H
#define COWFS_NODES_H

#include <stdbool.h>
#include <stdint.h>

#include "backing.h"
#include "ledger.h"
#include "node_state.h"
#include "node_table.h"

/* How the kernel reads a file. */
enum node_reading {
	READ_CACHED = 0,      /* in pieces, from the channel, into pages of FUSE's own */
	READ_PASSTHROUGH = 1, /* by itself, from the backing file */
	READ_BYPASS = 2,      /* from the channel straight into the reader's memory; mmap: cached.
			       * For two nodes of one file, which only passthrough brings about. */
};

/* What is open of a backed node. */
struct node_opens {
	enum node_kind kind;
	uint32_t readers; /* those that are pending among them */
	uint32_t writers; /* the same */
	bool passthrough;
};

/* Make an empty table, or return -ENOMEM. At most max_cached backings are cached. max_held is how many
 * descriptors there may be of files that are open, cached, or held without a name. The ledger is the
 * caller's, and has to live longer. Before anything is attached device.dev_fd has to be set. */
int nodes_init(struct node_table *t, uint32_t max_cached, uint32_t max_held,
	       const struct backing_ops *ops, struct ledger *ledger);

/* Close every backing, and device.private_mount_fd. Nobody else may use the table any more. A table
 * that was never initialised, all zero, is left alone. */
void nodes_destroy(struct node_table *t);

/* ---- called by Python; _channel.pyi says what each call promises ------------------------------- */

/* Count one more open that Python is going to answer. Returns 1; 0 when nothing backs the node, which
 * is to be attached then; or -ENFILE when it is cached, and this user may not have one more descriptor. */
int nodes_open(struct node_table *t, uint64_t nodeid, bool writing, uint32_t uid);

/* Take back what nodes_open() or nodes_attach() has counted: the request gets an error after all. */
void nodes_unopen(struct node_table *t, uint64_t nodeid, bool writing);

/* Back the node by fd, and count one open as nodes_open() does. Returns 0, -ENFILE when this user may
 * not have one more descriptor, -EEXIST when something backs the node, -ENOMEM, or what the kernel says
 * to the backing file. It takes fd over in every case. */
int nodes_attach(struct node_table *t, uint64_t nodeid, int fd, enum node_kind kind,
		 enum node_reading reading, bool writing, uint32_t uid);

/* Whether one more descriptor may be held for this user. What is cached makes room for it. */
bool nodes_have_room(struct node_table *t, uint32_t uid);

/* Whether few descriptors are left, so that it matters for whom one is held. */
bool nodes_scarce(struct node_table *t);

/* Count a descriptor of the node that Python holds, for the user who has removed its name. Returns 0,
 * also when one is counted already; -ENFILE or -ENOMEM. */
int nodes_hold(struct node_table *t, uint64_t nodeid, uint32_t uid);

/* Python does not hold it any more. */
void nodes_let(struct node_table *t, uint64_t nodeid);

/* Replace the SHARED backing of an open node by fd, the copy's own file with the same bytes. Returns 1,
 * and then fd is taken over; 0 when the node is not open any more; -EINVAL when it is PRIVATE or passed
 * through, -ENOMEM. In these cases fd stays the caller's. */
int nodes_switch(struct node_table *t, uint64_t nodeid, int fd);

/* From now on no open of the node is answered without Python, until the next nodes_attach(). true: it
 * is open, and *out says how. false: it is not, and a cached backing has been dropped. */
bool nodes_revoke(struct node_table *t, uint64_t nodeid, struct node_opens *out);

/* A mapping may change the node's file from now on, whether or not it is open. Without effect unless it
 * is passed through now. */
void nodes_mark_mappable(struct node_table *t, uint64_t nodeid);

/* Whether the node's file may change unseen by FUSE: by a writer that it is passed through to, or by a
 * mapping. */
bool nodes_is_volatile(struct node_table *t, uint64_t nodeid);

/* How many opens of the node allow writing, pending ones included. */
uint32_t nodes_writers(struct node_table *t, uint64_t nodeid);

/* Whether the node is open, or cached, as a file of the template. */
bool nodes_is_shared(struct node_table *t, uint64_t nodeid);

/* A duplicate of the descriptor that backs the node, which is the caller's; or -EBADF, -EMFILE. */
int nodes_backing_fd(struct node_table *t, uint64_t nodeid);

/* Whether the kernel holds the node. It asks for the attributes again, as a side effect. */
bool nodes_kernel_knows(const struct node_table *t, uint64_t nodeid);

/* The kernel has forgotten the node. It leaves the table, at once or with its last open. */
void nodes_forget(struct node_table *t, uint64_t nodeid);

/* ---- called by the channel's threads ----------------------------------------------------------
 *
 * A call that changes what is counted notes the request of that number as unacknowledged in the same
 * step. When the kernel has the reply the caller acknowledges it: ledger_acknowledge(). The number,
 * unique, is without WIRE_UNIQUE_RESEND. */

/* Count one reader of a node whose opens the channel may answer by itself, for this user, and say what
 * the reply is. false: nothing was counted, and the OPEN is to be relayed. */
bool nodes_repeat_open(struct node_table *t, uint64_t nodeid, uint64_t unique, uint32_t uid,
		       struct open_answer *out, struct unacked **unacked);

/* Python has answered an OPEN or CREATE that it had counted: count it as one that the kernel is told
 * of, and say what the reply is. false: nothing was counted, as nothing backs the node. */
bool nodes_opened(struct node_table *t, uint64_t nodeid, bool writing, uint64_t unique,
		  struct open_answer *out, struct unacked **unacked);

/* The kernel did not take the reply to what either of these has counted: count one open less. The
 * request is acknowledged in the same step. */
void nodes_not_opened(struct node_table *t, uint64_t nodeid, bool writing,
		      struct unacked *unacked);

/* Count one open less, that of the handle fh. *unacked is NULL when there was none: that is no error,
 * as after a failed reply both sides may disagree for a moment. true: the last writer of a file that is
 * not passed through has left, and its descriptor with it unless readers are there. */
bool nodes_release(struct node_table *t, uint64_t nodeid, uint64_t fh, bool writing,
		   uint64_t unique, struct unacked **unacked);

/* The kernel has sent a request again. An OPEN or CREATE that was counted is taken back, and false
 * returned: it is to be served as a new one. true: it is a RELEASE that was counted; it is only to be
 * answered, and then to be acknowledged. */
bool nodes_resent(struct node_table *t, uint64_t unique, struct unacked **unacked);

/* The backing of a node, with a reference that the caller gives back by nodes_return(); NULL: nothing
 * backs it. Until then its descriptor stays open, whatever becomes of the node. */
struct backing *nodes_borrow(struct node_table *t, uint64_t nodeid);
void nodes_return(struct node_table *t, struct backing *b);

/* A sync of the node's backing, through the handle fh, has failed with this errno, or 0. Returns what
 * this handle has to be told: 0, or the errno of an error that it has not been told of. The caller
 * holds backing.syncing. */
int nodes_synced(struct node_table *t, uint64_t nodeid, uint64_t fh, int error);

#endif
