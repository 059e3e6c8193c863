/*
 * nodes.c - what backs the opens of each node
 *
 * A hash table by node id. A node has at most one backing: a descriptor, perhaps with a backing
 * id that the kernel knows it by, and the numbers of open readers and writers. The table decides
 * three things, and nothing else in the channel does:
 *
 * - whether an OPEN may be answered without Python. Yes for a SHARED backing that was not
 *   revoked; such a backing is kept after the last release (the least recently used go first
 *   when there are more than max_kept), so that opening the file again is cheap.
 * - what the answer says: kernel rules allow one mode and one backing id per inode as long as
 *   anything is open, which "one backing per node" gives by itself.
 * - when a backing is closed: after the last open and the last borrowed use.
 *
 * It does not know names, requests or the socket, and never decides what should back a node.
 *
 * Locking: one mutex over everything. System calls are made without it: a backing that lost its
 * last reference is moved to a list of the caller's and closed after unlocking.
 */
#include "nodes.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "wire.h"

#define FIRST_BUCKETS 256u

/* ---- the ioctls --------------------------------------------------------------------------------- */

static int kernel_backing_open(int dev_fd, int fd)
{
	struct fuse_backing_map map = {.fd = fd};
	int id = ioctl(dev_fd, FUSE_DEV_IOC_BACKING_OPEN, &map);
	if (id < 0)
		return -errno;
	return id > 0 ? id : -EIO; /* 0 is "no backing id" on the wire */
}

static int kernel_backing_close(int dev_fd, int32_t id)
{
	uint32_t arg = (uint32_t)id;
	return ioctl(dev_fd, FUSE_DEV_IOC_BACKING_CLOSE, &arg) < 0 ? -errno : 0;
}

const struct backing_ops kernel_backing_ops = {
	.open = kernel_backing_open,
	.close = kernel_backing_close,
};

/* ---- backings -------------------------------------------------------------------------------- */

/* Called with the lock. */
static void let_go(struct backing *b, struct backing **dead)
{
	if (--b->refs == 0) {
		b->next_dead = *dead;
		*dead = b;
	}
}

/* Called without the lock. Closing an id while files are open through it does them no harm. */
static void bury(struct node_table *t, struct backing *dead)
{
	while (dead) {
		struct backing *b = dead;
		dead = b->next_dead;
		if (b->id > 0)
			t->ops->close(t->dev_fd, b->id);
		close(b->fd);
		free(b);
	}
}

/* ---- table; everything here is called with the lock ------------------------------------------ */

static uint32_t bucket_of(const struct node_table *t, uint64_t nodeid)
{
	return (uint32_t)((nodeid * UINT64_C(0x9E3779B97F4A7C15)) >> 32) & t->mask;
}

static struct node *find(const struct node_table *t, uint64_t nodeid)
{
	struct node *n = t->buckets[bucket_of(t, nodeid)];
	while (n && n->nodeid != nodeid)
		n = n->next;
	return n;
}

/* Failing to grow is no error: chains get longer. */
static void grow(struct node_table *t)
{
	uint32_t old_mask = t->mask;
	struct node **old = t->buckets;
	struct node **bigger = calloc(2 * ((size_t)old_mask + 1), sizeof(*bigger));

	if (!bigger)
		return;
	t->buckets = bigger;
	t->mask = 2 * old_mask + 1;
	for (uint32_t i = 0; i <= old_mask; i++) {
		while (old[i]) {
			struct node *n = old[i];
			struct node **head = &t->buckets[bucket_of(t, n->nodeid)];
			old[i] = n->next;
			n->next = *head;
			*head = n;
		}
	}
	free(old);
}

static struct node *find_or_make(struct node_table *t, uint64_t nodeid)
{
	struct node *n = find(t, nodeid);

	if (n)
		return n;
	n = calloc(1, sizeof(*n));
	if (!n)
		return NULL;
	if (t->count > t->mask)
		grow(t);
	n->nodeid = nodeid;
	n->next = t->buckets[bucket_of(t, nodeid)];
	t->buckets[bucket_of(t, nodeid)] = n;
	t->count++;
	return n;
}

static void unlink_node(struct node_table *t, struct node *n)
{
	struct node **link = &t->buckets[bucket_of(t, n->nodeid)];
	while (*link != n)
		link = &(*link)->next;
	*link = n->next;
	t->count--;
	free(n);
}

