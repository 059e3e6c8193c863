/*
 * nodes.c - what backs the opens of each node: what Python and the channel's threads may ask and change
 *
 * Python says what backs a node, and counts each open that it is going to answer. The threads answer
 * repeat opens, and count what the kernel has been told. Decided here, and nowhere else in the channel:
 *
 * - whether an OPEN may be answered without Python: yes for a SHARED backing that was not revoked;
 * - what the answer says;
 * - when a backing is closed: after the last open and the last borrowed use. A SHARED one is cached
 *   after the last open, so that opening the file again is cheap;
 * - for whom its descriptor is held, and whether this user may have one more (holders.h).
 *
 * node_state.c has the states that a node goes through in all this. What an fsync of a backing says is
 * noted for everybody who has the node open (writeback.h).
 *
 * It does not know names, requests or the socket, and never decides what should back a node.
 *
 * Locking: each call holds node_table.lock from beginning to end, and makes no system call meanwhile.
 */
#include "nodes.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "wire.h"

#define FIRST_BUCKETS 256u

/* ---- making and ending --------------------------------------------------------------------------- */

int nodes_init(struct node_table *t, uint32_t max_cached, uint32_t max_held,
	       const struct backing_ops *ops, struct ledger *ledger)
{
	*t = (struct node_table){.mask = FIRST_BUCKETS - 1,
				 .max_cached = max_cached,
				 .ledger = ledger,
				 .device = {.ops = ops, .dev_fd = -1, .private_mount_fd = -1},
				 .witness_fd = -1};
	t->buckets = calloc(FIRST_BUCKETS, sizeof(*t->buckets));
	if (!t->buckets)
		return -ENOMEM;
	holders_init(&t->holders, max_held);
	pthread_mutex_init(&t->lock, NULL);
	pthread_mutex_init(&t->looking_back, NULL);
	return 0;
}

void nodes_destroy(struct node_table *t)
{
	if (!t->buckets)
		return;
	nodes_lock(t);
	for (uint32_t i = 0; i <= t->mask; i++) {
		while (t->buckets[i]) {
			struct node *n = t->buckets[i];
			n->forgotten = true;
			node_unhold_locked(t, n);
			node_drop_backing_locked(t, n);
		}
	}
	nodes_unlock(t);
	if (t->witness_fd >= 0)
		close(t->witness_fd);
	if (t->device.private_mount_fd >= 0)
		close(t->device.private_mount_fd);
	holders_destroy(&t->holders);
	free(t->buckets);
	t->buckets = NULL;
	pthread_mutex_destroy(&t->looking_back);
	pthread_mutex_destroy(&t->lock);
}

/* ---- called by Python ------------------------------------------------------------------------- */

int nodes_open(struct node_table *t, uint64_t nodeid, bool writing, uint32_t uid)
{
	struct node *n;
	int backed;

	nodes_lock(t);
	n = node_find_locked(t, nodeid);
	backed = n && n->backing;
	if (backed && n->cached) {
		node_uncache_locked(t, n); /* or it would make room */
		if (!node_have_room_locked(t, uid)) {
			node_cache_locked(t, n);
			backed = -ENFILE;
		}
	}
	if (backed > 0) {
		node_charge_locked(t, n, uid);
		node_pending_locked(t, n, writing);
		node_remember_locked(t, n);
	}
	nodes_unlock(t);
	return backed;
}

bool nodes_have_room(struct node_table *t, uint32_t uid)
{
	bool room;

	nodes_lock(t);
	room = node_have_room_locked(t, uid);
	nodes_unlock(t);
	return room;
}

bool nodes_scarce(struct node_table *t)
{
	bool scarce;

	nodes_lock(t);
	scarce = holders_scarce(&t->holders);
	nodes_unlock(t);
	return scarce;
}

