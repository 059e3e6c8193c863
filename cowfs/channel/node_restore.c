/*
 * node_restore.c - the node table of a daemon that is gone, made again from its ledger
 *
 * Of an open node the ledger has all that there is to know: which file backs it (as a file handle) by
 * which id, and how often it is open. Of a node that is not open only what outlives a backing is taken
 * over, and only if the kernel still holds the node. What is cached is not: its ids are closed. For
 * whom descriptors were held the ledger does not say, so it is root.
 *
 * Locking: restoring has node_table.lock over its system calls, as no other thread runs yet.
 * looking_back is held over syncfs(2), and taken before node_table.lock.
 */
#include "node_restore.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "node_state.h"

/* ---- restoring ---------------------------------------------------------------------------------- */

static bool is_open(const struct ledger_slot *s)
{
	return s->flags & SLOT_BACKED && s->readers + s->writers > 0;
}

/* The daemon before was killed on the way to or from an id that no slot has: it may be the kernel's
 * still. */
static void close_stray_ids(const struct node_table *t)
{
	int32_t strays[LEDGER_STRAYS];
	uint32_t count = ledger_stray_ids(t->ledger, strays, LEDGER_STRAYS);

	for (uint32_t i = 0; i < count; i++) {
		bool used = false;

		for (uint32_t slot = 0; slot < ledger_used(t->ledger) && !used; slot++)
			used = t->ledger->slots[slot].nodeid && t->ledger->slots[slot].id == strays[i];
		if (!used) /* ENOENT: nobody's either */
			t->device.ops->close(t->device.dev_fd, strays[i]);
	}
}

static struct node *insert_locked(struct node_table *t, uint32_t slot)
{
	const struct ledger_slot *s = &t->ledger->slots[slot];
	struct node *n = node_insert_locked(t, s->nodeid, slot);

	if (!n)
		return NULL;
	n->revoked = s->flags & SLOT_REVOKED;
	n->forgotten = s->flags & SLOT_FORGOTTEN;
	n->was_passthrough = s->flags & SLOT_WAS_PASSTHROUGH;
	n->mappable = s->flags & SLOT_MAPPABLE;
	n->writeback.errors = s->errors;
	n->writeback.error = s->error;
	return n;
}

/* 0 or -ENOMEM. */
static int restore_closed_locked(struct node_table *t, uint32_t slot)
{
	const struct ledger_slot *s = &t->ledger->slots[slot];
	const struct ledger_slot nobody = {0};
	struct node *n;

	if (s->id > 0)
		t->device.ops->close(t->device.dev_fd, s->id);
	if (!(s->flags & (SLOT_WAS_PASSTHROUGH | SLOT_MAPPABLE)) || s->flags & SLOT_FORGOTTEN ||
	    !t->device.ops->knows(t->device.dev_fd, s->nodeid)) {
		ledger_write(t->ledger, slot, &nobody, NULL, 0, 0, 0);
		ledger_give_slot(t->ledger, slot);
		return 0;
	}
	n = insert_locked(t, slot);
	if (!n)
		return -ENOMEM;
	node_record_locked(t, n); /* without its backing */
	return 0;
}

/* 0 or -ENOMEM. A file that cannot be opened any more is counted in *lost. */
static int restore_open_locked(struct node_table *t, uint32_t slot, int volume_fd, int *lost)
{
	const struct ledger_slot *s = &t->ledger->slots[slot];
	struct backing *b = backing_reopen(volume_fd, s);
	struct node *n;

	if (!b)
		return -ENOMEM;
	n = insert_locked(t, slot);
	if (!n) {
		backing_put_locked(b, &t->free_list);
		return -ENOMEM;
	}
	n->backing = b;
	n->opens = (struct opens){.readers = s->readers, .writers = s->writers};
	n->suspect = s->kind == NODE_PRIVATE;
	node_charge_locked(t, n, 0);
	*lost += b->fd < 0;
	return 0;
}

int nodes_restore(struct node_table *t, int volume_fd)
{
	int lost = 0;
	int err = 0;

	t->witness_fd = fcntl(volume_fd, F_DUPFD_CLOEXEC, 0);
	if (t->witness_fd < 0)
		return -errno;
	nodes_lock(t);
	close_stray_ids(t);
	for (uint32_t i = 0; i < ledger_used(t->ledger) && !err; i++) {
		const struct ledger_slot *s = &t->ledger->slots[i];

		if (s->nodeid == 0)
			ledger_give_slot(t->ledger, i);
		else if (is_open(s))
			err = restore_open_locked(t, i, volume_fd, &lost);
		else
			err = restore_closed_locked(t, i);
	}
	nodes_unlock(t);
	return err ? err : lost;
}

/* ---- errors of the daemon before ------------------------------------------------------------------- */

/*
 * The daemon before may have been about to note an error when it was killed, or the kernel may have told
 * one by itself to a program that has the file passed through (msync(2), O_SYNC). The descriptors that
 * this daemon has opened know nothing of such an error: it had been reported when they were opened. But
 * the volume as a whole counts errors, too, for syncfs(2), and the witness is a descriptor of the volume
 * that is older than any daemon. If it reports an error, of whatever file, then every file that was open
 * is assumed to have had it.
 *
 * The first syncfs(2) writes everything, and only then the witness is asked, which takes no time any more:
 * it reports an error once, and the report would be lost if this daemon were killed meanwhile.
 */
void nodes_look_back(struct node_table *t, uint64_t nodeid, const struct backing *b)
{
	struct node *n;
	bool suspect;
	int err;

	nodes_lock(t);
	n = node_find_locked(t, nodeid);
	suspect = n && n->suspect;
	nodes_unlock(t);
	if (!suspect)
		return;
	pthread_mutex_lock(&t->looking_back);
	if (t->witness_fd >= 0) {
		syncfs(b->fd);
		err = syncfs(t->witness_fd) < 0 ? errno : 0;
		close(t->witness_fd);
		t->witness_fd = -1;

		nodes_lock(t);
		for (uint32_t i = 0; i <= t->mask; i++) {
			for (n = t->buckets[i]; n; n = n->next) {
				if (n->suspect && err) {
					writeback_failed(&n->writeback, err);
					node_record_locked(t, n);
				}
				n->suspect = false;
			}
		}
		nodes_unlock(t);
	}
	pthread_mutex_unlock(&t->looking_back);
}