static void leave_kept(struct node_table *t, struct node *n)
{
	if (!n->kept)
		return;
	*(n->newer ? &n->newer->older : &t->newest) = n->older;
	*(n->older ? &n->older->newer : &t->oldest) = n->newer;
	n->newer = n->older = NULL;
	n->kept = false;
	t->kept--;
}

static void enter_kept(struct node_table *t, struct node *n)
{
	n->older = t->newest;
	n->newer = NULL;
	*(t->newest ? &t->newest->newer : &t->oldest) = n;
	t->newest = n;
	n->kept = true;
	t->kept++;
}

/* Take the backing from a node without opens. What is left of the node is only worth keeping for
 * its memory of a stale page cache. */
static void drop_backing(struct node_table *t, struct node *n, struct backing **dead)
{
	leave_kept(t, n);
	if (n->backing)
		let_go(n->backing, dead);
	n->backing = NULL;
	n->readers = n->writers = 0;
	if (n->forgotten || !n->was_passthrough)
		unlink_node(t, n);
}

static void count_open(struct node_table *t, struct node *n, bool writing)
{
	leave_kept(t, n);
	*(writing ? &n->writers : &n->readers) += 1;
}

static void describe(const struct node *n, struct open_answer *out)
{
	out->backing_id = n->backing->id;
	out->open_flags = FOPEN_NOFLUSH;
	/* The kernel refuses KEEP_CACHE beside PASSTHROUGH. PARALLEL_DIRECT_WRITES has no effect
	 * there. */
	if (n->backing->id > 0) {
		out->open_flags |= FOPEN_PASSTHROUGH;
		return;
	}
	if (!n->was_passthrough)
		out->open_flags |= FOPEN_KEEP_CACHE;
	if (n->backing->bypass)
		out->open_flags |= FOPEN_DIRECT_IO;
}

/* ---- making and ending --------------------------------------------------------------------------- */

int nodes_init(struct node_table *t, uint32_t max_kept, const struct backing_ops *ops)
{
	*t = (struct node_table){
		.mask = FIRST_BUCKETS - 1, .max_kept = max_kept, .ops = ops, .dev_fd = -1};
	t->buckets = calloc(FIRST_BUCKETS, sizeof(*t->buckets));
	if (!t->buckets)
		return -ENOMEM;
	pthread_mutex_init(&t->lock, NULL);
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
			drop_backing(t, n, &dead);
		}
	}
	bury(t, dead);
	free(t->buckets);
	t->buckets = NULL;
	pthread_mutex_destroy(&t->lock);
}

/* ---- called by Python ------------------------------------------------------------------------- */

bool nodes_open(struct node_table *t, uint64_t nodeid, bool writing)
{
	struct node *n;
	bool backed;

	pthread_mutex_lock(&t->lock);
	n = find(t, nodeid);
	backed = n && n->backing;
	if (backed) {
		count_open(t, n, writing);
		n->forgotten = false; /* Python knows it again */
	}
	pthread_mutex_unlock(&t->lock);
	return backed;
}

int nodes_attach(struct node_table *t, uint64_t nodeid, int fd, enum node_kind kind,
		 enum node_reading reading, bool writing)
{
	bool passthrough = reading == READ_PASSTHROUGH;
	struct backing *dead = NULL;
	struct backing *b = malloc(sizeof(*b));
	struct node *n;
	int err = 0;

	if (!b) {
		close(fd);
		return -ENOMEM;
	}
	*b = (struct backing){.fd = fd,
			      .kind = (uint8_t)kind,
			      .bypass = reading == READ_BYPASS && t->may_bypass,
			      .refs = 1};
	if (passthrough) {
		int id = t->ops->open(t->dev_fd, fd);
		if (id < 0) {
			bury(t, b);
			return id;
		}
		b->id = id;
	}

	pthread_mutex_lock(&t->lock);
	n = find_or_make(t, nodeid);
	if (!n || n->backing) {
		err = n ? -EEXIST : -ENOMEM;
		let_go(b, &dead);
	} else {
		n->backing = b;
		n->revoked = n->forgotten = false;
		n->was_passthrough |= passthrough;
		count_open(t, n, writing);
	}
	pthread_mutex_unlock(&t->lock);
	bury(t, dead);
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
	*b = (struct backing){.fd = fd, .kind = NODE_PRIVATE, .refs = 1};