int nodes_hold(struct node_table *t, uint64_t nodeid, uint32_t uid)
{
	struct node *n;
	int err = 0;

	nodes_lock(t);
	n = node_find_locked(t, nodeid);
	if (!n || !n->held) {
		if (!node_have_room_locked(t, uid))
			err = -ENFILE;
		else if (!holders_add(&t->holders, uid))
			err = -ENOMEM;
		else if (!(n = node_find_or_insert_locked(t, nodeid))) {
			holders_drop(&t->holders, uid);
			err = -ENOMEM;
		}
		if (!err) {
			n->held = true;
			n->held_by = uid;
			node_remember_locked(t, n);
		}
	}
	nodes_unlock(t);
	return err;
}

void nodes_let(struct node_table *t, uint64_t nodeid)
{
	struct node *n;

	nodes_lock(t);
	n = node_find_locked(t, nodeid);
	if (n && n->held) {
		node_unhold_locked(t, n);
		if (!n->backing)
			node_drop_backing_locked(t, n);
	}
	nodes_unlock(t);
}

void nodes_unopen(struct node_table *t, uint64_t nodeid, bool writing)
{
	struct node *n;

	nodes_lock(t);
	n = node_find_locked(t, nodeid);
	if (n && opens_total(&n->pending) > 0) {
		opens_remove(&n->pending, writing);
		if (!node_is_open(n))
			node_close_locked(t, n);
	}
	nodes_unlock(t);
}

int nodes_attach(struct node_table *t, uint64_t nodeid, int fd, enum node_kind kind,
		 enum node_reading reading, bool writing, uint32_t uid)
{
	struct backing *b;
	struct node *n;
	int err = 0;

	/* Repeat opens may take that room meanwhile: there is a reserve. */
	if (!nodes_have_room(t, uid)) {
		close(fd);
		return -ENFILE;
	}
	b = backing_new(fd, kind);
	if (!b) {
		close(fd);
		return -ENOMEM;
	}
	b->bypass = reading == READ_BYPASS;
	if (reading == READ_PASSTHROUGH)
		err = backing_register(&t->device, t->ledger, b);

	nodes_lock(t);
	n = err ? NULL : node_find_or_insert_locked(t, nodeid);
	if (!n || n->backing) {
		if (!err)
			err = n ? -EEXIST : -ENOMEM;
		backing_put_locked(b, &t->free_list);
	} else {
		n->backing = b;
		n->revoked = n->forgotten = false;
		n->was_passthrough |= b->id > 0;
		node_charge_locked(t, n, uid);
		node_pending_locked(t, n, writing);
		node_record_locked(t, n);
	}
	nodes_unlock(t);
	return err;
}

int nodes_switch(struct node_table *t, uint64_t nodeid, int fd)
{
	struct backing *b = backing_new(fd, NODE_PRIVATE);
	struct node *n;
	int done;

	if (!b)
		return -ENOMEM;
	nodes_lock(t);
	n = node_find_locked(t, nodeid);
	if (!n || !n->backing || !node_is_open(n)) {
		done = 0;
	} else if (n->backing->kind != NODE_SHARED || n->backing->id > 0) {
		done = -EINVAL;
	} else {
		/* Reads that have borrowed the old descriptor finish with it: they began before
		 * anything was written, and both files hold the same bytes at this moment. */
		backing_put_locked(n->backing, &t->free_list);
		n->backing = b;
		node_record_locked(t, n);
		done = 1;
	}
	if (done != 1) {
		b->fd = -1; /* it stays the caller's */
		backing_put_locked(b, &t->free_list);
	}
	nodes_unlock(t);
	return done;
}

bool nodes_revoke(struct node_table *t, uint64_t nodeid, struct node_opens *out)
{
	struct node *n;
	bool open = false;

	nodes_lock(t);
	n = node_find_locked(t, nodeid);
	if (n && n->backing) {
		n->revoked = true;
		open = node_is_open(n);
		if (open) {
			*out = (struct node_opens){.kind = n->backing->kind,
						   .readers = n->opens.readers + n->pending.readers,
						   .writers = n->opens.writers + n->pending.writers,
						   .passthrough = n->backing->id > 0};
			node_record_locked(t, n);
		} else {
			node_drop_backing_locked(t, n);
		}
	}
	nodes_unlock(t);
	return open;
}

