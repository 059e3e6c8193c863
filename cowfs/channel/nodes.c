/*
 * nodes.c - what backs the opens of each node
 *
 * A hash table by node id. A node has at most one backing: a descriptor, perhaps with a backing
 * id that the kernel knows it by, and the numbers of open readers and writers. The table decides
 * four things, and nothing else in the channel does:
 *
 * - whether an OPEN may be answered without Python. Yes for a SHARED backing that was not
 *   revoked; such a backing is cached after the last release (the least recently used go first
 *   when there are more than max_cached), so that opening the file again is cheap.
 * - what the answer says: kernel rules allow one mode and one backing id per inode as long as
 *   anything is open, which "one backing per node" gives by itself.
 * - when a backing is closed: after the last open and the last borrowed use.
 * - for whom its descriptor is held, and whether this user may have one more (holders.h).
 *
 * What an fsync of a backing says is kept for everybody who has the node open (writeback.h).
 *
 * It does not know names, requests or the socket, and never decides what should back a node.
 *
 * Every change is written to the ledger, from which the next daemon makes the table again.
 *
 * Locking: one mutex over everything. System calls are made without it: a backing that lost its
 * last reference is moved to a list of the caller's and closed after unlocking. What waits for a disk
 * has locks of its own, taken before that one.
 */
#include "nodes.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "node_state.h"
#include "wire.h"

#define FIRST_BUCKETS 256u

/* ---- making and ending --------------------------------------------------------------------------- */