	pthread_mutex_lock(&t->lock);
	n = find(t, nodeid);
	if (!n || !n->backing || n->readers + n->writers == 0) {
		done = 0;
	} else if (n->backing->kind != NODE_SHARED || n->backing->id > 0) {
		done = -EINVAL;
	} else {
		/* Reads that have borrowed the old descriptor finish with it: they began before
		 * anything was written, and both files hold the same bytes at this moment. */
		let_go(n->backing, &dead);
		n->backing = b;
		done = 1;
	}
	pthread_mutex_unlock(&t->lock);
	if (done != 1)
		free(b);
	bury(t, dead);
	return done;
}

bool nodes_revoke(struct node_table *t, uint64_t nodeid, struct node_state *out)
{
	struct backing *dead = NULL;
	struct node *n;
	bool open = false;

	pthread_mutex_lock(&t->lock);
	n = find(t, nodeid);
	if (n && n->backing) {
		n->revoked = true;
		open = n->readers + n->writers > 0;
		if (open)
			*out = (struct node_state){.kind = n->backing->kind,
						   .readers = n->readers,
						   .writers = n->writers,
						   .passthrough = n->backing->id > 0};
		else
			drop_backing(t, n, &dead);
	}
	pthread_mutex_unlock(&t->lock);
	bury(t, dead);
	return open;
}

uint32_t nodes_writers(struct node_table *t, uint64_t nodeid)
{
	struct node *n;
	uint32_t writers;

	pthread_mutex_lock(&t->lock);
	n = find(t, nodeid);
	writers = n ? n->writers : 0;
	pthread_mutex_unlock(&t->lock);
	return writers;
}

bool nodes_is_shared(struct node_table *t, uint64_t nodeid)
{
	struct node *n;
	bool shared;

	pthread_mutex_lock(&t->lock);
	n = find(t, nodeid);
	shared = n && n->backing && n->backing->kind == NODE_SHARED;
	pthread_mutex_unlock(&t->lock);
	return shared;
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
	n = find(t, nodeid);
	if (n) {
		n->forgotten = n->revoked = true;
		if (n->readers + n->writers == 0)
			drop_backing(t, n, &dead);
	}
	pthread_mutex_unlock(&t->lock);
	bury(t, dead);
}

/* ---- called by the channel's threads ------------------------------------------------------------ */

bool nodes_repeat_open(struct node_table *t, uint64_t nodeid, struct open_answer *out)
{
	struct node *n;
	bool here;

	pthread_mutex_lock(&t->lock);
	n = find(t, nodeid);
	here = n && n->backing && n->backing->kind == NODE_SHARED && !n->revoked;
	if (here) {
		count_open(t, n, false);
		describe(n, out);
	}
	pthread_mutex_unlock(&t->lock);
	return here;
}

bool nodes_describe(struct node_table *t, uint64_t nodeid, struct open_answer *out)
{
	struct node *n;
	bool backed;

	pthread_mutex_lock(&t->lock);
	n = find(t, nodeid);
	backed = n && n->backing;
	if (backed)
		describe(n, out);
	pthread_mutex_unlock(&t->lock);
	return backed;
}

void nodes_release(struct node_table *t, uint64_t nodeid, bool writing)
{
	struct backing *dead = NULL;
	struct node *n;

	pthread_mutex_lock(&t->lock);
	n = find(t, nodeid);
	if (n && n->readers + n->writers > 0) {
		/* Never below zero, whatever Python took the access mode for. */
		if (writing ? n->writers > 0 : n->readers == 0)
			n->writers--;
		else
			n->readers--;
		if (n->readers + n->writers == 0) {
			if (n->backing->kind == NODE_SHARED && !n->revoked) {
				enter_kept(t, n);
				if (t->kept > t->max_kept)
					drop_backing(t, t->oldest, &dead);
			} else {
				drop_backing(t, n, &dead);
			}
		}
	}
	pthread_mutex_unlock(&t->lock);
	bury(t, dead);
}

struct backing *nodes_borrow(struct node_table *t, uint64_t nodeid)
{
	struct backing *b = NULL;
	struct node *n;

	pthread_mutex_lock(&t->lock);
	n = find(t, nodeid);
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
	let_go(b, &dead);
	pthread_mutex_unlock(&t->lock);
	bury(t, dead);
}