void nodes_mark_mappable(struct node_table *t, uint64_t nodeid)
{
	struct node *n;

	nodes_lock(t);
	n = node_find_locked(t, nodeid);
	if (n && node_is_passthrough(n) && !n->mappable) {
		n->mappable = true;
		node_record_locked(t, n);
	}
	nodes_unlock(t);
}

bool nodes_is_volatile(struct node_table *t, uint64_t nodeid)
{
	struct node *n;
	bool changes;

	nodes_lock(t);
	n = node_find_locked(t, nodeid);
	changes = n && (n->mappable ||
			(node_is_passthrough(n) && n->opens.writers + n->pending.writers > 0));
	nodes_unlock(t);
	return changes;
}

uint32_t nodes_writers(struct node_table *t, uint64_t nodeid)
{
	struct node *n;
	uint32_t writers;

	nodes_lock(t);
	n = node_find_locked(t, nodeid);
	writers = n ? n->opens.writers + n->pending.writers : 0;
	nodes_unlock(t);
	return writers;
}

bool nodes_is_shared(struct node_table *t, uint64_t nodeid)
{
	struct node *n;
	bool shared;

	nodes_lock(t);
	n = node_find_locked(t, nodeid);
	shared = n && n->backing && n->backing->kind == NODE_SHARED;
	nodes_unlock(t);
	return shared;
}

int nodes_backing_fd(struct node_table *t, uint64_t nodeid)
{
	struct backing *b = nodes_borrow(t, nodeid);
	int fd;

	if (!b)
		return -EBADF;
	fd = fcntl(b->fd, F_DUPFD_CLOEXEC, 0);
	if (fd < 0)
		fd = -errno;
	nodes_return(t, b);
	return fd;
}

bool nodes_kernel_knows(const struct node_table *t, uint64_t nodeid)
{
	return t->device.ops->knows(t->device.dev_fd, nodeid);
}

/*
 * The kernel sends FORGET after the last RELEASE, but two threads may handle them the other way
 * round, and Python may see the same node id again (it is an inode number) before that RELEASE is
 * counted. So a node with opens stays until its last release. Its descriptor pins the inode, hence
 * the number cannot come to mean another file meanwhile.
 */
void nodes_forget(struct node_table *t, uint64_t nodeid)
{
	struct node *n;

	nodes_lock(t);
	n = node_find_locked(t, nodeid);
	if (n) {
		n->forgotten = n->revoked = true;
		node_unhold_locked(t, n);
		if (node_is_open(n))
			node_record_locked(t, n);
		else
			node_drop_backing_locked(t, n);
	}
	nodes_unlock(t);
}

/* ---- called by the channel's threads ------------------------------------------------------------ */

bool nodes_repeat_open(struct node_table *t, uint64_t nodeid, uint64_t unique, uint32_t uid,
		       struct open_answer *out, struct unacked **unacked)
{
	struct node *n;
	bool here;

	nodes_lock(t);
	n = node_find_locked(t, nodeid);
	here = n && n->backing && n->backing->kind == NODE_SHARED && !n->revoked;
	/* A user whom Python has to refuse, or to find out first. */
	if (here && n->cached && (uid == FUSE_INVALID_UIDGID ? holders_scarce(&t->holders)
							   : !holders_may(&t->holders, uid)))
		here = false;
	if (here) {
		node_charge_locked(t, n, uid);
		node_uncache_locked(t, n);
		opens_add(&n->opens, false);
		*out = node_describe(n, unique);
		*unacked = ledger_unacked(t->ledger);
		node_record_unacked_locked(t, n, *unacked, unique, UNACKED_READER);
	}
	nodes_unlock(t);
	return here;
}