int nodes_init(struct node_table *t, uint32_t max_cached, uint32_t max_held,
	       const struct backing_ops *ops, struct ledger *ledger)
{
	*t = (struct node_table){.mask = FIRST_BUCKETS - 1,
				 .max_cached = max_cached,
				 .device = {ops, -1, -1},
				 .ledger = ledger,
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
	struct backing *dead = NULL;

	if (!t->buckets)
		return;
	for (uint32_t i = 0; i <= t->mask; i++) {
		while (t->buckets[i]) {
			struct node *n = t->buckets[i];
			n->forgotten = true;
			node_drop_backing_locked(t, n, &dead);
		}
	}
	backing_free_all(&t->device, dead);
	holders_destroy(&t->holders);
	free(t->buckets);
	t->buckets = NULL;
	if (t->witness_fd >= 0)
		close(t->witness_fd);
	if (t->device.private_mount_fd >= 0)
		close(t->device.private_mount_fd);
	pthread_mutex_destroy(&t->looking_back);
	pthread_mutex_destroy(&t->lock);
}

/* ---- called by Python ------------------------------------------------------------------------- */

int nodes_open(struct node_table *t, uint64_t nodeid, bool writing, uint32_t uid)
{
	struct backing *dead = NULL;
	struct node *n;
	int backed;

	pthread_mutex_lock(&t->lock);
	n = node_find_locked(t, nodeid);
	backed = n && n->backing;
	if (backed && n->cached) {
		node_uncache_locked(t, n); /* or it would make room */
		if (!node_have_room_locked(t, uid, &dead)) {
			node_cache_locked(t, n);
			backed = -ENFILE;
		}
	}
	if (backed > 0) {
		node_charge_locked(t, n, uid);
		node_count_pending_locked(t, n, writing);
		if (n->forgotten) { /* Python knows it again */
			n->forgotten = false;
			node_record_locked(t, n);
		}
	}
	pthread_mutex_unlock(&t->lock);
	backing_free_all(&t->device, dead);
	return backed;
}

bool nodes_have_room(struct node_table *t, uint32_t uid)
{
	struct backing *dead = NULL;
	bool room;

	pthread_mutex_lock(&t->lock);
	room = node_have_room_locked(t, uid, &dead);
	pthread_mutex_unlock(&t->lock);
	backing_free_all(&t->device, dead);
	return room;
}

bool nodes_scarce(struct node_table *t)
{
	bool scarce;

	pthread_mutex_lock(&t->lock);
	scarce = holders_scarce(&t->holders);
	pthread_mutex_unlock(&t->lock);
	return scarce;
}

int nodes_hold(struct node_table *t, uint64_t nodeid, uint32_t uid)
{
	struct backing *dead = NULL;
	struct node *n;
	int err = 0;

	pthread_mutex_lock(&t->lock);
	n = node_find_locked(t, nodeid);
	if (!n || !n->gone) {
		if (!node_have_room_locked(t, uid, &dead))
			err = -ENFILE;
		else if (!(n = node_find_or_insert_locked(t, nodeid)) || !holders_add(&t->holders, uid))
			err = -ENOMEM;
		if (!err) {
			n->gone = true;
			n->gone_by = uid;
		}
	}
	pthread_mutex_unlock(&t->lock);
	backing_free_all(&t->device, dead);
	return err;
}

void nodes_let(struct node_table *t, uint64_t nodeid)
{
	struct backing *dead = NULL;
	struct node *n;

	pthread_mutex_lock(&t->lock);
	n = node_find_locked(t, nodeid);
	if (n && n->gone) {
		node_uncharge_gone_locked(t, n);
		if (!n->backing)
			node_drop_backing_locked(t, n, &dead);
	}
	pthread_mutex_unlock(&t->lock);
	backing_free_all(&t->device, dead);
}

void nodes_unopen(struct node_table *t, uint64_t nodeid, bool writing)
{
	struct backing *dead = NULL;
	struct node *n;

	pthread_mutex_lock(&t->lock);
	n = node_find_locked(t, nodeid);
	if (n && opens_total(&n->pending) > 0) {
		opens_remove(&n->pending, writing);
		if (!node_is_open(n))
			node_close_locked(t, n, &dead);
	}
	pthread_mutex_unlock(&t->lock);
	backing_free_all(&t->device, dead);
}

int nodes_attach(struct node_table *t, uint64_t nodeid, int fd, enum node_kind kind,
		 enum node_reading reading, bool writing, uint32_t uid)
{
	bool passthrough = reading == READ_PASSTHROUGH;
	struct backing *dead = NULL;
	struct backing *b = NULL;
	struct node *n;
	int err = nodes_have_room(t, uid) ? 0 : -ENFILE;

	/* Repeat opens may take that room meanwhile: there is a reserve. */
	if (!err && !(b = malloc(sizeof(*b))))
		err = -ENOMEM;
	if (err) {
		close(fd);
		return err;
	}
	*b = (struct backing){.fd = fd,
			      .kind = (uint8_t)kind,
			      .bypass = reading == READ_BYPASS,
			      .refs = 1,
			      .syncing = PTHREAD_MUTEX_INITIALIZER};
	backing_note_handle(b);
	if (passthrough) {
		int id = backing_register(&t->device, b);
		if (id < 0) {
			backing_free_all(&t->device, b);
			return id;
		}
		ledger_registered(t->ledger, id);
		b->id = id;
	}

	pthread_mutex_lock(&t->lock);
	n = node_find_or_insert_locked(t, nodeid);
	if (!n || n->backing) {
		err = n ? -EEXIST : -ENOMEM;
		backing_put_locked(b, &dead);
	} else {
		n->backing = b;
		n->revoked = n->forgotten = false;
		n->was_passthrough |= passthrough;
		node_charge_locked(t, n, uid);
		node_count_pending_locked(t, n, writing);
		node_record_locked(t, n);
	}
	pthread_mutex_unlock(&t->lock);
	backing_free_all(&t->device, dead);
	return err;
}

int nodes_switch(struct node_table *t, uint64_t nodeid, int fd)
{
	struct backing *dead = NULL;
	struct backing *b = malloc(sizeof(*b));
	struct node *n;
	int done;

	if (!b)
		return -ENOMEM;
	*b = (struct backing){.fd = fd,
			      .kind = NODE_PRIVATE,
			      .refs = 1,
			      .syncing = PTHREAD_MUTEX_INITIALIZER};
	backing_note_handle(b);

	pthread_mutex_lock(&t->lock);
	n = node_find_locked(t, nodeid);
	if (!n || !n->backing || !node_is_open(n)) {
		done = 0;
	} else if (n->backing->kind != NODE_SHARED || n->backing->id > 0) {
		done = -EINVAL;
	} else {
		/* Reads that have borrowed the old descriptor finish with it: they began before
		 * anything was written, and both files hold the same bytes at this moment. */
		backing_put_locked(n->backing, &dead);
		n->backing = b;
		node_record_locked(t, n);
		done = 1;
	}
	pthread_mutex_unlock(&t->lock);
	if (done != 1)
		free(b);
	backing_free_all(&t->device, dead);
	return done;
}

bool nodes_revoke(struct node_table *t, uint64_t nodeid, struct node_state *out)
{
	struct backing *dead = NULL;
	struct node *n;
	bool open = false;

	pthread_mutex_lock(&t->lock);
	n = node_find_locked(t, nodeid);
	if (n && n->backing) {
		n->revoked = true;
		open = node_is_open(n);
		if (open) {
			*out = (struct node_state){.kind = n->backing->kind,
						   .readers = n->opens.readers + n->pending.readers,
						   .writers = n->opens.writers + n->pending.writers,
						   .passthrough = n->backing->id > 0};
			node_record_locked(t, n);
		} else {
			node_drop_backing_locked(t, n, &dead);
		}
	}
	pthread_mutex_unlock(&t->lock);
	backing_free_all(&t->device, dead);
	return open;
}

void nodes_mark_mappable(struct node_table *t, uint64_t nodeid)
{
	struct node *n;

	pthread_mutex_lock(&t->lock);
	n = node_find_locked(t, nodeid);
	if (n && node_is_passthrough(n) && !n->mappable) {
		n->mappable = true;
		node_record_locked(t, n);
	}
	pthread_mutex_unlock(&t->lock);
}

bool nodes_is_volatile(struct node_table *t, uint64_t nodeid)
{
	struct node *n;
	bool changes;

	pthread_mutex_lock(&t->lock);
	n = node_find_locked(t, nodeid);
	changes = n && (n->mappable ||
			(node_is_passthrough(n) && n->opens.writers + n->pending.writers > 0));
	pthread_mutex_unlock(&t->lock);
	return changes;
}

uint32_t nodes_writers(struct node_table *t, uint64_t nodeid)
{
	struct node *n;
	uint32_t writers;

	pthread_mutex_lock(&t->lock);
	n = node_find_locked(t, nodeid);
	writers = n ? n->opens.writers + n->pending.writers : 0;
	pthread_mutex_unlock(&t->lock);
	return writers;
}

bool nodes_is_shared(struct node_table *t, uint64_t nodeid)
{
	struct node *n;
	bool shared;

	pthread_mutex_lock(&t->lock);
	n = node_find_locked(t, nodeid);
	shared = n && n->backing && n->backing->kind == NODE_SHARED;
	pthread_mutex_unlock(&t->lock);
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

/*
 * The kernel sends FORGET after the last RELEASE, but two threads may handle them the other way
 * round, and Python may see the same node id again (it is an inode number) before that RELEASE is
 * counted. So a node with opens stays until its last release. Its descriptor pins the inode, hence
 * the number cannot come to mean another file meanwhile.
 */
void nodes_forget(struct node_table *t, uint64_t nodeid)
{
	struct backing *dead = NULL;
	struct node *n;

	pthread_mutex_lock(&t->lock);
	n = node_find_locked(t, nodeid);
	if (n) {
		n->forgotten = n->revoked = true;
		node_uncharge_gone_locked(t, n);
		if (node_is_open(n))
			node_record_locked(t, n);
		else
			node_drop_backing_locked(t, n, &dead);
	}
	pthread_mutex_unlock(&t->lock);
	backing_free_all(&t->device, dead);
}

/* ---- called by the channel's threads ------------------------------------------------------------ */

bool nodes_repeat_open(struct node_table *t, uint64_t nodeid, uint64_t unique, uint32_t uid,
		       struct open_answer *out, struct unacked **unacked)
{
	struct node *n;
	bool here;

	pthread_mutex_lock(&t->lock);
	n = node_find_locked(t, nodeid);
	here = n && n->backing && n->backing->kind == NODE_SHARED && !n->revoked;
	/* Whom Python has to refuse, or to find out about. */
	if (here && n->cached && (uid == FUSE_INVALID_UIDGID ? holders_scarce(&t->holders)
							   : !holders_may(&t->holders, uid)))
		here = false;
	if (here) {
		node_charge_locked(t, n, uid);
		node_uncache_locked(t, n);
		opens_add(&n->opens, false);
		node_describe(n, unique, out);
		*unacked = ledger_unacked(t->ledger);
		node_record_unacked_locked(t, n, *unacked, unique, UNACKED_READER);
	}
	pthread_mutex_unlock(&t->lock);
	return here;
}

bool nodes_opened(struct node_table *t, uint64_t nodeid, bool writing, uint64_t unique,
		  struct open_answer *out, struct unacked **unacked)
{
	struct node *n;
	bool backed;

	pthread_mutex_lock(&t->lock);
	n = node_find_locked(t, nodeid);
	backed = n && n->backing;
	if (backed) {
		opens_remove(&n->pending, writing);
		node_uncache_locked(t, n);
		opens_add(&n->opens, writing);
		node_describe(n, unique, out);
		*unacked = ledger_unacked(t->ledger);
		node_record_unacked_locked(t, n, *unacked, unique,
					 writing ? UNACKED_WRITER : UNACKED_READER);
	}
	pthread_mutex_unlock(&t->lock);
	return backed;
}

/* One open less; what it is done for is said by `unique`, or 0: the one that is noted goes. */
static void uncount(struct node_table *t, struct node *n, bool writing,
		    struct unacked *unacked, uint64_t unique, struct backing **dead)
{
	opens_remove(&n->opens, writing);
	node_record_unacked_locked(t, n, unacked, unique, UNACKED_RELEASE);
	if (!node_is_open(n))
		node_close_locked(t, n, dead);
}

void nodes_not_opened(struct node_table *t, uint64_t nodeid, bool writing,
		      struct unacked *unacked)
{
	struct backing *dead = NULL;
	struct node *n;

	pthread_mutex_lock(&t->lock);
	n = node_find_locked(t, nodeid);
	if (n && opens_total(&n->opens) > 0)
		uncount(t, n, writing, unacked, 0, &dead);
	else
		ledger_acknowledge(unacked);
	pthread_mutex_unlock(&t->lock);
	backing_free_all(&t->device, dead);
}

bool nodes_release(struct node_table *t, uint64_t nodeid, uint64_t fh, bool writing,
		   uint64_t unique, struct unacked **unacked)
{
	struct backing *dead = NULL;
	bool last_writer = false;
	struct node *n;

	*unacked = NULL;
	pthread_mutex_lock(&t->lock);
	n = node_find_locked(t, nodeid);
	if (n && opens_total(&n->opens) > 0) {
		last_writer = writing && n->opens.writers == 1 && !node_is_passthrough(n);
		writeback_released(&n->writeback, fh);
		*unacked = ledger_unacked(t->ledger);
		uncount(t, n, writing, *unacked, unique, &dead);
	}
	pthread_mutex_unlock(&t->lock);
	backing_free_all(&t->device, dead);
	return last_writer;
}

bool nodes_resent(struct node_table *t, uint64_t unique, struct unacked **unacked)
{
	struct backing *dead = NULL;
	struct unacked *u;
	bool done = false;

	pthread_mutex_lock(&t->lock);
	u = ledger_find_unacked(t->ledger, unique);
	if (u && u->what == UNACKED_RELEASE) {
		done = true;
		*unacked = u;
	} else if (u) {
		struct node *n = node_find_locked(t, u->nodeid);
		if (n && opens_total(&n->opens) > 0)
			uncount(t, n, u->what == UNACKED_WRITER, u, 0, &dead);
		else
			ledger_acknowledge(u);
	}
	pthread_mutex_unlock(&t->lock);
	backing_free_all(&t->device, dead);
	return done;
}

struct backing *nodes_borrow(struct node_table *t, uint64_t nodeid)
{
	struct backing *b = NULL;
	struct node *n;

	pthread_mutex_lock(&t->lock);
	n = node_find_locked(t, nodeid);
	if (n && n->backing) {
		b = n->backing;
		b->refs++;
	}
	pthread_mutex_unlock(&t->lock);
	return b;
}

void nodes_return(struct node_table *t, struct backing *b)
{
	struct backing *dead = NULL;

	pthread_mutex_lock(&t->lock);
	backing_put_locked(b, &dead);
	pthread_mutex_unlock(&t->lock);
	backing_free_all(&t->device, dead);
}

int nodes_synced(struct node_table *t, uint64_t nodeid, uint64_t fh, int error)
{
	struct node *n;

	pthread_mutex_lock(&t->lock);
	n = node_find_locked(t, nodeid);
	if (n) {
		if (error) {
			writeback_failed(&n->writeback, error);
			node_record_locked(t, n);
		}
		error = writeback_tell(&n->writeback, fh);
	}
	pthread_mutex_unlock(&t->lock);
	return error;
}
