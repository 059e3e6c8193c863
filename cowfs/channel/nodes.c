/*
 * nodes.c - what backs the opens of each node
 *
 * A hash table by node id. A node has at most one backing: a descriptor, perhaps with a backing
 * id that the kernel knows it by, and the numbers of open readers and writers. The table decides
 * four things, and nothing else in the channel does:
 *
 * - whether an OPEN may be answered without Python. Yes for a SHARED backing that was not
 *   revoked; such a backing is kept after the last release (the least recently used go first
 *   when there are more than max_kept), so that opening the file again is cheap.
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

/* A notification about the attributes alone takes no lock, and fails for a node that is not there. */
static bool kernel_knows(int dev_fd, uint64_t nodeid)
{
	struct {
		struct fuse_out_header head;
		struct fuse_notify_inval_inode_out out;
	} m = {
		.head = {.len = sizeof(m), .error = FUSE_NOTIFY_INVAL_INODE},
		.out = {.ino = nodeid, .off = -1},
	};

	return write(dev_fd, &m, sizeof(m)) >= 0 || errno != ENOENT;
}

const struct backing_ops kernel_backing_ops = {
	.open = kernel_backing_open,
	.close = kernel_backing_close,
	.knows = kernel_knows,
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
		if (b->dying)
			atomic_store(b->dying, 0);
		if (b->fd >= 0)
			close(b->fd);
		pthread_mutex_destroy(&b->syncing);
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

static struct node *enter(struct node_table *t, uint64_t nodeid, uint32_t slot)
{
	struct node *n = calloc(1, sizeof(*n));

	if (!n)
		return NULL;
	if (t->count > t->mask)
		grow(t);
	n->nodeid = nodeid;
	n->slot = slot;
	n->next = t->buckets[bucket_of(t, nodeid)];
	t->buckets[bucket_of(t, nodeid)] = n;
	t->count++;
	return n;
}

static struct node *find_or_make(struct node_table *t, uint64_t nodeid)
{
	struct node *n = find(t, nodeid);
	uint32_t slot;

	if (n)
		return n;
	slot = ledger_take_slot(t->ledger);
	if (slot == LEDGER_NO_SLOT)
		return NULL;
	n = enter(t, nodeid, slot);
	if (!n)
		ledger_give_slot(t->ledger, slot);
	return n;
}

/* ---- the ledger; called with the lock -------------------------------------------------------------- */

static struct ledger_slot slot_of(const struct node *n)
{
	struct ledger_slot s = {
		.nodeid = n->nodeid,
		.readers = n->readers,
		.writers = n->writers,
		.flags = (uint8_t)((n->revoked ? SLOT_REVOKED : 0) |
				   (n->forgotten ? SLOT_FORGOTTEN : 0) |
				   (n->was_passthrough ? SLOT_WAS_PASSTHROUGH : 0) |
				   (n->mappable ? SLOT_MAPPABLE : 0)),
		.errors = n->writeback.errors,
		.error = n->writeback.error,
	};

	if (n->backing) {
		s.flags |= (uint8_t)(SLOT_BACKED | (n->backing->bypass ? SLOT_BYPASS : 0));
		s.id = n->backing->id;
		s.kind = n->backing->kind;
		s.handle_len = n->backing->handle_len;
		s.handle = n->backing->handle;
	}
	return s;
}

static void record(struct node_table *t, const struct node *n)
{
	struct ledger_slot s = slot_of(n);
	ledger_write(t->ledger, n->slot, &s, NULL, 0, 0, 0);
}

/* The same together with a doubt, in one step. */
static struct ledger_doubt *record_doubt(struct node_table *t, const struct node *n,
					 uint64_t unique, enum doubt_of what)
{
	struct ledger_slot s = slot_of(n);
	struct ledger_doubt *d = ledger_doubt(t->ledger);

	ledger_write(t->ledger, n->slot, &s, d, unique, n->nodeid, what);
	return d;
}

static void unlink_node(struct node_table *t, struct node *n)
{
	const struct ledger_slot nobody = {0};
	struct node **link = &t->buckets[bucket_of(t, n->nodeid)];

	while (*link != n)
		link = &(*link)->next;
	*link = n->next;
	t->count--;
	ledger_write(t->ledger, n->slot, &nobody, NULL, 0, 0, 0);
	ledger_give_slot(t->ledger, n->slot);
	writeback_free(&n->writeback);
	free(n);
}

/* ---- what nodes go through; called with the lock ---------------------------------------------------- */

static bool is_open(const struct node *n)
{
	return n->readers + n->writers + n->promised_readers + n->promised_writers > 0;
}

/* Whether the kernel goes to the file by itself. */
static bool is_passthrough(const struct node *n)
{
	return n->backing && n->backing->id > 0;
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

/* ---- for whom descriptors are held; called with the lock ------------------------------------------- */

static void drop_backing(struct node_table *t, struct node *n, struct backing **dead);

/* What is kept is nobody's, and makes room. */
static bool have_room(struct node_table *t, uint32_t uid, struct backing **dead)
{
	while (t->oldest && t->kept + t->holders.total >= t->holders.max)
		drop_backing(t, t->oldest, dead);
	return holders_may(&t->holders, uid);
}

/* The descriptor of the node's backing is held for this user from now on, unless it is for another one. */
static void charge(struct node_table *t, struct node *n, uint32_t uid)
{
	if (n->charged)
		return;
	n->charged = holders_add(&t->holders, uid);
	n->charged_to = uid;
}

static void uncharge(struct node_table *t, struct node *n)
{
	if (n->charged)
		holders_drop(&t->holders, n->charged_to);
	n->charged = false;
}

static void uncharge_gone(struct node_table *t, struct node *n)
{
	if (n->gone)
		holders_drop(&t->holders, n->gone_by);
	n->gone = false;
}

/* Take the backing from a node without opens. What is left of the node is only worth keeping for
 * its memory of a stale page cache, or of a mapping. */
static void drop_backing(struct node_table *t, struct node *n, struct backing **dead)
{
	leave_kept(t, n);
	uncharge(t, n);
	if (n->backing) {
		if (n->backing->id > 0)
			n->backing->dying = ledger_dying(t->ledger, n->backing->id);
		let_go(n->backing, dead);
	}
	n->backing = NULL;
	n->readers = n->writers = n->promised_readers = n->promised_writers = 0;
	n->suspect = false;
	writeback_free(&n->writeback);
	if (n->forgotten || !(n->was_passthrough || n->mappable || n->gone))
		unlink_node(t, n);
	else
		record(t, n);
}

/* The last open has gone. */
static void close_node(struct node_table *t, struct node *n, struct backing **dead)
{
	if (n->backing->kind == NODE_SHARED && !n->revoked) {
		uncharge(t, n);
		enter_kept(t, n);
		if (t->kept > t->max_kept)
			drop_backing(t, t->oldest, dead);
	} else {
		drop_backing(t, n, dead);
	}
}

/* Never below zero, whatever Python took the access mode for. */
static void count_down(uint32_t *readers, uint32_t *writers, bool writing)
{
	if (writing ? *writers > 0 : *readers == 0 && *writers > 0)
		*writers -= 1;
	else if (*readers > 0)
		*readers -= 1;
}

/* Python has counted an open. */
static void promise(struct node_table *t, struct node *n, bool writing)
{
	leave_kept(t, n);
	*(writing ? &n->promised_writers : &n->promised_readers) += 1;
}

static void describe(const struct node *n, uint64_t unique, struct open_answer *out)
{
	out->fh = writeback_handle(&n->writeback, unique);
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

int nodes_init(struct node_table *t, uint32_t max_kept, uint32_t max_held,
	       const struct backing_ops *ops, struct ledger *ledger)
{
	*t = (struct node_table){.mask = FIRST_BUCKETS - 1,
				 .max_kept = max_kept,
				 .ops = ops,
				 .ledger = ledger,
				 .dev_fd = -1,
				 .private_mount_fd = -1,
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
			drop_backing(t, n, &dead);
		}
	}
	bury(t, dead);
	holders_destroy(&t->holders);
	free(t->buckets);
	t->buckets = NULL;
	if (t->witness_fd >= 0)
		close(t->witness_fd);
	if (t->private_mount_fd >= 0)
		close(t->private_mount_fd);
	pthread_mutex_destroy(&t->looking_back);
	pthread_mutex_destroy(&t->lock);
}

/* So that the next daemon can open the same file, whatever it is called then, or when it has no
 * name any more. */
static void note_handle(struct backing *b)
{
	union {
		struct file_handle head;
		uint8_t bytes[sizeof(struct file_handle) + LEDGER_HANDLE];
	} h;
	int mount_id;

	h.head.handle_bytes = LEDGER_HANDLE;
	if (name_to_handle_at(b->fd, "", &h.head, &mount_id, AT_EMPTY_PATH) < 0)
		return; /* restoring says so, should it come to that */
	b->handle_len = (uint8_t)h.head.handle_bytes;
	b->handle.type = h.head.handle_type;
	memcpy(b->handle.bytes, h.head.f_handle, h.head.handle_bytes);
}

/* The file of a handle in the mount of mount_fd, or -1. */
static int open_handle(int mount_fd, uint8_t len, const struct ledger_handle *handle, bool writable)
{
	union {
		struct file_handle head;
		uint8_t bytes[sizeof(struct file_handle) + LEDGER_HANDLE];
	} h;
	int fd;

	if (len == 0 || len > LEDGER_HANDLE)
		return -1;
	h.head.handle_bytes = len;
	h.head.handle_type = handle->type;
	memcpy(h.head.f_handle, handle->bytes, len);
	fd = open_by_handle_at(mount_fd, &h.head,
			       (writable ? O_RDWR : O_RDONLY) | O_NOATIME | O_CLOEXEC);
	if (fd < 0 && writable && (errno == EROFS || errno == EPERM))
		fd = open_by_handle_at(mount_fd, &h.head, O_RDONLY | O_NOATIME | O_CLOEXEC);
	return fd;
}

/* A backing id, or -errno. */
static int register_backing(const struct node_table *t, const struct backing *b)
{
	int id, fd = -1;

	if (b->kind == NODE_PRIVATE && t->private_mount_fd >= 0)
		fd = open_handle(t->private_mount_fd, b->handle_len, &b->handle, true);
	id = t->ops->open(t->dev_fd, fd < 0 ? b->fd : fd);
	if (fd >= 0)
		close(fd);
	return id;
}

static bool is_alive(const struct node_table *t, int32_t id)
{
	for (uint32_t i = 0; i < ledger_used(t->ledger); i++)
		if (t->ledger->slots[i].nodeid && t->ledger->slots[i].id == id)
			return true;
	return false;
}

/* 1: taken over, but its file cannot be opened. 0 or -ENOMEM. */
static int restore_one(struct node_table *t, uint32_t slot, int volume_fd)
{
	const struct ledger_slot *s = &t->ledger->slots[slot];
	bool open = s->flags & SLOT_BACKED && s->readers + s->writers > 0;
	struct backing *b;
	struct node *n;

	if (!open) {
		const struct ledger_slot nobody = {0};
		bool remembers = s->flags & (SLOT_WAS_PASSTHROUGH | SLOT_MAPPABLE) &&
				 !(s->flags & SLOT_FORGOTTEN) && t->ops->knows(t->dev_fd, s->nodeid);

		if (s->id > 0)
			t->ops->close(t->dev_fd, s->id);
		if (!remembers) {
			ledger_write(t->ledger, slot, &nobody, NULL, 0, 0, 0);
			ledger_give_slot(t->ledger, slot);
			return 0;
		}
	}
	n = enter(t, s->nodeid, slot);
	if (!n)
		return -ENOMEM;
	n->revoked = s->flags & SLOT_REVOKED;
	n->forgotten = s->flags & SLOT_FORGOTTEN;
	n->was_passthrough = s->flags & SLOT_WAS_PASSTHROUGH;
	n->mappable = s->flags & SLOT_MAPPABLE;
	n->writeback.errors = s->errors;
	n->writeback.error = s->error;
	if (!open) {
		record(t, n);
		return 0;
	}
	b = malloc(sizeof(*b));
	if (!b)
		return -ENOMEM;
	*b = (struct backing){.fd = open_handle(volume_fd, s->handle_len, &s->handle,
						s->kind == NODE_PRIVATE),
			      .id = s->id,
			      .kind = s->kind,
			      .bypass = s->flags & SLOT_BYPASS,
			      .refs = 1,
			      .syncing = PTHREAD_MUTEX_INITIALIZER,
			      .handle_len = s->handle_len,
			      .handle = s->handle};
	n->backing = b;
	n->readers = s->readers;
	n->writers = s->writers;
	n->suspect = s->kind == NODE_PRIVATE;
	charge(t, n, 0); /* who it was, the ledger does not say */
	return b->fd < 0;
}

int nodes_restore(struct node_table *t, int volume_fd)
{
	int32_t strays[LEDGER_STRAYS];
	uint32_t count = ledger_stray_ids(t->ledger, strays, LEDGER_STRAYS);
	int lost = 0;

	t->witness_fd = fcntl(volume_fd, F_DUPFD_CLOEXEC, 0);
	if (t->witness_fd < 0)
		return -errno;
	for (uint32_t i = 0; i < count; i++)
		if (!is_alive(t, strays[i]))
			t->ops->close(t->dev_fd, strays[i]); /* ENOENT: nobody's either */
	for (uint32_t i = 0; i < ledger_used(t->ledger); i++) {
		int one = 0;

		if (t->ledger->slots[i].nodeid)
			one = restore_one(t, i, volume_fd);
		else
			ledger_give_slot(t->ledger, i);
		if (one < 0)
			return one;
		lost += one;
	}
	return lost;
}

/* ---- called by Python ------------------------------------------------------------------------- */

int nodes_open(struct node_table *t, uint64_t nodeid, bool writing, uint32_t uid)
{
	struct backing *dead = NULL;
	struct node *n;
	int backed;

	pthread_mutex_lock(&t->lock);
	n = find(t, nodeid);
	backed = n && n->backing;
	if (backed && n->kept) {
		leave_kept(t, n); /* or it would make room */
		if (!have_room(t, uid, &dead)) {
			enter_kept(t, n);
			backed = -ENFILE;
		}
	}
	if (backed > 0) {
		charge(t, n, uid);
		promise(t, n, writing);
		if (n->forgotten) { /* Python knows it again */
			n->forgotten = false;
			record(t, n);
		}
	}
	pthread_mutex_unlock(&t->lock);
	bury(t, dead);
	return backed;
}

bool nodes_have_room(struct node_table *t, uint32_t uid)
{
	struct backing *dead = NULL;
	bool room;

	pthread_mutex_lock(&t->lock);
	room = have_room(t, uid, &dead);
	pthread_mutex_unlock(&t->lock);
	bury(t, dead);
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
	n = find(t, nodeid);
	if (!n || !n->gone) {
		if (!have_room(t, uid, &dead))
			err = -ENFILE;
		else if (!(n = find_or_make(t, nodeid)) || !holders_add(&t->holders, uid))
			err = -ENOMEM;
		if (!err) {
			n->gone = true;
			n->gone_by = uid;
		}
	}
	pthread_mutex_unlock(&t->lock);
	bury(t, dead);
	return err;
}

void nodes_let(struct node_table *t, uint64_t nodeid)
{
	struct backing *dead = NULL;
	struct node *n;

	pthread_mutex_lock(&t->lock);
	n = find(t, nodeid);
	if (n && n->gone) {
		uncharge_gone(t, n);
		if (!n->backing)
			drop_backing(t, n, &dead);
	}
	pthread_mutex_unlock(&t->lock);
	bury(t, dead);
}

void nodes_unopen(struct node_table *t, uint64_t nodeid, bool writing)
{
	struct backing *dead = NULL;
	struct node *n;

	pthread_mutex_lock(&t->lock);
	n = find(t, nodeid);
	if (n && n->promised_readers + n->promised_writers > 0) {
		count_down(&n->promised_readers, &n->promised_writers, writing);
		if (!is_open(n))
			close_node(t, n, &dead);
	}
	pthread_mutex_unlock(&t->lock);
	bury(t, dead);
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
	note_handle(b);
	if (passthrough) {
		int id = register_backing(t, b);
		if (id < 0) {
			bury(t, b);
			return id;
		}
		ledger_registered(t->ledger, id);
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
		charge(t, n, uid);
		promise(t, n, writing);
		record(t, n);
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
	*b = (struct backing){.fd = fd,
			      .kind = NODE_PRIVATE,
			      .refs = 1,
			      .syncing = PTHREAD_MUTEX_INITIALIZER};
	note_handle(b);

	pthread_mutex_lock(&t->lock);
	n = find(t, nodeid);
	if (!n || !n->backing || !is_open(n)) {
		done = 0;
	} else if (n->backing->kind != NODE_SHARED || n->backing->id > 0) {
		done = -EINVAL;
	} else {
		/* Reads that have borrowed the old descriptor finish with it: they began before
		 * anything was written, and both files hold the same bytes at this moment. */
		let_go(n->backing, &dead);
		n->backing = b;
		record(t, n);
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
		open = is_open(n);
		if (open) {
			*out = (struct node_state){.kind = n->backing->kind,
						   .readers = n->readers + n->promised_readers,
						   .writers = n->writers + n->promised_writers,
						   .passthrough = n->backing->id > 0};
			record(t, n);
		} else {
			drop_backing(t, n, &dead);
		}
	}
	pthread_mutex_unlock(&t->lock);
	bury(t, dead);
	return open;
}

void nodes_mark_mappable(struct node_table *t, uint64_t nodeid)
{
	struct node *n;

	pthread_mutex_lock(&t->lock);
	n = find(t, nodeid);
	if (n && is_passthrough(n) && !n->mappable) {
		n->mappable = true;
		record(t, n);
	}
	pthread_mutex_unlock(&t->lock);
}

bool nodes_is_volatile(struct node_table *t, uint64_t nodeid)
{
	struct node *n;
	bool changes;

	pthread_mutex_lock(&t->lock);
	n = find(t, nodeid);
	changes = n && (n->mappable ||
			(is_passthrough(n) && n->writers + n->promised_writers > 0));
	pthread_mutex_unlock(&t->lock);
	return changes;
}

uint32_t nodes_writers(struct node_table *t, uint64_t nodeid)
{
	struct node *n;
	uint32_t writers;

	pthread_mutex_lock(&t->lock);
	n = find(t, nodeid);
	writers = n ? n->writers + n->promised_writers : 0;
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
	n = find(t, nodeid);
	if (n) {
		n->forgotten = n->revoked = true;
		uncharge_gone(t, n);
		if (is_open(n))
			record(t, n);
		else
			drop_backing(t, n, &dead);
	}
	pthread_mutex_unlock(&t->lock);
	bury(t, dead);
}

/* ---- called by the channel's threads ------------------------------------------------------------ */

bool nodes_repeat_open(struct node_table *t, uint64_t nodeid, uint64_t unique, uint32_t uid,
		       struct open_answer *out, struct ledger_doubt **doubt)
{
	struct node *n;
	bool here;

	pthread_mutex_lock(&t->lock);
	n = find(t, nodeid);
	here = n && n->backing && n->backing->kind == NODE_SHARED && !n->revoked;
	/* Whom Python has to refuse, or to find out about. */
	if (here && n->kept && (uid == FUSE_INVALID_UIDGID ? holders_scarce(&t->holders)
							   : !holders_may(&t->holders, uid)))
		here = false;
	if (here) {
		charge(t, n, uid);
		leave_kept(t, n);
		n->readers++;
		describe(n, unique, out);
		*doubt = record_doubt(t, n, unique, DOUBT_READER);
	}
	pthread_mutex_unlock(&t->lock);
	return here;
}

bool nodes_opened(struct node_table *t, uint64_t nodeid, bool writing, uint64_t unique,
		  struct open_answer *out, struct ledger_doubt **doubt)
{
	struct node *n;
	bool backed;

	pthread_mutex_lock(&t->lock);
	n = find(t, nodeid);
	backed = n && n->backing;
	if (backed) {
		count_down(&n->promised_readers, &n->promised_writers, writing);
		leave_kept(t, n);
		*(writing ? &n->writers : &n->readers) += 1;
		describe(n, unique, out);
		*doubt = record_doubt(t, n, unique, writing ? DOUBT_WRITER : DOUBT_READER);
	}
	pthread_mutex_unlock(&t->lock);
	return backed;
}

/* One open less; what it is done for is said by `unique` (0: a doubt that goes) and `what`. */
static void uncount(struct node_table *t, struct node *n, bool writing,
		    struct ledger_doubt *doubt, uint64_t unique, struct backing **dead)
{
	struct ledger_slot s;

	count_down(&n->readers, &n->writers, writing);
	s = slot_of(n);
	ledger_write(t->ledger, n->slot, &s, doubt, unique, n->nodeid, DOUBT_RELEASE);
	if (!is_open(n))
		close_node(t, n, dead);
}

void nodes_not_opened(struct node_table *t, uint64_t nodeid, bool writing,
		      struct ledger_doubt *doubt)
{
	struct backing *dead = NULL;
	struct node *n;

	pthread_mutex_lock(&t->lock);
	n = find(t, nodeid);
	if (n && n->readers + n->writers > 0)
		uncount(t, n, writing, doubt, 0, &dead);
	else
		ledger_settle(doubt);
	pthread_mutex_unlock(&t->lock);
	bury(t, dead);
}

bool nodes_release(struct node_table *t, uint64_t nodeid, uint64_t fh, bool writing,
		   uint64_t unique, struct ledger_doubt **doubt)
{
	struct backing *dead = NULL;
	bool last_writer = false;
	struct node *n;

	*doubt = NULL;
	pthread_mutex_lock(&t->lock);
	n = find(t, nodeid);
	if (n && n->readers + n->writers > 0) {
		last_writer = writing && n->writers == 1 && !is_passthrough(n);
		writeback_released(&n->writeback, fh);
		*doubt = ledger_doubt(t->ledger);
		uncount(t, n, writing, *doubt, unique, &dead);
	}
	pthread_mutex_unlock(&t->lock);
	bury(t, dead);
	return last_writer;
}

bool nodes_resent(struct node_table *t, uint64_t unique, struct ledger_doubt **doubt)
{
	struct backing *dead = NULL;
	struct ledger_doubt *d;
	bool done = false;

	pthread_mutex_lock(&t->lock);
	d = ledger_find_doubt(t->ledger, unique);
	if (d && d->what == DOUBT_RELEASE) {
		done = true;
		*doubt = d;
	} else if (d) {
		struct node *n = find(t, d->nodeid);
		if (n && n->readers + n->writers > 0)
			uncount(t, n, d->what == DOUBT_WRITER, d, 0, &dead);
		else
			ledger_settle(d);
	}
	pthread_mutex_unlock(&t->lock);
	bury(t, dead);
	return done;
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

/*
 * An error that the daemon before was about to note when it was killed, or that the kernel has told by
 * itself to whoever has the file passed through (msync(2), O_SYNC), is one that the descriptors opened
 * since then know nothing of: it had been seen when they were opened. But the volume as a whole counts
 * errors, too, for syncfs(2), and the witness is a descriptor of it that is older than any daemon: if it
 * says that there was one, of whatever file, then everything that was open is taken to have had it.
 *
 * The first syncfs(2) does the work, and the witness is asked when it takes no time any more: what it
 * says is said once, and lost with a daemon that is killed meanwhile.
 */
void nodes_look_back(struct node_table *t, uint64_t nodeid, const struct backing *b)
{
	struct node *n;
	bool suspect;
	int err;

	pthread_mutex_lock(&t->lock);
	n = find(t, nodeid);
	suspect = n && n->suspect;
	pthread_mutex_unlock(&t->lock);
	if (!suspect)
		return;
	pthread_mutex_lock(&t->looking_back);
	if (t->witness_fd >= 0) {
		syncfs(b->fd);
		err = syncfs(t->witness_fd) < 0 ? errno : 0;
		close(t->witness_fd);
		t->witness_fd = -1;

		pthread_mutex_lock(&t->lock);
		for (uint32_t i = 0; i <= t->mask; i++) {
			for (n = t->buckets[i]; n; n = n->next) {
				if (n->suspect && err) {
					writeback_failed(&n->writeback, err);
					record(t, n);
				}
				n->suspect = false;
			}
		}
		pthread_mutex_unlock(&t->lock);
	}
	pthread_mutex_unlock(&t->looking_back);
}

int nodes_synced(struct node_table *t, uint64_t nodeid, uint64_t fh, int error)
{
	struct node *n;

	pthread_mutex_lock(&t->lock);
	n = find(t, nodeid);
	if (n) {
		if (error) {
			writeback_failed(&n->writeback, error);
			record(t, n);
		}
		error = writeback_tell(&n->writeback, fh);
	}
	pthread_mutex_unlock(&t->lock);
	return error;
}