bool nodes_opened(struct node_table *t, uint64_t nodeid, bool writing, uint64_t unique,
		  struct open_answer *out, struct unacked **unacked)
{
	struct node *n;
	bool backed;

	nodes_lock(t);
	n = node_find_locked(t, nodeid);
	backed = n && n->backing;
	if (backed) {
		opens_remove(&n->pending, writing);
		node_uncache_locked(t, n);
		opens_add(&n->opens, writing);
		*out = node_describe(n, unique);
		*unacked = ledger_unacked(t->ledger);
		node_record_unacked_locked(t, n, *unacked, unique,
					 writing ? UNACKED_WRITER : UNACKED_READER);
	}
	nodes_unlock(t);
	return backed;
}

/* One open less; what it is done for is said by `unique`, or 0: the one that is noted goes. */
static void uncount(struct node_table *t, struct node *n, bool writing,
		    struct unacked *unacked, uint64_t unique)
{
	opens_remove(&n->opens, writing);
	node_record_unacked_locked(t, n, unacked, unique, UNACKED_RELEASE);
	if (!node_is_open(n))
		node_close_locked(t, n);
}

void nodes_not_opened(struct node_table *t, uint64_t nodeid, bool writing,
		      struct unacked *unacked)
{
	struct node *n;

	nodes_lock(t);
	n = node_find_locked(t, nodeid);
	if (n && opens_total(&n->opens) > 0)
		uncount(t, n, writing, unacked, 0);
	else
		ledger_acknowledge(unacked);
	nodes_unlock(t);
}

bool nodes_release(struct node_table *t, uint64_t nodeid, uint64_t fh, bool writing,
		   uint64_t unique, struct unacked **unacked)
{
	bool last_writer = false;
	struct node *n;

	*unacked = NULL;
	nodes_lock(t);
	n = node_find_locked(t, nodeid);
	if (n && opens_total(&n->opens) > 0) {
		last_writer = writing && n->opens.writers == 1 && !node_is_passthrough(n);
		writeback_released(&n->writeback, fh);
		*unacked = ledger_unacked(t->ledger);
		uncount(t, n, writing, *unacked, unique);
	}
	nodes_unlock(t);
	return last_writer;
}

bool nodes_resent(struct node_table *t, uint64_t unique, struct unacked **unacked)
{
	struct unacked *u;
	bool done = false;

	nodes_lock(t);
	u = ledger_find_unacked(t->ledger, unique);
	if (u && u->what == UNACKED_RELEASE) {
		done = true;
		*unacked = u;
	} else if (u) {
		struct node *n = node_find_locked(t, u->nodeid);
		if (n && opens_total(&n->opens) > 0)
			uncount(t, n, u->what == UNACKED_WRITER, u, 0);
		else
			ledger_acknowledge(u);
	}
	nodes_unlock(t);
	return done;
}

struct backing *nodes_borrow(struct node_table *t, uint64_t nodeid)
{
	struct backing *b = NULL;
	struct node *n;

	nodes_lock(t);
	n = node_find_locked(t, nodeid);
	if (n && n->backing) {
		b = n->backing;
		backing_get_locked(b);
	}
	nodes_unlock(t);
	return b;
}

void nodes_return(struct node_table *t, struct backing *b)
{

	nodes_lock(t);
	backing_put_locked(b, &t->free_list);
	nodes_unlock(t);
}

int nodes_synced(struct node_table *t, uint64_t nodeid, uint64_t fh, int error)
{
	struct node *n;

	nodes_lock(t);
	n = node_find_locked(t, nodeid);
	if (n) {
		if (error) {
			writeback_failed(&n->writeback, error);
			node_record_locked(t, n);
		}
		error = writeback_tell(&n->writeback, fh);
	}
	nodes_unlock(t);
	return error;
}
